import csv
import json

import pytest

from dmx.errors import ConfigError
from dmx.evaluation.summary import cases_csv, summarize, summary_json


def rows_of(*values, key="dice/core"):
    return [{"case": f"case_{n}", "status/core": "present", key: value} for n, value in enumerate(values)]


def test_mean_median_and_deviation_are_over_cases_with_a_value():
    summary = summarize(rows_of(0.5, None, 0.7, 0.9, 0.5), ["a", "a", "b", "c", "d"])["dice/core"]

    assert summary.mean == pytest.approx(0.65)
    assert summary.median == pytest.approx(0.6)
    assert summary.std == pytest.approx(0.19148542)
    assert (summary.cases, summary.subjects, summary.missing) == (4, 4, 1)
    assert 0.5 <= summary.low < 0.65 < summary.high <= 0.9


def test_the_interval_is_near_the_one_of_the_normal_distribution():
    values = [0.5 + 0.004 * n for n in range(100)]
    summary = summarize(rows_of(*values), [str(n) for n in range(100)])["dice/core"]
    half = 1.96 * summary.std / 10
    assert summary.low == pytest.approx(summary.mean - half, abs=0.15 * half)
    assert summary.high == pytest.approx(summary.mean + half, abs=0.15 * half)


def test_cases_of_one_subject_stay_together():
    values = [0.2, 0.8] * 10
    apart = summarize(rows_of(*values), [str(n) for n in range(20)])["dice/core"]
    together = summarize(rows_of(*values), ["low", "high"] * 10)["dice/core"]
    assert (together.low, together.high) == pytest.approx((0.2, 0.8))
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


def test_the_summary_is_strict_json():
    rows = rows_of(None, 0.5)
    text = summary_json(summarize(rows, ["a", "b"]), rows, ["core"])
    content = json.loads(text, parse_constant=pytest.fail)
    assert content["metrics"]["dice/core"]["low"] is None
    assert content["status"]["core"] == {"present": 2, "missed": 0, "false_positive": 0, "absent": 0}
    assert content["cases"] == 2
