from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dmx
from tests.api.conftest import changed, convolution, small, state


def test_a_wider_module_receives_and_the_plan_is_readable() -> None:
    source, target = small(4, seed=1), small(6)
    before = state(target)
    plan = dmx.plan_transfer(source, target)
    assert not changed(target, before)
    assert plan.apply(target) is target
    assert torch.equal(target.conv1.weight[:4], source.conv1.weight)
    assert torch.equal(target.conv1.weight[4:], before["conv1.weight"][4:])
    assert not {"head.weight", "head.bias"} & changed(target, before)
    assert (plan.received, plan.parameters) == (556, sum(p.numel() for p in target.parameters()))
    assert plan.share == pytest.approx(plan.received / plan.parameters)
    lines = str(plan).splitlines()
    assert lines[2].split() == ["layer", "what", "from", "parameters"]
    assert lines[3].split() == ["conv1", "sliced", "conv1", "112", "of", "168"]
    assert "Initialized (the head is new): head." in lines
    assert lines[-1].endswith("parameters received (47.4%)")
    assert max(map(len, lines)) <= 80
    assert repr(plan).startswith("<transfer source → target: 556 of")
    assert plan.rows()[0]["action"] == "sliced"


def test_long_names_stay_within_80_columns() -> None:
    def deep() -> nn.Module:
        module: nn.Module = nn.Conv3d(1, 2, 1)
        for name in ("encoder_of_the_left_side", "a_block_with_a_long_name", "the_stage"):
            module = nn.ModuleDict({name: module, f"{name}_too": nn.Conv3d(2, 2, 1)})
        return module

    text = str(dmx.plan_transfer(deep(), deep()))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" in text


def test_a_state_dict_and_files_are_sources(tmp_path: Path) -> None:
    source = small(4, seed=1)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "a.pth")
    save_file({f"module.{name}": tensor for name, tensor in source.state_dict().items()}, tmp_path / "a.safetensors")
    for given in (source.state_dict(), tmp_path / "a.pth", str(tmp_path / "a.safetensors")):
        target = small(4)
        dmx.plan_transfer(given, target, head="copy").apply(target)
        assert not changed(target, state(source))


def test_several_sources_need_rules() -> None:
    first, second, target = small(seed=1), small(seed=2), small()
    rules = [
        {"source": "conv1", "target": "conv1", "network": "a"},
        {"source": "conv2", "target": "conv2", "network": "b"},
    ]
    plan = dmx.plan_transfer({"a": first, "b": second}, target, map=rules)
    plan.apply(target)
    assert torch.equal(target.conv1.weight, first.conv1.weight)
    assert torch.equal(target.conv2.weight, second.conv2.weight)
    assert "b:conv2" in str(plan)
    with pytest.raises(dmx.DmxError, match="Rules must say"):
        dmx.plan_transfer({"a": first, "b": second}, target)


def test_rules_rename_and_layers_choose() -> None:
    target = small()
    dmx.plan_transfer(nn.ModuleDict({"first": small(seed=1).conv1}), target, map={"first": "conv1"}).apply(target)
    assert torch.equal(target.conv1.weight, small(seed=1).conv1.weight)
    plan = dmx.plan_transfer(small(seed=1), small(), layers=[1])
    assert plan.received == 112


def test_channels_and_classes_correspond_by_name() -> None:
    source, target = convolution(2, 2, seed=1), convolution(2, 3)
    plan = dmx.plan_transfer(
        source,
        target,
        head="copy",
        classes_from="names",
        classes=("background", "edema", "core"),
        source_classes=("background", "core"),
    )
    plan.apply(target)
    assert torch.equal(target[0].weight[2], source[0].weight[1])
    assert torch.equal(target[0].weight[0], source[0].weight[0])


def test_the_page_is_one_file(tmp_path: Path) -> None:
    page = dmx.plan_transfer(small(), small(6)).to_html(tmp_path / "plan.html")
    assert page.read_text(encoding="utf-8").lstrip().startswith("<!")


def test_apply_refuses_another_network() -> None:
    plan = dmx.plan_transfer(small(seed=1), small())
    wider, more = small(6), small()
    more.extra = nn.Linear(2, 2)
    before = state(more)
    with pytest.raises(dmx.DmxError, match=r"must have the shape \[4, 1, 3, 3, 3\]"):
        plan.apply(wider)
    with pytest.raises(dmx.DmxError, match=r"knows nothing of extra.weight and 1 more"):
        plan.apply(more)
    assert not changed(more, before)


def test_a_source_gives_the_weights_that_it_has_when_the_plan_is_applied() -> None:
    source, target = small(seed=1), small()
    plan = dmx.plan_transfer(source, target)
    nn.init.zeros_(source.conv1.weight)
    assert not plan.apply(target).conv1.weight.any()


@pytest.mark.parametrize(
    ("source", "part"),
    [
        (3, "A source must be a torch.nn.Module, .* got int"),
        ({}, "got dict"),
        (nn.ReLU(), "no tensor"),
        (Path("missing.pth"), "'missing.pth' do not exist"),
    ],
)
def test_what_is_no_source_is_one_sentence(source: object, part: str) -> None:
    with pytest.raises(dmx.DmxError, match=part):
        dmx.plan_transfer(source, small())


def test_the_target_is_a_module_and_has_its_head() -> None:
    with pytest.raises(dmx.DmxError, match=r"target must be a torch.nn.Module, got dict"):
        dmx.plan_transfer(small(), {})
    with pytest.raises(dmx.DmxError, match=r"module of the target, got 'hed'. Did you mean 'head'"):
        dmx.plan_transfer(small(), small(), head_name="hed")
