import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from typer.testing import CliRunner

from dmx.cli.cohort import app
from dmx.cohort import demo
from dmx.cohort.check import check_cohort
from dmx.cohort.demo import make_demo_case, make_demo_cohort
from dmx.cohort.manifest import read_manifest
from dmx.cohort.volume import read_volume
from dmx.errors import CohortError

# One for all: the smoothed template is kept.
SPACING = 5.0

needs_template = pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None, reason="the template of nilearn is not installed"
)


def shown(kind: demo.Kind, seed: int) -> dict[str, dict[str, float]]:
    """Mean of each class in each channel, as a multiple of the brain's bright tissue (its upper quartile)."""
    channels, labels, roi, _ = make_demo_case(kind, 0, spacing_mm=SPACING, seed=seed)
    around = (labels == 0) & (roi > 0)
    return {
        name: {
            region: float(image[labels == label].mean() / np.percentile(image[around], 75))
            for label, region in enumerate(("edema", "core", "rim"), start=1)
            if (labels == label).any()
        }
        for name, image in channels.items()
    }


@needs_template
@pytest.mark.parametrize("seed", range(2))
def test_stroke_lesions_are_bright_on_flair_and_dwi(seed: int) -> None:
    for regions in shown("A", seed).values():
        assert regions["edema"] > 1.05


@needs_template
@pytest.mark.parametrize("seed", range(2))
def test_tumors_have_a_bright_edema_a_dark_core_and_a_rim_that_enhances(seed: int) -> None:
    channels = shown("B", seed)
    assert channels["FLAIR"]["edema"] > 1.2
    assert channels["T2"]["core"] > channels["T2"]["edema"] > 0.9
    assert channels["T1c"]["rim"] > 1.1 > channels["T1c"]["core"]
    assert all(share < 1.0 for share in channels["T1"].values())


@needs_template
@pytest.mark.parametrize(("kind", "limits_ml"), [("A", (0.6, 80)), ("B", (12, 140))])
def test_lesions_have_the_volume_of_the_recipe_and_lie_in_the_brain(kind: demo.Kind, limits_ml) -> None:
    for index in range(4):
        _, labels, roi, grid = make_demo_case(kind, index, spacing_mm=SPACING, seed=1)
        volume = (labels > 0).sum() * np.prod(grid.spacing) / 1000
        # Up to a voxel for rounding; a region may end up to a tenth short where it must stay connected.
        voxel = np.prod(grid.spacing) / 1000
        assert 0.9 * limits_ml[0] - voxel <= volume <= limits_ml[1] + voxel
        assert not (labels[roi == 0]).any()
        assert 1 <= ndimage.label(labels > 0)[1] <= 3
        assert ndimage.label(roi)[1] == 1
        borders = [np.take(roi, end, axis).any() for axis in range(3) for end in (0, -1)]
        assert not any(borders)


@needs_template
def test_a_case_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    one = make_demo_cohort(tmp_path / "one", "A", cases=1, spacing_mm=SPACING, seed=3)
    two = make_demo_cohort(tmp_path / "two", "A", cases=2, spacing_mm=SPACING, seed=3)
    for column, path in one.cases[0].files().items():
        assert path.read_bytes() == two.cases[0].files()[column].read_bytes()
    images = [read_volume(case.channels["FLAIR"]).array for case in two.cases]
    assert not np.array_equal(images[0], images[1])
    other, *_ = make_demo_case("A", 0, spacing_mm=SPACING, seed=4)
    assert not np.array_equal(other["FLAIR"], images[0])


@needs_template
def test_other_people_are_another_cohort(tmp_path: Path) -> None:
    names = [
        make_demo_cohort(tmp_path, "A", cases=1, spacing_mm=SPACING, seed=seed, processes=1).name for seed in (0, 7)
    ]
    assert names == ["demo-stroke", "demo-stroke-7"]


@pytest.mark.slow
@needs_template
def test_any_number_of_processes_makes_the_same_files(tmp_path: Path) -> None:
    one, two = (
        make_demo_cohort(tmp_path / str(n), "B", cases=2, spacing_mm=SPACING, seed=3, processes=n) for n in (1, 2)
    )
    for left, right in zip(one.cases, two.cases, strict=True):
        for column, path in left.files().items():
            assert path.read_bytes() == right.files()[column].read_bytes()


@needs_template
def test_the_cohort_passes_its_own_check(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    cohort = make_demo_cohort(
        tmp_path, "B", cases=3, spacing_mm=SPACING, seed=0, progress=lambda *step: seen.append(step)
    )
    assert [step[:2] for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert [len(cohort.in_split(split)) for split in ("training", "validation", "evaluation")] == [1, 1, 1]
    assert cohort.classes == ("background", "edema", "core", "enhancing")
    assert cohort.channels == ("T1", "T1c", "T2", "FLAIR")
    assert read_manifest(tmp_path / "manifest.csv").cases == cohort.cases
    report = check_cohort(cohort, cache_dir=tmp_path / "facts")
    assert not report.errors
    assert not report.warnings


@needs_template
def test_a_make_that_ends_early_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_demo_cohort(tmp_path, "A", cases=1, spacing_mm=SPACING, seed=0)
    real = demo._write_case

    def ends(folder: Path, kind: demo.Kind, index: int, spacing_mm: float, seed: int) -> str:
        if index == 1:
            raise KeyboardInterrupt
        return real(folder, kind, index, spacing_mm, seed)

    monkeypatch.setattr(demo, "_write_case", ends)
    with pytest.raises(KeyboardInterrupt):
        make_demo_cohort(tmp_path, "A", cases=2, spacing_mm=SPACING, seed=1)
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "C"}, "must be A or B, got 'C'"),
        ({"cases": 0}, "at least 1 case, got 0"),
        ({"spacing_mm": 0.5}, "1 to 8 mm, got 0.5"),
        ({"seed": -1}, "at least 0, got -1"),
    ],
)
def test_what_is_not_allowed_is_said(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    arguments = {"kind": "A", "cases": 1, "spacing_mm": SPACING, "seed": 0} | change
    with pytest.raises(CohortError, match=sentence):
        make_demo_cohort(tmp_path, **arguments)


@needs_template
def test_another_cohort_is_never_replaced(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    text = "# cohort: mine\ncase,subject,channel_t1,split\na,a,a.nii,training\n"
    manifest.write_text(text)
    with pytest.raises(CohortError, match="belongs to another cohort"):
        make_demo_cohort(tmp_path, "A", cases=1, spacing_mm=SPACING, seed=0)
    assert manifest.read_text() == text


def test_without_the_template_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CohortError, match=r"pip install 'dmx-transfer\[demo\]'"):
        make_demo_cohort(tmp_path, "A", cases=1, spacing_mm=SPACING, seed=0)


@needs_template
def test_the_command_makes_a_cohort(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["make", "A", "-o", str(tmp_path), "--cases", "2", "--spacing", str(SPACING), "--seed", "5"]
    )
    assert result.exit_code == 0
    assert len(read_manifest(tmp_path / "manifest.csv").cases) == 2
    assert CliRunner().invoke(app, ["make", "C", "-o", str(tmp_path)]).exit_code == 2
