from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.case import Cohort
from dmx.cohort.show import case_figure, class_color, show_cohort
from dmx.cohort.view import load_view
from dmx.errors import CohortError

Make = Callable[..., Cohort]
Write = Callable[..., Path]


def test_each_case_gets_a_picture_and_its_volumes(make_cohort: Make, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    cohort = make_cohort(2)
    shown = show_cohort(cohort, tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    assert [one.name for one in shown] == ["case0", "case1"]
    assert all(one.picture.read_bytes().startswith(b"\x89PNG") for one in shown)
    # 2 and 3 voxels of 2.0 x 1.5 x 1.0 mm.
    np.testing.assert_allclose([one.volumes_ml["lesion"] for one in shown], [0.006, 0.009])
    assert [one.name for one in show_cohort(cohort, tmp_path / "out", names=["case1", "case1"])] == ["case1"]
    with pytest.raises(CohortError, match=r"has no case 'case9'\. Did you mean"):
        show_cohort(cohort, tmp_path, names=["case9"])
    (tmp_path / "file").write_text("")
    with pytest.raises(CohortError, match="cannot be written"):
        show_cohort(cohort, tmp_path / "file", names=["case0"])


def test_the_page_has_a_column_per_channel_and_one_for_the_labels(make_cohort: Make) -> None:
    case = make_cohort(1).cases[0]
    case = replace(case, name="cost $5 & $6", channels={**case.channels, "t2": None})
    figure = case_figure(case, ("background", "lesion"))
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["t1", "t2", "label map"]
    assert len(figure.axes) == 4 * 3
    words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert "missing" in words
    assert "lesion  0.006 ml" in words
    bare = case_figure(replace(case, label_map=None, roi=None))
    assert len(bare.axes) == 4 * 2
    unnamed = case_figure(case)
    assert "class 1  0.006 ml" in " ".join(text.get_text() for axes in unnamed.axes for text in axes.texts)


def test_axes_are_turned_to_ras_and_background_is_cut(write_scan: Write, make_cohort: Make) -> None:
    scan = np.zeros((30, 20, 10), np.float32)
    scan[10, 8, 2:7] = [1, 2, 3, np.nan, 5]
    # Voxel axes point to inferior, left, anterior.
    affine = np.array([[0, -2, 0, 0], [0, 0, 1.5, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    labels = np.zeros(scan.shape, np.uint8)
    labels[10, 8, 4] = 1
    case = make_cohort(1).cases[0]
    files = {"t1": write_scan("t.nii", scan, affine)}
    case = replace(case, channels=files, label_map=write_scan("l.nii", labels, affine), roi=None)
    view = load_view(case)
    assert view.spacing == (2.0, 1.5, 1.0)
    shown = view.channels["t1"]
    assert shown.shape == (9, 10, 9)
    np.testing.assert_array_equal(shown[4, 2:7, 4], [1, 2, 3, 0, 5])
    assert shown[view.center] == 3


def test_the_center_lies_in_a_lesion_and_not_between_two(write_scan: Write, make_cohort: Make) -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[0, 4, 4] = labels[8, 4, 4] = labels[8, 4, 5] = 1
    case = make_cohort(1).cases[0]
    files = {"t1": write_scan("t.nii", np.random.default_rng(0).normal(size=(9, 9, 9)))}
    view = load_view(replace(case, channels=files, label_map=write_scan("l.nii", labels), roi=None))
    assert view.labels[view.center] == 1


def test_what_cannot_be_shown_is_named(make_cohort: Make, write_scan: Write, tmp_path: Path) -> None:
    case = make_cohort(1).cases[0]
    with pytest.raises(CohortError, match=r"roi has shape \(1, 1, 1\), channel_t1 has \(6, 5, 4\)"):
        show_cohort(
            Cohort("x", (), ("t1",), (replace(case, roi=write_scan("r.nii", np.ones((1, 1, 1), np.uint8))),)), tmp_path
        )
    with pytest.raises(CohortError, match="has no channel"):
        load_view(replace(case, channels={"t1": None}))


def test_odd_scans_are_shown_too(make_cohort: Make, write_scan: Write, tmp_path: Path) -> None:
    case = replace(make_cohort(1).cases[0], roi=None, label_map=None)
    for index, array in enumerate((np.full((4, 4, 4), 3, np.int16), np.ones((5, 1, 1)), np.full((2, 2, 2), np.nan))):
        odd = replace(
            case, name=f"odd{index} 脳", channels={"t1": write_scan(f"{index}.nii", array.astype(np.float32))}
        )
        assert show_cohort(Cohort("x", (), ("t1",), (odd,)), tmp_path)[0].volumes_ml == {}


def test_colors_repeat_after_the_last() -> None:
    assert class_color(1) == class_color(8) != class_color(2)


def test_many_classes_are_counted_and_the_largest_drawn(make_cohort: Make, write_scan: Write, tmp_path: Path) -> None:
    labels = np.zeros((6, 5, 4), np.float32)
    for index in range(9):
        labels.ravel()[index * 10 : index * 10 + index + 1] = index + 1
    labels.ravel()[-4:] = (14_175, -3, 1e20, np.nan)
    case = replace(make_cohort(1).cases[0], label_map=write_scan("many.nii", labels))
    figure = case_figure(case, ("background", "first"))
    words = [text.get_text() for text in figure.axes[-1].texts]
    assert [word.split("  ")[0] for word in words] == [f"class {k}" for k in range(4, 10)]
    volumes = show_cohort(Cohort("x", ("background", "first"), ("t1",), (case,)), tmp_path)[0].volumes_ml
    assert len(volumes) == 11
    assert volumes["first"] == pytest.approx(0.003)
    assert volumes["class 14175"] == pytest.approx(0.003)
