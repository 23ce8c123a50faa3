"""Short names of layers, wherever a layer is named."""

import pytest
from torch import Tensor, nn

from dmx.config.freeze import FreezeSection
from dmx.config.load import build_experiment
from dmx.errors import ConfigError, TransferError
from dmx.model.image_network import ImageNetwork
from dmx.model.sketch import sketch_network
from dmx.transfer.aliases import known_as
from dmx.transfer.describe import NetworkSketch, TensorInfo
from dmx.transfer.freeze_parts import find, network_parts
from dmx.transfer.freeze_planning import plan_freeze
from dmx.transfer.layout import sketch_tensors
from dmx.transfer.options import MapRule, TransferOptions
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer


class Small(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.classifier = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return scores


ALIASES = {"conv1": "features.0", "conv1_relu": "features.1", "conv2": "features.2", "fc1": "classifier"}


def network(classes: int = 2) -> ImageNetwork:
    return ImageNetwork(Small(classes), "small", num_channels=3, num_classes=classes, aliases=ALIASES)


def file() -> NetworkSketch:
    return sketch_tensors(
        [TensorInfo(name, tuple(value.shape)) for name, value in Small(2).state_dict().items()], name="file"
    )


def received(plan: TransferPlan) -> dict[str, str]:
    return {tensor.name: tensor.source for tensor in plan.tensors if tensor.action != "initialized"}


def test_a_name_that_begins_alike_is_another_one() -> None:
    assert known_as("features.10.weight", {"conv1": "features.1"}) == ("features.10.weight",)
    assert known_as("network.features.1", {"conv1": "network.features.1"})[1:] == ("features.1", "conv1")


@pytest.mark.parametrize("pattern", ["conv1", "features.0", "network.features.0", "conv1.*", "[c]onv1"])
def test_a_layer_is_frozen_by_any_of_its_names(pattern: str) -> None:
    plan = plan_freeze(FreezeSection(layers=(pattern,)), network_parts(network()))
    assert set(plan.parameters) == {"network.features.0.weight", "network.features.0.bias"}


def test_stars_match_short_names_too_and_an_unknown_one_is_suggested() -> None:
    parts = network_parts(network())
    found = find("conv?", parts, what="freeze.layers")
    assert found.modules == ("network.features.0", "network.features.2")
    with pytest.raises(ConfigError, match=r"'convv2'.*Did you mean 'conv2'"):
        find("convv2", parts, what="freeze.layers")


def test_rules_and_layers_take_short_names_also_for_a_file_that_knows_none() -> None:
    wanted = {f"network.features.2.{part}": f"features.2.{part}" for part in ("weight", "bias")}
    target = sketch_network(network(5), name="target")
    by_name = plan_transfer(file(), target, TransferOptions(layers=("conv2",)))
    assert received(by_name) == wanted
    crossed = plan_transfer(file(), target, TransferOptions(layers=(2,), map=(MapRule("conv2", "conv2"),)))
    assert received(crossed) == wanted
    two = [file(), sketch_network(network(), name="other")]
    ruled = plan_transfer(two, target, TransferOptions(map=(MapRule("conv2.*", "conv2.*", "other"),)))
    assert received(ruled) == {name: name for name in wanted}
    with pytest.raises(TransferError, match=r"--layers must hold.*got conv9\. Did you mean 'conv"):
        plan_transfer(file(), target, TransferOptions(layers=("conv9",)))


def test_a_plan_with_names_survives_its_file_and_a_section_takes_them() -> None:
    plan = plan_transfer(file(), sketch_network(network(), name="target"), TransferOptions(layers=("conv1", 2)))
    assert TransferPlan.from_dict(plan.as_dict()) == plan
    experiment = build_experiment(
        {"name": "x", "cohort": {"manifest": "a.csv"}, "transfer": {"layers": ["conv1", 2]}}, source="test"
    )
    assert experiment.transfer is not None
    assert experiment.transfer.layers == ("conv1", 2)


def test_an_image_network_is_sketched_with_its_head_and_what_reads_the_image() -> None:
    made = sketch_network(network(), name="target", channels=("red", "green", "blue"))
    assert [layer.name for layer in made.layers if layer.reads == ()] == ["network.features.0"]
    assert made.head is not None
    assert made.head.name == "network.classifier"
    assert made.aliases == network().aliases
