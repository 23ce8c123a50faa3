import numpy as np
import pytest

from dmx.errors import ConfigError
from dmx.evaluation.metrics import METRICS, cases_with_value, confusion_counts, score_case, statuses
from dmx.evaluation.surface import SurfaceDefinition

CLASSES = ("background", "core", "edema")
SPACING = (1.0, 2.0, 0.5)


def labels(**boxes):
    array = np.zeros((8, 6, 5), dtype=np.int16)
    for index, box in boxes.items():
        array[box] = int(index[1:])
    return array


LEFT = np.s_[:4, :2, :2]
LEFT_HALF = np.s_[:2, :2, :2]
RIGHT = np.s_[6:, 4:, 3:]


def test_half_of_a_box_scores_as_counted_by_hand():
    row = score_case(labels(_1=LEFT), labels(_1=LEFT_HALF), spacing=SPACING, classes=CLASSES)

    assert row["status/core"] == "present"
    assert row["dice/core"] == pytest.approx(2 * 8 / (16 + 8))
    assert row["sensitivity/core"] == 0.5
    assert row["precision/core"] == 1.0
    assert row["specificity/core"] == 1.0
    assert row["volume_truth_ml/core"] == pytest.approx(0.016)
    assert row["volume_error_ml/core"] == pytest.approx(-0.008)
    assert row["volume_error_relative/core"] == -0.5
    assert row["hd95_mm/core"] == 2.0
    assert row["assd_mm/core"] == pytest.approx(0.5, abs=0.15)
    assert row["surface_dice/core"] > 0.7
    assert row["dice/foreground"] == row["dice/core"]


def test_between_voxels_the_half_of_a_box_scores_as_counted_by_hand():
    surface = SurfaceDefinition(kind="voxels")
    row = score_case(labels(_1=LEFT), labels(_1=LEFT_HALF), spacing=SPACING, classes=CLASSES, surface=surface)
    assert row["hd95_mm/core"] == 2.0
    assert row["surface_dice/core"] == pytest.approx((8 + 4 + 8) / 24)
    assert row["assd_mm/core"] == pytest.approx((4 * 1 + 4 * 2) / 24)


def test_the_same_labels_score_perfectly():
    both = labels(_1=LEFT, _2=RIGHT)
    row = score_case(both, both, spacing=SPACING, classes=CLASSES)

    assert row["dice/mean"] == row["dice/edema"] == row["surface_dice/foreground"] == 1.0
    assert row["hd95_mm/edema"] == row["volume_error_ml/core"] == 0.0


def test_absent_missed_and_false_positive_are_told_apart():
    empty, filled = labels(), labels(_1=LEFT)
    absent = score_case(empty, empty, spacing=SPACING, classes=CLASSES)
    missed = score_case(filled, empty, spacing=SPACING, classes=CLASSES)
    false = score_case(empty, filled, spacing=SPACING, classes=CLASSES)

    names = (
        "status",
        "dice",
        "surface_dice",
        "hd95_mm",
        "assd_mm",
        "sensitivity",
        "precision",
        "volume_error_relative",
    )
    assert [absent[f"{name}/core"] for name in names] == ["absent", *[None] * 7]
    assert [missed[f"{name}/core"] for name in names] == ["missed", 0.0, 0.0, None, None, 0.0, None, -1.0]
    assert [false[f"{name}/core"] for name in names] == ["false_positive", 0.0, 0.0, None, None, None, 0.0, None]
    diagonal = pytest.approx((8**2 + 12**2 + 2.5**2) ** 0.5)
    for name in ("hd95_mm_penalized", "assd_mm_penalized"):
        assert [row[f"{name}/core"] for row in (absent, missed, false)] == [None, diagonal, diagonal]
    assert (absent["dice/mean"], missed["dice/mean"], false["dice/mean"]) == (None, 0.0, 0.0)
    assert statuses([absent, missed, false], "core") == {"present": 0, "missed": 1, "false_positive": 1, "absent": 1}


def test_how_many_cases_have_a_value_follows_from_their_statuses():
    empty, filled = labels(), labels(_1=LEFT)
    pairs = [(filled, filled)] * 4 + [(filled, empty)] * 3 + [(empty, filled)] * 2 + [(empty, empty)]
    rows = [score_case(truth, found, spacing=SPACING, classes=CLASSES) for truth, found in pairs]
    for metric in METRICS[:-3]:
        values = [row[f"{metric}/core"] for row in rows if row[f"{metric}/core"] is not None]
        assert cases_with_value(metric, statuses(rows, "core")) == len(values), metric


def test_no_warning_reaches_the_user(recwarn):
    score_case(labels(), labels(_1=LEFT), spacing=SPACING, classes=CLASSES)
    assert len(recwarn) == 0


def test_the_three_variants_of_deepmedic_differ_in_what_the_roi_cuts():
    truth, prediction = labels(_1=LEFT), labels(_1=np.s_[:4, :2, :3])
    roi = labels(_1=np.s_[:2])

    row = score_case(truth, prediction, spacing=SPACING, classes=CLASSES, roi=roi)

    assert row["deepmedic_dice1/core"] == pytest.approx(2 * 16 / (16 + 24))
    assert row["deepmedic_dice2/core"] == pytest.approx(2 * 8 / (16 + 12))
    assert row["deepmedic_dice3/core"] == pytest.approx(2 * 8 / (8 + 12))
    assert row["dice/core"] == row["deepmedic_dice2/core"]


def test_deepmedic_does_not_see_false_positives():
    row = score_case(labels(), labels(_1=LEFT), spacing=SPACING, classes=CLASSES)
    assert row["deepmedic_dice1/core"] is None


def test_every_metric_has_a_value_for_every_class_and_the_foreground():
    row = score_case(labels(_1=LEFT), labels(_2=LEFT), spacing=SPACING, classes=CLASSES)
    expected = {f"{metric}/{name}" for metric in ("status", *METRICS) for name in ("foreground", "core", "edema")}
    assert set(row) == expected | {"dice/mean"}
    assert row["dice/foreground"] == 1.0
    assert row["dice/mean"] == 0.0


def test_a_class_beside_others_cannot_be_called_foreground():
    with pytest.raises(ConfigError, match="Rename"):
        score_case(labels(), labels(), spacing=SPACING, classes=("background", "foreground", "core"))
    row = score_case(labels(_1=LEFT), labels(_1=LEFT), spacing=SPACING, classes=("background", "foreground"))
    assert row["dice/foreground"] == 1.0


def test_grids_must_agree():
    with pytest.raises(ConfigError, match="one grid"):
        score_case(labels(), labels()[:-1], spacing=SPACING, classes=CLASSES)


def test_confusion_counts_pairs_within_the_roi():
    truth, prediction = labels(_1=LEFT), labels(_2=LEFT_HALF)
    counts = confusion_counts(truth, prediction, num_classes=3)
    assert counts[1].tolist() == [8, 0, 8]
    assert counts.sum() == truth.size
    inside = confusion_counts(truth, prediction, num_classes=3, roi=truth)
    assert inside.sum() == 16
