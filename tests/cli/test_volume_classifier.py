"""The experiment that classifies volumes: its division of a cohort, its table, and all of its commands once, tiny."""

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from dmx.cli.main import app
from dmx.cohort.case import Case, Cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import read_volume, write_volume
from dmx.errors import CohortError
from dmx.tracking.scores import Evaluation
from dmx.tracking.store import RunInfo

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "volume_classifier"
CASES = 14
TINY = ["--set", "training.epochs=1", "--set", "training.steps_per_epoch=2"]


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def whole(project: Path) -> Path:
    """A copy of the experiment with a cohort of balls that grow with the number of the case."""
    folder = project / "experiment"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", "scans", "*.csv"))
    cases = []
    for index in range(CASES):
        shape = (12 + index % 3, 14, 11 + index % 2)
        affine = np.diag([-1.5, 1.0, 2.0, 1.0])
        affine[:3, 3] = (20.0, -3.0, index)
        grid = NiftiGrid.from_affine(shape, affine)
        places = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij"))
        labels = (np.linalg.norm(places, axis=0) < 2 + index / 5).astype(np.uint8)
        labels[:, : shape[1] // 2] *= 2
        scan = 50 + 100 * (labels > 0) + np.random.default_rng(index).normal(0, 10, shape)
        files = [project / f"files/{index:02d}_{what}.nii.gz" for what in ("scan", "labels")]
        write_volume(files[0], scan, grid, dtype=np.float32)
        write_volume(files[1], labels, grid, dtype=np.uint8)
        name = f"case_{index:02d}"
        cases.append(Case(name, name, {"MRI": files[0]}, label_map=files[1]))
    cohort = Cohort("Hippocampus", ("background", "Anterior", "Posterior"), ("MRI",), tuple(cases))
    write_manifest(cohort, folder / "cohort.csv")
    return folder / "cohort.csv"


def divided(whole: Path) -> dict[str, Cohort]:
    script("make_cohorts").divide(whole, segmentation=4, training=6, few=4)
    return {name: read_manifest(whole.with_name(f"{name}.csv")) for name in ("segmented", "all", "few_0", "few_2")}


def names(cases: tuple[Case, ...]) -> set[str]:
    return {case.name for case in cases}


def test_no_case_is_in_two_parts_and_the_training_alone_says_what_is_large(whole: Path) -> None:
    parts = divided(whole)
    held_out = names(parts["all"].in_split("evaluation"))
    source, pool = names(parts["segmented"].in_split("training")), names(parts["all"].in_split("training"))
    assert [len(source), len(pool), len(held_out)] == [4, 6, 4]
    assert len(source | pool | held_out) == CASES
    for few in (parts["few_0"], parts["few_2"]):
        assert names(few.in_split("evaluation")) == held_out
        assert names(few.in_split("training")) < pool
        assert sorted(case.label or 0 for case in few.in_split("training")) == [0, 0, 1, 1]
    assert names(parts["segmented"].in_split("evaluation")) == held_out
    # The balls grow with the number of the case: the median of the six training cases lies behind the third.
    labels = {case.name: case.label for case in parts["all"].cases}
    third, fourth = sorted(pool)[2:4]
    assert all(labels[name] == 0 for name in labels if name <= third)
    assert all(labels[name] == 1 for name in labels if name >= fourth)
    assert all(case.label_map is None for case in parts["all"].cases)
    assert parts["all"].label_classes == ("small", "large")


def test_scans_get_one_size_and_stay_where_they_are(whole: Path) -> None:
    parts = divided(whole)
    before = {case.name: case for case in read_manifest(whole).cases}
    for case in parts["segmented"].cases:
        old, new = before[case.name], case
        assert old.label_map is not None
        assert new.label_map is not None
        assert new.roi is not None
        for first, second in ((old.channels["MRI"], new.channels["MRI"]), (old.label_map, new.label_map)):
            a, b = read_volume(first), read_volume(second)
            assert b.array.shape == (14, 14, 12)
            inside = read_volume(new.roi).array > 0
            assert np.array_equal(b.array[inside].reshape(a.array.shape), a.array)
            assert not b.array[~inside].any()
            corner = [axis.min() for axis in np.nonzero(inside)]
            assert np.allclose(b.affine @ [*corner, 1], a.affine @ [0, 0, 0, 1])


def test_numbers_that_cannot_be_are_refused(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = script("make_cohorts")
    with pytest.raises(
        CohortError, match="14 cases cannot be divided into 10 for the segmentation, 4 for the training"
    ):
        make.divide(whole, segmentation=10, training=4, few=2)
    cohort = read_manifest(whole)
    write_manifest(replace(cohort, cases=(replace(cohort.cases[0], label_map=None), *cohort.cases[1:])), whole)
    monkeypatch.setattr(sys, "argv", ["make_cohorts.py", str(whole), "--segmentation", "4", "--training", "6"])
    with pytest.raises(SystemExit):
        make.main()
    assert "each small choice 20 of these" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--few", "4"])
    with pytest.raises(SystemExit):
        make.main()
    assert "Case 'case_00' has no label map" in capsys.readouterr().err


def evaluation(run: RunInfo, scores: list[float]) -> Evaluation:
    """Twenty cases, every second one large; what is above one half is called large."""
    rows = [
        {
            "case": f"c{n:02d}",
            "subject": f"s{n:02d}",
            "truth": "large" if n % 2 else "small",
            "accuracy": str(float((score > 0.5) == bool(n % 2))),
            "probability/large": str(score),
        }
        for n, score in enumerate(scores)
    ]
    return Evaluation(run=run, evaluation=run, rows=rows)


def test_rows_compare_the_same_cases() -> None:
    summary = script("summarize")
    run = RunInfo(
        id="r", name="r", experiment="e", experiment_id="1", status="FINISHED", started=0, ended=1, artifact_uri=""
    )
    perfect = [evaluation(run, [0.1 + 0.8 * (n % 2) for n in range(20)]) for _ in range(2)]
    reversed_ = [evaluation(run, [0.9 - 0.8 * (n % 2) for n in range(20)]) for _ in range(2)]
    line = summary.row("few", "transfer", perfect, reversed_)
    assert "| few | `transfer` | 1.000 (1.000, 1.000) | 1.000 (1.000, 1.000) | +1.000 [+1.000, +1.000] |" in line
    assert line.endswith("| +1.000 [+1.000, +1.000] |")
    assert summary.row("all", "scratch", reversed_, reversed_) == (
        "| all | `scratch` | 0.000 (0.000, 0.000) | 0.000 (0.000, 0.000) | | |"
    )
    draw = np.random.default_rng(0)
    large = np.arange(40) % 2 == 1
    noisy = draw.normal(size=(3, 40)) + large
    gain, low, high = summary.auc_gain(large, noisy, noisy, resamples=50)
    assert gain == low == high == 0
    gain, low, high = summary.auc_gain(large, draw.normal(size=(3, 40)), noisy, resamples=200)
    assert low < gain < high
    assert gain > 0


@pytest.mark.slow
def test_every_command_of_the_experiment_runs(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    divided(whole)
    shell = ["sh", str(whole.with_name("run.sh"))]
    said = subprocess.run(
        shell, env={"DMX": "echo", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    commands = [shlex.split(line) for line in said.stdout.splitlines()]
    assert len(commands) == 3 + 3 * 2 * 6
    for words in [words for words in commands if not any(end in " ".join(words) for end in ("-1", "-2", "-all"))]:
        result = CliRunner().invoke(app, [*words, *(TINY if words[0] == "train" else [])])
        assert result.exit_code == 0, (words, result.output)
    summary = script("summarize")
    monkeypatch.setattr(summary, "SEEDS", (0,))
    monkeypatch.setattr(summary, "LABELS", ("few",))
    monkeypatch.setattr(sys, "argv", ["summarize.py", str(whole)])
    capsys.readouterr()
    summary.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:5]] == ["`scratch`", "`transfer`", "`frozen`"]
    assert lines[6].startswith("volume of the predicted label map: AUC ")
    assert lines[7].startswith("number of voxels of the scan: AUC ")
    monkeypatch.setattr(summary, "SEEDS", (0, 1))
    with pytest.raises(SystemExit, match="No run 'volume-classifier/scratch-few-1'"):
        summary.main()
