from pathlib import Path

import numpy as np
import pytest
import torch

from dmx.cohort.case import Case, Cohort
from dmx.cohort.check import check_cohort
from dmx.cohort.digest import cohort_digest
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.regions import Regions, checked_regions
from dmx.cohort.show import show_cohort
from dmx.cohort.view import load_view
from dmx.errors import CohortError

TUMOR = Regions({"whole": (1, 2, 3, 4), "core": (1, 3, 4), "enhancing": (4,)}, (2, 1, 4))


def test_later_regions_replace_earlier_ones_in_a_label_map() -> None:
    inside = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]], dtype=bool)[:, None, None]
    assert TUMOR.paint(inside, np.zeros((1, 1, 4), np.uint8)).ravel().tolist() == [2, 1, 4, 0]
    painted = TUMOR.paint(torch.from_numpy(inside), torch.zeros(1, 1, 4, dtype=torch.uint8))
    assert painted.flatten().tolist() == [2, 1, 4, 0]


def test_what_a_label_map_cannot_tell_apart_is_known() -> None:
    assert TUMOR.merged() == []
    crossed = Regions({"a": (1, 3), "b": (2, 3)}, (1, 2))
    assert crossed.merged() == ["3 (a and b) is written as 2"]


def test_regions_follow_labels_that_are_merged() -> None:
    mapped = TUMOR.mapped({4: 3})
    assert mapped.members == {"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)}
    assert (mapped.order, mapped.highest) == ((2, 1, 3), 3)
    assert Regions.from_dict(mapped.as_dict()) == mapped


@pytest.mark.parametrize(
    ("members", "order", "problem"),
    [
        ({"a": ()}, (1,), "region 'a' must be one or more labels from 1"),
        ({"a": (0, 1)}, (1,), "region 'a' must be one or more labels from 1"),
        ({"a": (1, 2)}, (), "one label for each of the 1 regions"),
        ({"a": (1, 2)}, (3,), r"writes label 3 for region 'a', which consists of \[1, 2\]"),
    ],
)
def test_regions_that_cannot_be_learned_are_refused(members, order, problem) -> None:
    with pytest.raises(CohortError, match=problem):
        checked_regions(members, order, "here")


def manifest(folder: Path, *notes: str) -> Path:
    path = folder / "m.csv"
    path.write_text("".join(f"# {note}\n" for note in notes) + "case,subject,channel_t1\na,a,a.nii.gz\n")
    return path


def test_a_manifest_names_regions_and_the_ignored_label(tmp_path: Path) -> None:
    notes = ("regions: whole tumor = 1 2 3; core = 2, 3", "regions_class_order: 1, 2", "ignore: 9")
    cohort = read_manifest(manifest(tmp_path, *notes))
    assert cohort.regions == Regions({"whole tumor": (1, 2, 3), "core": (2, 3)}, (1, 2))
    assert cohort.ignore == 9
    write_manifest(cohort, tmp_path / "again.csv")
    again = read_manifest(tmp_path / "again.csv")
    assert (again.regions, again.ignore) == (cohort.regions, 9)


@pytest.mark.parametrize(
    ("notes", "problem"),
    [
        (("regions: a 1 2", "regions_class_order: 1"), "'name = labels; name = labels'"),
        (("regions: a = 1; a = 2", "regions_class_order: 1, 2"), "has the region 'a' twice"),
        (("regions: a = x", "regions_class_order: 1"), "'# regions:' must name whole numbers"),
        (("regions: a = 1 2",), "one label for each of the 1 regions"),
        (("ignore: 1, 2",), "'# ignore:' must name one whole number"),
    ],
)
def test_a_note_that_means_nothing_is_refused(tmp_path: Path, notes, problem) -> None:
    with pytest.raises(CohortError, match=problem):
        read_manifest(manifest(tmp_path, *notes))


def labeled(write_scan, values: list[int], **fields) -> Cohort:
    array = np.resize(np.array(values, np.uint8), (3, 4, 5))
    scan = write_scan("t1.nii.gz", np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    case = Case("a", "a", {"t1": scan}, label_map=write_scan("y.nii.gz", array), split="training")
    return Cohort("c", fields.pop("classes", ()), ("t1",), (case,), **fields)


def test_the_check_knows_ignored_voxels_and_labels_of_regions(write_scan, tmp_path: Path) -> None:
    classes = ("background", "a")
    options = {"cache_dir": tmp_path / "cache"}
    assert not check_cohort(labeled(write_scan, [0, 1, 9], classes=classes, ignore=9), **options).errors
    assert check_cohort(labeled(write_scan, [0, 1, 9], classes=classes), **options).errors
    assert not check_cohort(labeled(write_scan, [0, 1, 4], regions=TUMOR), **options).errors
    (found,) = check_cohort(labeled(write_scan, [0, 1, 5], regions=TUMOR), **options).errors
    assert "must hold the labels 0 to 4" in found.message
    (found,) = check_cohort(labeled(write_scan, [9], classes=classes, ignore=9), **options).errors
    assert "holds only 9" in found.message
    # An experiment that makes the label a class has annotated voxels.
    found = check_cohort(labeled(write_scan, [9], classes=classes, ignore=9), labels={9: 0}, **options)
    assert not found.errors
    assert "background only" in found.warnings[0].message


def test_regions_are_part_of_what_a_cohort_is(write_scan) -> None:
    plain = labeled(write_scan, [0, 1, 4])
    digests = {
        cohort_digest(cohort)
        for cohort in (plain, labeled(write_scan, [0, 1, 4], regions=TUMOR), labeled(write_scan, [0, 1, 4], ignore=4))
    }
    assert len(digests) == 3


def test_pictures_leave_out_what_nobody_annotated(write_scan, tmp_path: Path) -> None:
    cohort = labeled(write_scan, [0, 1, 9], classes=("background", "a"), ignore=9)
    view = load_view(cohort.cases[0], cohort=cohort)
    assert set(np.unique(view.labels)) == {-1, 0, 1}
    (shown,) = show_cohort(cohort, tmp_path / "pictures")
    assert list(shown.volumes_ml) == ["a"]


def test_a_region_that_no_label_map_holds_is_said(write_scan, tmp_path: Path) -> None:
    found = check_cohort(labeled(write_scan, [0, 2], regions=TUMOR), cache_dir=tmp_path / "cache").warnings
    messages = [finding.message for finding in found]
    assert messages == [
        "No label map for training holds class 'core' (1, 3, 4), so it cannot be learned.",
        "No label map for training holds class 'enhancing' (4), so it cannot be learned.",
    ]
