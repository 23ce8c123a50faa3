"""Depths of a source whose file does not keep the order of its layers."""

from collections import OrderedDict
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from dmx.errors import TransferError
from dmx.model.sketch import sketch_module
from dmx.transfer.describe import NetworkSketch
from dmx.transfer.options import TransferOptions
from dmx.transfer.planning import plan_transfer
from dmx.workflows.weights_file import open_weights_file


def network(*names: str) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, nn.Conv3d(2, 2, 1)) for name in names))


def stored(module: nn.Module, folder: Path) -> NetworkSketch:
    save_file(module.state_dict(), folder / "w.safetensors")
    return open_weights_file(folder / "w.safetensors", name="source").sketch


def layers(source: NetworkSketch, target: nn.Module, *wanted: int | str) -> list[str]:
    plan = plan_transfer(source, sketch_module(target, name="target"), TransferOptions(layers=wanted))
    return [name for name, _, _ in plan.pairs]


def test_numbers_in_names_count(tmp_path: Path) -> None:
    numbered = nn.Sequential(*(nn.Conv3d(2, 2, 1) for _ in range(12)))
    assert layers(stored(numbered, tmp_path), numbered, 2, 11) == ["1", "10"]


def test_the_order_is_that_of_the_target_where_it_has_all_layers(tmp_path: Path) -> None:
    module = network("stem", "down", "up", "classify")
    source = stored(module, tmp_path)
    assert [layer.name for layer in source.layers] == ["classify", "down", "stem", "up"]
    assert layers(source, module, 1, 3) == ["stem", "up"]
    assert layers(source, module, 4) == ["classify"]
    assert layers(source, module) == ["stem", "down", "up"], "the head is the target's"


def test_depths_are_refused_where_the_order_is_unknown(tmp_path: Path) -> None:
    source = stored(network("stem", "down", "up", "classify"), tmp_path)
    target = network("stem", "down", "up", "other")
    with pytest.raises(TransferError, match=r"--layers 2: .* does not keep the order .* it has: classify, down, stem"):
        layers(source, target, 2)
    assert layers(source, target, "stem", "up") == ["stem", "up"]
