import numpy as np
import pytest
from scipy.stats import bootstrap

from dmx.errors import ConfigError
from dmx.evaluation.paired import paired_difference


def scores(*values):
    return {f"case_{n}": value for n, value in enumerate(values)}


def each_its_own(count):
    return {f"case_{n}": f"s{n}" for n in range(count)}


def test_a_constant_gain_is_found_with_certainty():
    first = scores(*[0.1 * n for n in range(12)])
    second = {case: value + 0.25 for case, value in first.items()}
    found = paired_difference(first, second, each_its_own(12))
    assert found.difference == pytest.approx(0.25)
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))
    # All 2^12 signs are equally likely, and two of them are as extreme.
    assert found.p == pytest.approx(2 / 2**12)
    assert (found.cases, found.subjects) == (12, 12)


def test_turning_the_networks_turns_the_sign_and_keeps_the_p():
    first, second = scores(*[0.5, 0.6, 0.7, 0.4, 0.2] * 2), scores(*[0.6, 0.5, 0.9, 0.7, 0.6] * 2)
    there = paired_difference(first, second, each_its_own(10))
    back = paired_difference(second, first, each_its_own(10))
    assert back.difference == pytest.approx(-there.difference)
    assert (back.low, back.high) == (pytest.approx(-there.high, abs=0.02), pytest.approx(-there.low, abs=0.02))
    assert back.p == there.p
    assert 0 < there.p < 1


def test_pairing_sees_what_two_means_do_not():
    first = scores(*[n / 20 for n in range(20)])
    second = {case: value + 0.01 * (1 + index % 3) for index, (case, value) in enumerate(first.items())}
    paired = paired_difference(first, second, each_its_own(20))
    shuffled = paired_difference(first, dict(zip(second, reversed(second.values()), strict=True)), each_its_own(20))
    assert paired.difference == pytest.approx(shuffled.difference)
    assert paired.p < 0.001
    assert shuffled.p > 0.5
    assert paired.high - paired.low < (shuffled.high - shuffled.low) / 10


def test_scans_of_one_subject_count_once():
    first = scores(*[0.5] * 10)
    second = scores(*[0.6] * 8, 0.4, 0.4)
    subjects = {f"case_{n}": "many" if n < 8 else f"s{n}" for n in range(10)}
    found = paired_difference(first, second, subjects)
    assert (found.cases, found.subjects) == (10, 3)
    assert found.difference == pytest.approx((0.1 - 0.1 - 0.1) / 3)
    assert found.p > 0.05
    assert paired_difference(first, second, each_its_own(10)).difference == pytest.approx(0.06)


def test_only_common_cases_count():
    found = paired_difference({"a": 0.5, "b": 0.1}, {"a": 0.7, "c": 0.9}, {"a": "s"})
    assert (found.cases, found.first, found.second) == (1, 0.5, 0.7)
    assert (found.low, found.high, found.p) == (None, None, None)
    assert paired_difference({"a": 0.5}, {"b": 0.5}, {}) is None


def test_equal_scores_are_no_evidence():
    same = scores(*[0.5, 0.7, 0.9] * 4)
    found = paired_difference(same, same, each_its_own(12))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_case_without_subject_is_refused():
    with pytest.raises(ConfigError, match="case_1"):
        paired_difference(scores(0.1, 0.2), scores(0.3, 0.4), {"case_0": "s"})


def test_the_same_seed_gives_the_same_interval():
    first, second = scores(*[0.5, 0.6, 0.7, 0.4] * 3), scores(*[0.6, 0.5, 0.9, 0.7] * 3)
    one, same, other = (paired_difference(first, second, each_its_own(12), seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_few_subjects_have_no_interval():
    first, second = scores(*[0.5, 0.6, 0.7] * 3), scores(*[0.6, 0.5, 0.9] * 3)
    found = paired_difference(first, second, each_its_own(9))
    assert (found.subjects, found.low, found.high) == (9, None, None)
    assert found.difference == pytest.approx(0.2 / 3)
    assert found.p is not None


def test_the_interval_is_the_percentile_bootstrap():
    generator = np.random.default_rng(3)
    gains = generator.normal(0.05, 0.1, size=12)
    first = scores(*[0.5] * 12)
    second = scores(*(0.5 + gains))
    found = paired_difference(first, second, each_its_own(12))
    expected = bootstrap((gains,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=0.003), pytest.approx(expected.high, abs=0.003))
    narrow = paired_difference(first, second, each_its_own(12), level=0.5)
    assert found.low < narrow.low < narrow.high < found.high
