import csv
import json

import numpy as np
import pytest

from dmx.errors import ConfigError
from dmx.evaluation.metrics import score_case
from dmx.evaluation.summary import FEWEST_SUBJECTS, ScoreTable, cases_csv, summarize
from dmx.evaluation.surface import SurfaceDefinition


def rows_of(*values, key="dice/core"):
    return [{"case": f"case_{n}", "status/core": "present", key: value} for n, value in enumerate(values)]


def test_mean_median_and_deviation_are_over_cases_with_a_value():
    summary = summarize(rows_of(0.5, None, 0.7, 0.9, 0.5), ["a", "a", "b", "c", "d"])["dice/core"]

    assert summary.mean == pytest.approx(0.65)
    assert summary.median == pytest.approx(0.6)
    assert summary.std == pytest.approx(0.19148542)
    assert (summary.cases, summary.subjects, summary.missing) == (4, 4, 1)


def test_the_interval_is_near_the_one_of_the_normal_distribution():
    values = [0.5 + 0.004 * n for n in range(100)]
    summary = summarize(rows_of(*values), [str(n) for n in range(100)])["dice/core"]
    half = 1.96 * summary.std / 10
    assert summary.low == pytest.approx(summary.mean - half, abs=0.15 * half)
    assert summary.high == pytest.approx(summary.mean + half, abs=0.15 * half)


def test_cases_of_one_subject_stay_together():
    values = [0.2, 0.8] * 60
    apart = summarize(rows_of(*values), [str(n) for n in range(120)])["dice/core"]
    people = [f"{side}{n}" for n in range(6) for side in ("low", "high")]
    together = summarize(rows_of(*values), people * 10)["dice/core"]
    assert together.high - together.low > apart.high - apart.low


def test_the_same_seed_gives_the_same_interval_and_another_one_another():
    rows, subjects = rows_of(*[0.1 * n**0.5 for n in range(15)]), [str(n) for n in range(15)]
    assert summarize(rows, subjects, seed=1) == summarize(rows, subjects, seed=1)
    assert summarize(rows, subjects, seed=1) != summarize(rows, subjects, seed=2)


def test_what_does_not_exist_is_none():
    nothing = summarize(rows_of(None, None), ["a", "b"])["dice/core"]
    one = summarize(rows_of(0.5, 0.7), ["a", "a"])["dice/core"]
    assert (nothing.mean, nothing.low, nothing.missing) == (None, None, 2)
    assert (one.mean, one.low, one.high) == (pytest.approx(0.6), None, None)
    assert summarize(rows_of(0.5), ["a"])["dice/core"].std is None
    assert summarize([], []) == {}


def test_text_is_not_summarized():
    assert list(summarize(rows_of(0.5), ["a"])) == ["dice/core"]


def test_each_row_needs_its_subject():
    with pytest.raises(ConfigError, match="2 rows and 1 subjects"):
        summarize(rows_of(0.5, 0.6), ["a"])


def test_the_table_keeps_the_order_of_the_keys_and_leaves_missing_cells_empty():
    table = list(csv.reader(cases_csv(rows_of(0.25, None)).splitlines()))
    assert table == [["case", "status/core", "dice/core"], ["case_0", "present", "0.25"], ["case_1", "present", ""]]
    assert cases_csv([]) == ""


def test_few_subjects_have_no_interval():
    values = [0.3 + 0.05 * n for n in range(FEWEST_SUBJECTS)]
    names = [str(n) for n in range(FEWEST_SUBJECTS)]
    enough = summarize(rows_of(*values), names)["dice/core"]
    assert values[0] < enough.low < enough.mean < enough.high < values[-1]
    for few in (2, FEWEST_SUBJECTS - 1):
        summary = summarize(rows_of(*values[:few]), names[:few])["dice/core"]
        assert (summary.low, summary.high) == (None, None)
        assert summary.mean == pytest.approx(np.mean(values[:few]))
    # Many cases of few subjects are few as well.
    assert summarize(rows_of(*values), ["a", "b"] * (FEWEST_SUBJECTS // 2))["dice/core"].low is None


CLASSES = ("background", "core", "edema")


def label_map(*boxes):
    array = np.zeros((12, 9, 8), dtype=np.int16)
    for index, start in enumerate(boxes, 1):
        if start is not None:
            array[start : start + 3, 2:6, 2:6] = index
    return array


def table_of(*pairs):
    rows = [score_case(truth, found, spacing=(1, 1, 1), classes=CLASSES) for truth, found in pairs]
    return ScoreTable.of(
        rows, [str(n) for n in range(len(rows))], classes=CLASSES[1:], surface=SurfaceDefinition(tolerance_mm=2.0)
    )


TRUTH = label_map(1, 8)


def test_no_mean_gets_better_when_a_class_is_missed_but_that_of_the_cases_that_were_found():
    near, far = label_map(1, 8), label_map(4, 8)
    found, missed = table_of((TRUTH, near), (TRUTH, far)), table_of((TRUTH, near), (TRUTH, label_map(None, 8)))
    before, after = found.metrics(), missed.metrics()
    assert after["evaluation/hd95_mm/core"] < before["evaluation/hd95_mm/core"]
    for distance in ("hd95_mm", "assd_mm"):
        assert after[f"evaluation/{distance}_penalized/core"] > before[f"evaluation/{distance}_penalized/core"]
    for score in ("dice/core", "surface_dice/core", "sensitivity/core"):
        assert after[f"evaluation/{score}"] <= before[f"evaluation/{score}"]
    counts = ("present/core", "missed/core", "missed/edema", "missed", "false_positive", "cases")
    assert [before[f"evaluation/{key}"] for key in counts] == [2, 0, 0, 0, 0, 2]
    assert [after[f"evaluation/{key}"] for key in counts] == [1, 1, 0, 1, 0, 2]


def test_the_two_means_are_taken_in_different_order():
    # One case has the core alone; its Dice of it is 0.
    only = label_map(1, None)
    table = table_of((TRUTH, TRUTH), (only, label_map(7, None)))
    metrics = table.metrics()
    assert metrics["evaluation/dice"] == pytest.approx((1 + 0) / 2)
    assert metrics["evaluation/dice_class_mean"] == pytest.approx(((1 + 0) / 2 + 1) / 2)
    assert metrics["evaluation/absent/edema"] == 1


def test_the_summary_is_strict_json_and_can_be_read_again():
    table = table_of((TRUTH, TRUTH), (TRUTH, label_map(None, None)))
    content = json.loads(table.to_json(), parse_constant=pytest.fail)
    assert content["metrics"]["dice/core"]["low"] is None
    assert content["status"]["core"] == {"present": 1, "missed": 1, "false_positive": 0, "absent": 0}
    assert content["definitions"]["surface"] == "elements"
    assert ScoreTable.from_json(table.to_json()) == table


def test_a_summary_of_before_surface_elements_says_that_it_is_of_voxels():
    content = json.loads(table_of((TRUTH, TRUTH)).to_json())
    for new in ("definitions", "classes", "dice_class_mean"):
        del content[new]
    old = ScoreTable.from_json(json.dumps(content))
    assert (old.surface.kind, old.classes) == ("voxels", ("core", "edema"))
    for text in ("", "[]", "{}", '{"cases": 1, "status": {}, "metrics": {"dice": {}}}'):
        with pytest.raises(ValueError, match="no summary"):
            ScoreTable.from_json(text)
