import pytest
import torch

import dmx
from dmx.config.model import ModelSection, PathwaySection
from dmx.model.build import build_network
from tests.api.conftest import changed, small, state, volumes


def test_what_is_frozen_is_printed_and_requires_no_gradient() -> None:
    model = small()
    frozen = dmx.freeze(model, layers=["all_but_head"])
    assert frozen.num_frozen_parameters == sum(p.numel() for p in model.parameters()) - 10
    assert str(frozen) == (
        "Frozen: 556 of 566 parameters (98.2%).\n  conv1, norm, conv2\n"
        "Norm statistics of frozen layers stay as they are."
    )
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert set(frozen.parameters) == {name for name, p in model.named_parameters() if not p.requires_grad}


def test_the_head_can_be_named() -> None:
    assert "head.weight" in dmx.freeze(small(), layers="all_but_head", head_name="conv1").parameters
    with pytest.raises(dmx.DmxError, match="must be a module of the network, got 'hed'"):
        dmx.freeze(small(), layers="all_but_head", head_name="hed")


@pytest.mark.parametrize("held", [True, False])
def test_a_loop_of_ones_own_needs_hold(held: bool) -> None:
    model = small()
    frozen = dmx.freeze(model, layers=["conv1", "norm", "conv2"])
    before = state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)
    for scan, labels in volumes(2):
        model.train()
        if held:
            frozen.hold()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(scan), labels).backward()
        optimizer.step()
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert changed(model, before) == {"head.weight", "head.bias"} | (set() if held else statistics)


def test_later_epochs_are_printed_and_held() -> None:
    model = small()
    frozen = dmx.freeze(model, layers=["conv1", "norm"], unfreeze={3: {"layers": ["norm"]}})
    assert "From epoch 3 on 8 more train: norm" in str(frozen)
    model.train()
    frozen.hold(3)
    assert model.norm.training
    assert not model.conv1.weight.requires_grad
    assert model.norm.weight.requires_grad


def test_pathways_of_a_multi_scale_network() -> None:
    section = ModelSection(normal=PathwaySection(widths=(3, 3)))
    network = build_network(section, num_channels=1, num_classes=2)
    frozen = dmx.freeze(network, normal=[1], fc="1-2", norm_statistics="updating")
    assert frozen.plan.positions == {"normal": (1,), "subsampled_1": (1,), "fc": (1, 2)}
    assert "follow the data" in str(frozen)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ({"layers": ["conv9"]}, "fits no module"),
        ({"normal": [1]}, "no pathway 'normal'"),
        ({"normal": "one"}, "positions must be numbers"),
        ({"layers": ["*"]}, "leaves nothing to train"),
    ],
)
def test_what_cannot_be_frozen_is_one_sentence(words: dict[str, object], part: str) -> None:
    with pytest.raises(dmx.DmxError, match=part):
        dmx.freeze(small(), **words)


def test_nothing_frozen() -> None:
    assert str(dmx.freeze(small())) == "Nothing is frozen."
