"""DeepMedic's configurations as plain values."""

import pytest

from dmx.config.data import NormalizeSection
from dmx.config.deepmedic import parse_assignments, read_normalization
from dmx.errors import ConfigError


def normalization(text: str) -> NormalizeSection:
    return read_normalization(text, channels=("flair", "t1c"), source="train.cfg")


def test_the_last_assignment_counts_and_expressions_do_not() -> None:
    found = parse_assignments(
        '"""Text."""\na = b = 1\na = max(1, 2)\nc = open("x")\nc = [[1] * 2, [3]]\nd = [[0]] * 2 + [[1]]\n'
    )
    assert found is not None
    assert found.values == {"b": 1, "d": [[0], [0], [1]]}
    assert found.unread == {"a", "c"}
    assert found.other_lines == ()


def test_a_list_is_not_repeated_without_end() -> None:
    found = parse_assignments("a = [0] * 10**9\nb = [0] * 1000000000\nc = 'x' * 9\n")
    assert found is not None
    assert (found.values, found.unread) == ({}, {"a", "b", "c"})


def test_what_is_no_python_is_none() -> None:
    assert parse_assignments("/scans/one.nii.gz\n") is None
    assert parse_assignments("a = 1\0") is None
    found = parse_assignments("for k in range(3):\n    pass\nx.y = 1\n")
    assert found is not None
    assert found.other_lines == (1, 3)


def test_normalization_is_that_of_the_training() -> None:
    text = (
        "norm_zscore_prms = {'apply_to_all_channels': True, 'cutoff_percents': [5., 95.], 'cutoff_times_std': [3, 2.5],"
        " 'cutoff_below_mean': True}"
    )
    assert normalization(text) == NormalizeSection(
        method="zscore", percentiles=(5, 95), within_std=(3, 2.5), above_mean=True
    )
    assert normalization("norm_zscore_prms = {'apply_per_channel': [False, True]}").channels == ("t1c",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "norm_zscore_prms = None",
        "norm_zscore_prms = {'apply_to_all_channels': False, 'cutoff_percents': [5., 95.]}",
        "norm_zscore_prms = {'apply_per_channel': [False, False]}",
    ],
)
def test_intensities_stay_as_they_are_when_nothing_is_asked_for(text: str) -> None:
    assert normalization(text).method == "none"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("norm_zscore_prms = [1]", "must be a dictionary"),
        ("norm_zscore_prms = {'apply_per_channel': [True]}", "each of 2 channels"),
        (
            "norm_zscore_prms = {'apply_to_all_channels': True, 'cutoff_percents': [95, 5]}",
            "cannot be used: percentiles",
        ),
        ("norm_zscore_prms = {'apply_to_all_channels': True, 'cutoff_times_std': 3}", "cannot be used"),
        ("norm_zscore_prms = dict(a=1)", "expressions are not executed"),
        ("padInputImagesBool = False", "'padInputImagesBool' must be True"),
        ("no python", "not Python"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        normalization(text)
