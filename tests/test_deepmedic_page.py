"""The page for users of DeepMedic names only settings that exist, and its example is an experiment."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from dmx.config.load import build_experiment, load_experiment
from dmx.config.sections import Experiment
from dmx.errors import ConfigError
from dmx.model.build import build_network

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coming-from-deepmedic.md"
SECTIONS = {field.name for field in fields(Experiment)}
FILES = ("csv", "ckpt", "safetensors")


def example() -> str:
    """Return the one YAML block of the page."""
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def named_settings() -> set[str]:
    """Return what stands in backticks and begins with a section: ``sampling.segment``."""
    spans = re.findall(r"`([^`\n]+)`", PAGE.read_text(encoding="utf-8"))
    words = {word for span in spans for word in re.findall(r"(?<![\w./-])[a-z_]+(?:\.[a-z_0-9]+)+", span)}
    return {word for word in words if word.split(".")[0] in SECTIONS and not word.endswith(FILES)}


def exists(setting: str) -> bool:
    """Tell whether a path of names leads to a field."""
    section: object = Experiment
    for name in setting.split("."):
        if not is_dataclass(section) or name not in {field.name for field in fields(section)}:
            return False
        annotation = get_type_hints(section)[name]
        options = (annotation, *get_args(annotation))
        section = next((option for option in options if is_dataclass(option)), None)
    return True


def test_every_setting_that_the_page_names_exists() -> None:
    found = named_settings()
    assert len(found) > 60
    assert {setting for setting in found if not exists(setting)} == set()
    assert not exists("sampling.segments")


def test_its_example_is_an_experiment(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(example(), encoding="utf-8")
    experiment = load_experiment(path)
    assert (experiment.compatibility, experiment.schedule.wait_epochs) == ("deepmedic", 12)
    with pytest.raises(ConfigError, match="segments_dim"):
        load_experiment(path, ["sampling.segments_dim=25"])


def test_its_example_builds_the_network_of_the_configuration() -> None:
    """The full configuration of DeepMedic has 2,008,901 parameters with 2 channels and 5 classes."""
    experiment = build_experiment(yaml.safe_load(example()))
    network = build_network(experiment.model, num_channels=2, num_classes=5, compatibility=experiment.compatibility)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_008_901
    assert network.segment_plan((37, 37, 37)).output_shape == (21, 21, 21)
