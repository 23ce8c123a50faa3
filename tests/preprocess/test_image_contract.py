import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmx.config.images import ImagePreprocessSection
from dmx.errors import CheckpointError, ConfigError
from dmx.model.image_facts import EFFICIENTNET_LITE, IMAGENET
from dmx.preprocess.image_contract import ImageContract, resolve_image_contract

side = st.integers(1, 999)
color = st.tuples(*[st.floats(0.01, 10)] * 3)


@given(
    contract=st.builds(
        ImageContract,
        rule=st.sampled_from(["shorter_side", "exact"]),
        resize=st.tuples(*[st.integers(1000, 2000)] * 2),
        crop=st.tuples(side, side),
        interpolation=st.sampled_from(["bilinear", "bicubic"]),
        mean=color,
        std=color,
        color=st.sampled_from(["RGB", "BGR"]),
        classes=st.lists(st.text(), max_size=3).map(tuple),
        labels=st.dictionaries(st.integers(), st.integers(), max_size=3),
        targets=st.lists(st.text(), max_size=3).map(tuple),
    )
)
def test_a_contract_survives_json(contract: ImageContract) -> None:
    again = ImageContract.from_dict(json.loads(json.dumps(contract.as_dict())))
    assert again == contract
    assert again.key() == contract.key()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"more": 1}, "has the unknown key 'more'"),
        ({"kind": "volume"}, "must be of the kind 'image', got 'volume'"),
        ({"resize": [1]}, "cannot be read"),
        ({"mean": None}, "cannot be read"),
        ({"labels": {"a": 1}}, "cannot be read"),
    ],
)
def test_a_contract_that_cannot_be_read_is_a_sentence(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        ImageContract.from_dict(ImageContract().as_dict() | changes)
    with pytest.raises(CheckpointError, match="cannot be read"):
        ImageContract.from_dict({name: v for name, v in ImageContract().as_dict().items() if name != "crop"})


def test_what_decides_the_pixels_has_its_own_key() -> None:
    plain = ImageContract()
    for changes in ({"resize": (300, 300)}, {"rule": "exact"}, {"interpolation": "bicubic"}):
        assert replace(plain, **changes).pixels_key() != plain.pixels_key()
    for changes in ({"crop": (99, 99)}, {"mean": (0.0,) * 3}, {"classes": ("a", "b")}, {"color": "BGR"}):
        other = replace(plain, **changes)
        assert other.pixels_key() == plain.pixels_key()
        assert other.key() != plain.key()
    assert replace(plain, classes=("a",)).preprocessing() == plain.preprocessing()
    assert replace(plain, color="BGR").preprocessing() != plain.preprocessing()


def test_the_outputs_are_targets_or_classes() -> None:
    assert ImageContract(classes=("a", "b", "c")).num_outputs == 3
    assert ImageContract(classes=("a", "b", "c"), targets=("age",)).num_outputs == 1


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((256, 256), (256, 256)), ((480, 640), (256, 341)), ((640, 480), (341, 256)), ((8, 9), (256, 288))],
)
def test_the_shorter_side_is_scaled_and_the_shape_stays(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert ImageContract().scaled_size(size) == scaled
    assert ImageContract(rule="exact", resize=(230, 240)).scaled_size(size) == (230, 240)


def test_what_the_experiment_leaves_out_comes_from_the_network() -> None:
    plain = resolve_image_contract(ImagePreprocessSection())
    assert plain == ImageContract()
    assert (plain.resize, plain.crop, plain.mean[0], plain.interpolation) == ((256, 256), (224, 224), 0.485, "bilinear")
    lite = resolve_image_contract(
        ImagePreprocessSection(), EFFICIENTNET_LITE, classes=("a", "b"), labels={3: 0, 5: 1}, targets=()
    )
    assert (lite.mean, lite.std) == ((127 / 255,) * 3, (128 / 255,) * 3)
    assert (lite.classes, dict(lite.labels)) == (("a", "b"), {3: 0, 5: 1})


def test_the_experiment_has_the_last_word() -> None:
    section = ImagePreprocessSection(
        resize=(70, 80), crop=64, interpolation="bicubic", mean=(0.0, 0.1, 0.2), std=(1.0, 2.0, 3.0), color="BGR"
    )
    assert resolve_image_contract(section, IMAGENET) == ImageContract(
        rule="exact",
        resize=(70, 80),
        crop=(64, 64),
        interpolation="bicubic",
        mean=(0.0, 0.1, 0.2),
        std=(1.0, 2.0, 3.0),
        color="BGR",
    )
    assert resolve_image_contract(ImagePreprocessSection(crop=112)).resize == (128, 128)
    assert resolve_image_contract(ImagePreprocessSection(resize=300)).crop == (224, 224)


def test_settings_that_cannot_be_met() -> None:
    with pytest.raises(ConfigError, match=r"crop must be at most image_preprocess.resize, got \[224, 224\] and"):
        resolve_image_contract(ImagePreprocessSection(resize=100))
    with pytest.raises(ConfigError, match="scaled by shorter_side or exact, as RGB or BGR, got longest, RGB"):
        ImageContract(rule="longest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="crop must be at least 1, got 0"):
        ImagePreprocessSection(crop=(5, 0))
    with pytest.raises(ValueError, match="std must be above 0"):
        ImagePreprocessSection(std=(1.0, 0.0, 1.0))
