"""Voxels that nobody annotated, and regions that overlap, from the label map to the lists of centers."""

from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.regions import IGNORED, Regions
from dmx.cohort.volume import read_volume
from dmx.config.sections import CohortSection, PreprocessSection
from dmx.errors import CohortError
from dmx.preprocess.cache import CaseCache
from dmx.preprocess.contract import Contract, resolve_contract
from dmx.preprocess.entry import find_centers
from dmx.preprocess.pipeline import class_indices, preprocess_case

SHAPE = (9, 8, 7)
CLASSES = ("background", "a", "b")


def sparse_labels() -> np.ndarray:
    labels = np.full(SHAPE, 255.0)
    labels[:, :, 2:5:2] = 0
    labels[3:6, 3:6, 2] = 1
    labels[4, 4, 4] = 2
    return labels


def contract(**fields) -> Contract:
    return Contract(channels=("t1",), classes=CLASSES, ignore=255, **fields)


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0), (0.7, 1.5, 3.0)])
def test_ignored_voxels_keep_a_value_of_their_own(make_case, spacing) -> None:
    prepared = preprocess_case(make_case(label_map=sparse_labels(), roi=None), contract(spacing=spacing))
    assert prepared.labels.dtype == np.int8
    assert set(np.unique(prepared.labels)) <= {IGNORED, 0, 1, 2}
    assert (prepared.labels == IGNORED).any()
    assert (prepared.labels == 1).any()
    assert not prepared.weight_maps["hard"][prepared.labels == IGNORED].any()


def test_ignored_voxels_are_no_centers(make_case, tmp_path: Path) -> None:
    case = make_case(label_map=sparse_labels())
    prepared = preprocess_case(case, contract())
    flat = prepared.labels.ravel()
    centers = find_centers(prepared, contract().scored.values())
    assert set(centers) == {"roi", "image", "foreground", "background", "class_0", "class_1", "class_2"}
    assert not any((flat[indices] == IGNORED).any() for indices in centers.values())
    assert len(centers["image"]) == (flat != IGNORED).sum()
    assert len(centers["class_1"]) + len(centers["class_2"]) == len(centers["foreground"]) > 0
    assert len(centers["roi"]) == len(centers["foreground"]) + len(centers["background"])
    (cached,) = CaseCache(tmp_path / "cache").prepare([case], contract())
    np.testing.assert_array_equal(cached.labels, prepared.labels)
    np.testing.assert_array_equal(cached.centers["image"], centers["image"])


def test_a_case_that_is_annotated_everywhere_lists_no_image(make_case) -> None:
    prepared = preprocess_case(make_case(), contract())
    assert "image" not in find_centers(prepared, contract().scored.values())


def test_the_label_is_needed(make_case) -> None:
    case = make_case(label_map=sparse_labels())
    with pytest.raises(CohortError, match=r"has the label 255, allowed are 0 to 2.*cohort.ignore"):
        preprocess_case(case, Contract(channels=("t1",), classes=CLASSES))
    labels = read_volume(case.label_map).array
    found = class_indices(labels, contract(), case="one", path=case.label_map)
    np.testing.assert_array_equal(found == IGNORED, labels == 255)


def test_each_region_is_a_category_of_centers(make_case) -> None:
    regions = Regions({"whole": (1, 2), "core": (2,)}, (1, 2))
    ours = Contract(channels=("t1",), classes=CLASSES, regions=regions)
    assert ours.outputs == ("whole", "core")
    assert ours.scored == {"whole": (1, 2), "core": (2,)}
    prepared = preprocess_case(make_case(), ours)
    centers = find_centers(prepared, ours.scored.values())
    inside = prepared.roi.ravel() > 0
    np.testing.assert_array_equal(centers["class_1"], np.flatnonzero(inside & (prepared.labels.ravel() > 0)))
    np.testing.assert_array_equal(centers["class_2"], np.flatnonzero(inside & (prepared.labels.ravel() == 2)))
    np.testing.assert_array_equal(centers["class_0"], np.flatnonzero(inside & (prepared.labels.ravel() == 0)))


def test_labels_of_the_file_make_up_regions() -> None:
    section = CohortSection(
        manifest="", labels={4: 3}, regions={"whole": (1, 2, 4), "enhancing": 4}, regions_class_order=(2, 4)
    )
    found = resolve_contract(section, PreprocessSection(), cases=[], channels=("t1",), classes=())
    assert found.regions == Regions({"whole": (1, 2, 3), "enhancing": (3,)}, (2, 3))
    assert found.classes == ("background", "label_1", "label_2", "label_3")


def test_contracts_remember_both_and_old_ones_have_neither() -> None:
    regions = Regions({"whole": (1, 2)}, (1,))
    ours = Contract(channels=("t1",), classes=CLASSES, regions=regions, ignore=255)
    assert Contract.from_dict(ours.as_dict()) == ours
    plain = Contract(channels=("t1",), classes=CLASSES)
    assert not {"regions", "ignore"} & set(plain.as_dict())
    assert Contract.from_dict(plain.as_dict()) == plain
    assert len({ours.key(), plain.key(), contract().key()}) == 3
