import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dmx.cohort import facts as facts_module
from dmx.cohort.case import Case, Cohort
from dmx.cohort.check import CheckReport, check_cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.importers.dataset_json import import_dataset_json
from dmx.cohort.volume import read_grid, write_volume

Make = Callable[..., Cohort]
Write = Callable[..., Path]

SHAPE = (6, 5, 4)


def labels(*values: float, dtype: Any = np.uint8) -> np.ndarray:
    array = np.zeros(SHAPE, dtype)
    array.ravel()[: len(values)] = values
    return array


def scan(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(100 + seed).normal(size=SHAPE).astype(np.float32)


def with_files(cohort: Cohort, **columns: Path | None) -> Cohort:
    """Give the second case other files."""
    case = cohort.cases[1]
    channels = {name: columns.pop(name, path) for name, path in case.channels.items()}
    changed = replace(case, channels=channels, **columns)
    return replace(cohort, cases=(cohort.cases[0], changed, *cohort.cases[2:]))


def only(report: CheckReport) -> tuple[str, str, str, str]:
    assert len(report.findings) == 1, report.findings
    finding = report.findings[0]
    return finding.severity, finding.case, finding.column, finding.message


def test_a_sound_cohort_has_no_findings(make_cohort: Make) -> None:
    report = check_cohort(make_cohort())
    assert report.findings == ()
    assert (report.num_cases, report.num_files) == (3, 9)


BAD_LABELS = [
    (labels(1, 2, 2), "must hold the labels 0 to 1, got 2 (2 voxels)."),
    (labels(1, 0.5, dtype=np.float32), "must hold whole numbers, got values such as 0.5 (1 voxel)."),
    (labels(1, -1, dtype=np.int16), "must hold the labels 0 to 1, got -1 (1 voxel)."),
    (labels(1, np.nan, dtype=np.float32), "has 1 voxels that are not a number."),
    (labels(*range(2, 12)), "1 voxel), 7 (1 voxel), 4 more values."),
]


@pytest.mark.parametrize(("array", "problem"), BAD_LABELS)
def test_labels_are_the_declared_integers(
    make_cohort: Make, write_scan: Write, array: np.ndarray, problem: str
) -> None:
    cohort = with_files(make_cohort(), label_map=write_scan("bad.nii.gz", array))
    severity, case, column, message = only(check_cohort(cohort))
    assert (severity, case, column) == ("error", "case1", "label_map")
    assert message.endswith(problem)


def test_float_stored_whole_labels_mapped_labels_and_unnamed_classes_are_accepted(
    make_cohort: Make, write_scan: Write
) -> None:
    cohort = make_cohort()
    almost = labels(0.9999999, 1.0000001, dtype=np.float64)
    assert not check_cohort(with_files(cohort, label_map=write_scan("a.nii", almost))).findings
    four = with_files(cohort, label_map=write_scan("b.nii", labels(1, 4)))
    assert check_cohort(four).errors
    assert not check_cohort(four, labels={4: 1}).findings
    assert not check_cohort(four, num_classes=5).findings
    assert not check_cohort(replace(four, classes=())).findings
    assert only(check_cohort(with_files(cohort, label_map=write_scan("c.nii", labels())))) == (
        "warning",
        "case1",
        "label_map",
        "holds background only.",
    )


ROIS = [
    (labels(), "is empty: no voxel is 1."),
    (labels(1, 255), "must hold only 0 and 1, got 255 (1 voxel)."),
    (labels(1, 0.5, dtype=np.float32), "must hold only 0 and 1, got 0.5 (1 voxel)."),
]


@pytest.mark.parametrize(("array", "problem"), ROIS)
def test_a_roi_is_binary_and_not_empty(make_cohort: Make, write_scan: Write, array: np.ndarray, problem: str) -> None:
    cohort = with_files(make_cohort(), roi=write_scan("roi.nii", array))
    assert only(check_cohort(cohort)) == ("error", "case1", "roi", problem)


def test_values_of_channels_and_weights(make_cohort: Make, write_scan: Write) -> None:
    cohort = make_cohort()
    wrong = scan()
    wrong[0, 0, :3] = (np.nan, np.inf, -np.inf)
    found = check_cohort(with_files(cohort, t1=write_scan("a.nii", wrong))).errors
    assert [finding.message for finding in found] == [
        "has 1 voxels that are not a number.",
        "has 2 voxels that are infinite.",
    ]
    constant = only(check_cohort(with_files(cohort, t1=write_scan("b.nii", np.full(SHAPE, 7, np.int16)))))
    assert constant[3].startswith("is 7 in every voxel")
    assert "constant" not in str(check_cohort(with_files(cohort, t1=write_scan("c.nii", scan()))).findings)
    for array, problem in ((-(scan() ** 2), "no weight below 0"), (np.zeros(SHAPE), "a weight above 0")):
        weights = {"core": write_scan("w.nii", array.astype(np.float32))}
        assert problem in only(check_cohort(with_files(cohort, weight_maps=weights)))[3]


def shifted(x: float) -> np.ndarray:
    affine = np.diag([2.0, 1.5, 1.0, 1.0])
    affine[0, 3] = x
    return affine


GRIDS = [
    (np.diag([-2.0, 1.5, 1.0, 1.0]), "error", "is oriented LAS, channel_t1 is RAS."),
    (np.diag([2.0, 1.5, 1.1, 1.0]), "error", "has a voxel size of 2 x 1.5 x 1.1 mm, channel_t1 has 2 x 1.5 x 1 mm."),
    (shifted(1.0), "error", "lies up to 1 mm beside channel_t1: their affines differ."),
    (shifted(0.1), "warning", "lies up to 0.1 mm beside channel_t1: their affines differ."),
]


@pytest.mark.parametrize(("affine", "severity", "problem"), GRIDS)
def test_grids_agree_within_a_case(
    make_cohort: Make, write_scan: Write, affine: np.ndarray, severity: str, problem: str
) -> None:
    cohort = with_files(make_cohort(), label_map=write_scan("l.nii", labels(1, 1, 1), affine))
    assert only(check_cohort(cohort)) == (severity, "case1", "label_map", problem)


def test_shapes_agree_within_a_case_and_affines_up_to_rounding(make_cohort: Make, write_scan: Write) -> None:
    cohort = with_files(make_cohort(), roi=write_scan("r.nii", np.ones((6, 5, 3), np.uint8)))
    assert only(check_cohort(cohort))[3] == "has shape 6 x 5 x 3, channel_t1 has 6 x 5 x 4."
    rounding = with_files(make_cohort(), roi=write_scan("s.nii", np.ones(SHAPE, np.uint8), shifted(1e-4)))
    assert not check_cohort(rounding).findings


@pytest.mark.parametrize(
    ("size", "severity"), [(5000.0, "error"), (1e-5, "error"), (30.0, "warning"), (0.01, "warning"), (3.0, None)]
)
def test_voxel_sizes_are_those_of_scans(
    make_cohort: Make, write_scan: Write, size: float, severity: str | None
) -> None:
    affine = np.diag([size, size, size, 1.0])
    cohort = with_files(make_cohort(), t1=write_scan("t.nii", scan(), affine), label_map=None, roi=None, split="")
    assert [finding.severity for finding in check_cohort(cohort).findings] == ([severity] if severity else [])


def test_headers_that_contradict_themselves_are_told(make_cohort: Make, write_scan: Write) -> None:
    alone: dict[str, Any] = {"label_map": None, "roi": None, "split": ""}
    meters = with_files(make_cohort(), t1=write_scan("m.nii", scan(), xyzt_units=1), **alone)
    message = "is in meters by its header: 2 x 1.5 x 1 is taken as mm, and would be 2000 x 1500 x 1000 mm."
    assert only(check_cohort(meters))[0::3] == ("warning", message)
    path = write_scan("p.nii", scan())
    content = bytearray(path.read_bytes())
    content[84:88] = np.float32(-3).tobytes()
    path.write_bytes(content)
    severity, *_, message = only(check_cohort(with_files(make_cohort(), t1=path, **alone)))
    assert severity == "warning"
    assert message.startswith("says 2 x -3 x 1 in its header's pixdim and 2 x 1.5 x 1 in its affine")


def test_bad_files_are_findings_and_all_come_at_once(make_cohort: Make, write_scan: Write, tmp_path: Path) -> None:
    cut = write_scan("cut.nii.gz", scan())
    cut.write_bytes(cut.read_bytes()[:-30])
    cohort = with_files(make_cohort(), t1=cut, label_map=tmp_path / "absent.nii", roi=write_scan("r.nii", labels()))
    report = check_cohort(cohort)
    assert [finding.column for finding in report.errors] == ["channel_t1", "label_map", "roi"]
    assert "cut.nii.gz' cannot be read" in report.errors[0].message
    assert "absent.nii' cannot be read: there is no such file" in report.errors[1].message
    assert json.loads(json.dumps(report.as_dict()))["num_errors"] == 3
    assert report.as_dict()["findings"][1]["case"] == "case1"


def test_a_missing_channel_needs_a_fill_and_a_missing_label_map_a_reason(make_cohort: Make) -> None:
    cohort = make_cohort()
    case = replace(cohort.cases[0], channels={**cohort.cases[0].channels, "t2": None})
    cohort = replace(cohort, channels=("t1", "t2"), cases=(case,))
    severity, _, column, message = only(check_cohort(cohort))
    assert (severity, column) == ("error", "channel_t2")
    assert "cohort.fill" in message
    assert not check_cohort(cohort, fill=("t2",)).findings
    assert not check_cohort(cohort, channels=("t1",)).findings
    unknown = check_cohort(cohort, channels=("t1", "t1c"), fill=("t1c",))
    assert only(unknown)[2:] == ("channel_t1c", "is not in the cohort, which has t1, t2. Did you mean 't1'?")
    for split, expected in (("training", "error"), ("validation", "error"), ("evaluation", "warning"), ("", None)):
        one = replace(cohort, cases=(replace(case, label_map=None, split=split),))
        found = check_cohort(one, channels=("t1",)).findings
        assert [finding.severity for finding in found] == ([expected] if expected else [])


def test_duplicates_and_subjects_in_two_splits_are_found(make_cohort: Make, tmp_path: Path) -> None:
    cohort = make_cohort()
    first, second, third = cohort.cases
    (tmp_path / "copy.nii.gz").write_bytes(first.channels["t1"].read_bytes())
    copied = replace(second, channels={"t1": tmp_path / "copy.nii.gz"})
    same = check_cohort(replace(cohort, cases=(first, copied, third)))
    message = "is the same file as channel_t1 of case 'case0'"
    assert only(same) == ("warning", "case1", "channel_t1", f"{message}.")
    leak = check_cohort(replace(cohort, cases=(first, replace(copied, split="evaluation"), third)))
    assert only(leak) == ("error", "case1", "channel_t1", f"{message}, in another split.")
    twice = replace(first, channels={"t1": first.channels["t1"], "t2": first.channels["t1"]})
    within = check_cohort(replace(cohort, channels=("t1", "t2"), cases=(twice,)))
    assert only(within)[2:] == ("channel_t2", "is the same file as channel_t1 of this case.")
    moved = replace(second, subject="subject0", split="validation")
    both = check_cohort(replace(cohort, cases=(first, moved, third)))
    assert only(both)[0] == "error"
    assert "subject 'subject0' is in several splits: training (case0), validation (case1)" in only(both)[3]


def test_shared_rois_and_empty_label_maps_are_no_duplicates(make_cohort: Make, write_scan: Write) -> None:
    cohort = make_cohort(2)
    roi = write_scan("roi.nii", labels(1, 1))
    empty = write_scan("empty.nii", labels())
    cases = tuple(replace(case, roi=roi, label_map=empty) for case in cohort.cases)
    messages = {finding.message for finding in check_cohort(replace(cohort, cases=cases)).findings}
    assert messages == {
        "holds background only.",
        "No label map for training holds class 'lesion' (1), so it cannot be learned.",
    }


def test_a_second_check_reads_no_file_and_a_changed_file_is_read_again(
    make_cohort: Make, write_scan: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort()
    for case in cohort.cases:
        for path in case.files().values():
            os.utime(path, (1e9, 1e9))
    read: list[Path] = []
    lock = threading.Lock()
    original = facts_module.read_volume

    def counted(path: Path) -> Any:
        with lock:
            read.append(path)
        return original(path)

    monkeypatch.setattr(facts_module, "read_volume", counted)
    calls: list[tuple[int, int]] = []
    check_cohort(cohort, cache_dir=tmp_path / "facts", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 9) for k in range(1, 10)]
    assert len(read) >= 7
    read.clear()
    facts_module._store.cache_clear()
    assert not check_cohort(cohort, cache_dir=tmp_path / "facts").findings
    assert read == []
    write_scan("scans/1_labels.nii.gz", labels(9))
    assert "got 9" in only(check_cohort(cohort, cache_dir=tmp_path / "facts"))[3]
    assert [path.name for path in read] == ["1_labels.nii.gz"]


def test_the_hippocampus_cohort_is_sound(shared: Path, tmp_path: Path) -> None:
    cohort = import_dataset_json(shared / "data" / "hippocampus", split_dir=tmp_path).cohort
    cohort = replace(cohort, cases=cohort.cases[:12])
    assert check_cohort(cohort).findings == ()
    assert len(check_cohort(cohort, num_classes=2).errors) == 12


def test_a_case_without_any_file_is_one_finding() -> None:
    cohort = Cohort("x", (), ("t1",), (Case("a", "a", {"t1": None}),))
    assert only(check_cohort(cohort))[2] == "channel_t1"


ALONE: dict[str, Any] = {"label_map": None, "roi": None, "split": ""}
RAS = np.diag([2.0, 1.5, 1.0, 1.0])
LAS = np.diag([-2.0, 1.5, 1.0, 1.0])


def write_forms(path: Path, array: np.ndarray, *, sform: np.ndarray | None, qform: np.ndarray | None) -> Path:
    image = nib.Nifti1Image(array, None)
    image.set_sform(sform, code=0 if sform is None else 1)
    image.set_qform(RAS if qform is None else qform, code=0 if qform is None else 1)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


def sheared() -> np.ndarray:
    affine = RAS.copy()
    affine[:2, 1] = 0.3, np.sqrt(1.5**2 - 0.3**2)
    return affine


def moved(by: float) -> np.ndarray:
    affine = RAS.copy()
    affine[0, 3] = by
    return affine


PLACEMENTS = [
    (RAS, LAS, "The sform counts: RAS; by the qform it would be LAS, with left and right swapped."),
    (RAS, np.diag([-2.0, -1.5, 1.0, 1.0]), "it would be LPS, with left and right and front and back swapped."),
    (RAS, moved(7.0), "The sform counts; by the qform its voxels would lie up to 7 mm elsewhere."),
    (
        None,
        None,
        "has neither sform nor qform (both codes are 0), so nothing says which side is left: it is taken as",
    ),
    (sheared(), None, "has axes that are 11.5 degrees off right angles (shear)"),
]


@pytest.mark.parametrize(("sform", "qform", "message"), PLACEMENTS)
def test_where_voxels_lie_is_said_where_it_is_doubtful(
    make_cohort: Make, tmp_path: Path, sform: np.ndarray | None, qform: np.ndarray | None, message: str
) -> None:
    path = write_forms(tmp_path / "f.nii.gz", scan(), sform=sform, qform=qform)
    severity, case, column, found = only(check_cohort(with_files(make_cohort(), t1=path, **ALONE)))
    assert (severity, case, column) == ("warning", "case1", "channel_t1")
    assert message in found


@pytest.mark.parametrize(("sform", "qform"), [(RAS, RAS), (RAS, None), (None, LAS), (RAS, moved(1e-5))])
def test_forms_that_agree_are_no_finding(
    make_cohort: Make, tmp_path: Path, sform: np.ndarray | None, qform: np.ndarray | None
) -> None:
    path = write_forms(tmp_path / "f.nii.gz", scan(), sform=sform, qform=qform)
    assert check_cohort(with_files(make_cohort(), t1=path, **ALONE)).findings == ()


def test_a_channel_and_a_label_map_that_agree_by_their_qforms_are_told_so(make_cohort: Make, tmp_path: Path) -> None:
    t1 = write_forms(tmp_path / "t1.nii.gz", scan(), sform=RAS, qform=LAS)
    label_map = write_forms(tmp_path / "l.nii.gz", labels(1), sform=None, qform=LAS)
    errors = check_cohort(with_files(make_cohort(), t1=t1, label_map=label_map, roi=None)).errors
    assert [one.column for one in errors] == ["label_map"]
    assert errors[0].message.startswith(
        "is oriented LAS, channel_t1 is RAS. By the other's qform they agree. Copy the right header"
    )


def test_the_qform_is_that_of_the_reference_reader(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        affine = np.eye(4)
        affine[:3, :3] = turn * np.array([0.8, 1.1, 2.5])
        affine[:3, 3] = rng.normal(size=3) * 50
        path = write_forms(tmp_path / f"{number}.nii", scan(), sform=RAS, qform=affine)
        found = read_grid(path).qform
        assert found is not None
        np.testing.assert_allclose(found, nib.load(path).get_qform(), atol=1e-4)
        np.testing.assert_allclose(found, affine, atol=1e-3)


def test_a_scan_that_was_saved_anew_for_another_split_is_an_error_and_a_cropped_one_a_warning(
    make_cohort: Make, tmp_path: Path
) -> None:
    array = np.random.default_rng(5).normal(0, 100, (36, 40, 44)).round().astype(np.float32)
    files = []
    for index, changed in enumerate((array, array[::-1] * 2, array[:, 4:-3])):
        files.append(tmp_path / f"anew_{index}.nii.gz")
        write_volume(files[-1], changed, NiftiGrid.from_affine(changed.shape, np.eye(4)), dtype=np.float32)
    splits = ("training", "validation", "evaluation")
    cohort = make_cohort()
    cases = tuple(
        Case(name=f"c{index}", subject=f"s{index}", channels={"t1": file}, split=split)
        for index, (file, split) in enumerate(zip(files, splits, strict=True))
    )
    found = {
        (one.severity, one.case, one.message)
        for one in check_cohort(replace(cohort, channels=("t1",), cases=cases)).findings
        if one.column == "channel_t1"
    }
    assert found == {
        ("error", "c1", "holds the same voxels as channel_t1 of case 'c0', in another split."),
        (
            "warning",
            "c2",
            "is probably the same scan as that of case 'c0', in another split: flipped, cropped or resampled. Compare "
            "the two.",
        ),
    }
