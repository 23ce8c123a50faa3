"""What pydantic finds, in words."""

import time

import pytest
import yaml

from dmx.config.load import build_experiment
from dmx.config.yaml_loader import parse_yaml
from dmx.errors import ConfigError


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"freeze": {"layers": None}}, "setting 'freeze.layers' must be text or a list, got None"),
        ({"training": {"epochs": "x"}}, "setting 'training.epochs' must be a whole number, got 'x'"),
        ({"training": {"deterministic": "x"}}, "setting 'training.deterministic' must be true or false, got 'x'"),
        ({"training": {"epoch": 3}}, "unknown setting 'training.epoch'. Did you mean 'epochs'?"),
    ],
)
def test_a_wrong_setting_is_one_sentence_in_the_words_of_the_field(section: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_experiment({"name": "x", "cohort": {"manifest": "c.csv"}, **section})

    assert sentence in str(caught.value)
    assert str(caught.value).count("setting '") == 1


def test_images_are_trained_without_penalties_unless_one_is_asked_for() -> None:
    images = {"name": "x", "task": "classification", "stimuli": {"source": "a.stim.csv"}, "model": {"name": "alexnet"}}

    plain = build_experiment(images).regularization
    asked = build_experiment({**images, "regularization": {"l2": 0.01}}).regularization

    assert (plain.l1, plain.l2) == (0, 0)
    assert (asked.l1, asked.l2) == (0, 0.01)


def test_a_long_row_of_digits_is_read_as_fast_as_any_text() -> None:
    """With a pattern that can match digits in two ways it took minutes."""
    start = time.process_time()

    with pytest.raises(yaml.YAMLError):
        parse_yaml("9" * 100_000 + "name:\n  x: 1\n")

    assert time.process_time() - start < 20
