"""Weights of the source that find no place, and layers that are left out."""

import pytest
import torch
from torch import Tensor, nn

from dmx.errors import TransferError
from dmx.model.sketch import sketch_module
from dmx.transfer.apply import apply_plan
from dmx.transfer.options import MapRule, TransferOptions
from dmx.transfer.picture import mapping_html
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer
from tests.transfer.networks import origins, section, sketch, source


class Block(nn.Module):
    """A convolution with what a source may have and a target lacks: bias, affine norm, attention."""

    def __init__(self, width: int, *, rich: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, padding=1, bias=rich)
        self.norm = nn.InstanceNorm3d(width, affine=rich)
        self.attn = nn.Conv3d(width, 1, 1) if rich else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return x if self.attn is None else x * torch.sigmoid(self.attn(x))


def network(*, rich: bool, stages: int = 2) -> nn.Sequential:
    blocks = nn.ModuleDict({"stages": nn.Sequential(*(Block(4, rich=rich) for _ in range(stages)))})
    return nn.Sequential(nn.Conv3d(1, 4, 1), blocks, nn.Conv3d(4, 2, 1))


def planned(theirs: nn.Module, ours: nn.Module, options: TransferOptions | None = None) -> TransferPlan:
    return plan_transfer(sketch_module(theirs, name="a"), sketch_module(ours, name="b"), options or TransferOptions())


def test_a_lost_bias_norm_and_attention_are_a_warning() -> None:
    plan = planned(network(rich=True), network(rich=False))
    lost = {tensor.name.removeprefix("1.stages.") for tensor in plan.unused}
    parts = ("conv.bias", "norm.weight", "norm.bias", "attn.weight", "attn.bias")
    assert lost == {f"{stage}.{part}" for stage in (0, 1) for part in parts}
    [warning] = [one for one in plan.warnings if "found no place" in one]
    assert warning.startswith("10 tensors of a found no place although the rest of their blocks is received")
    assert "1.stages.0.conv.bias, " in warning
    assert str(plan).splitlines()[-1] == (
        "872 of 882 parameters received (98.9%); 34 of the source's find no place here"
    )
    rows = {row["source"]: row for row in plan.rows() if row["action"] == "unused"}
    assert rows["1.stages.1.attn.bias"]["reason"] == "no place here"
    assert rows["2.weight"]["reason"] == "the head is not asked for"
    assert plan.as_dict()["unused"] == 34
    assert TransferPlan.from_dict(plan.as_dict()) == plan
    page = mapping_html(plan)
    assert "found no place although" in page
    assert "34 of the source&#x27;s find no place here" in page


def test_all_received_and_nothing_lost_says_so_as_before() -> None:
    plan = planned(network(rich=True), network(rich=True), TransferOptions(head="copy"))
    assert str(plan).splitlines()[-1].endswith("parameters received (100.0%)")
    assert not plan.unused
    assert not plan.warnings


def test_a_further_stage_is_told_without_a_warning() -> None:
    plan = planned(network(rich=True, stages=3), network(rich=True))
    assert "Not used of a: 3 layers, 449 parameters (1.stages.2.conv, 1.stages.2.norm, 1.stages.2.attn)." in plan.notes
    assert not plan.warnings


def test_what_was_not_asked_for_is_not_lost() -> None:
    plan = planned(network(rich=True), network(rich=True), TransferOptions(layers=("0",)))
    assert not plan.unused
    assert {row["reason"] for row in plan.rows() if row["action"] == "unused"} >= {"its layer is not asked for"}


def test_plans_of_old_runs_are_still_read() -> None:
    values = planned(network(rich=True), network(rich=False)).as_dict()
    values["options"] = {key: value for key, value in values["options"].items() if key not in ("exclude", "channels")}
    for tensor in values["tensors"]:
        del tensor["axis_rules"]
    old = ("network", "name", "layer", "shape", "used")
    values["source_tensors"] = [{key: tensor[key] for key in old} for tensor in values["source_tensors"]]
    assert TransferPlan.from_dict(values).received == 872


@pytest.mark.parametrize("excluded", [("1.stages.0.conv",), ("1.stages.0.c*",), (2,)])
def test_an_excluded_layer_stays_as_initialized(excluded: tuple[int | str, ...]) -> None:
    theirs, ours = network(rich=True), network(rich=True)
    before = ours.state_dict()["1.stages.0.conv.weight"].clone()
    plan = planned(theirs, ours, TransferOptions(exclude=excluded))
    apply_plan(plan, {"a": theirs.state_dict()}, ours.state_dict())
    assert torch.equal(ours.state_dict()["1.stages.0.conv.weight"], before)
    assert {tensor.reason for tensor in plan.tensors if tensor.layer == "1.stages.0.conv"} == {"excluded"}
    assert not plan.warnings
    assert not plan.unused
    whole = planned(theirs, ours, TransferOptions(exclude=("1.stages",)))
    assert set(origins(whole)) == {"0"}
    assert not whole.unused


def test_excluding_is_what_the_error_about_kernels_advises() -> None:
    more = [nn.Sequential(nn.Conv3d(1, 2, a), nn.Conv3d(2, 2, b), nn.Conv3d(2, 2, 1)) for a, b in ((3, 3), (5, 1))]
    with pytest.raises(TransferError, match="leave these layers out with --exclude"):
        planned(*more)
    with pytest.raises(TransferError, match=r"0.weight has 5x5x5 where 0.weight has 3x3x3\. "):
        planned(*more, TransferOptions(exclude=("1",)))
    with pytest.raises(TransferError, match="got nowhere, which neither network has"):
        planned(*more, TransferOptions(exclude=("nowhere",)))


def test_layers_of_pathways_are_excluded_and_chosen_by_depth_or_name() -> None:
    theirs, ours = source(section((3, 4))), sketch(section((3, 4)))
    without = origins(plan_transfer(theirs, ours, TransferOptions(exclude=(2, "fc.*"))))
    assert set(without) == {"normal.block_1", "subsampled_1.block_1"}
    named = origins(plan_transfer(theirs, ours, TransferOptions(layers=("normal.*", 3), exclude=("normal.block_2",))))
    assert set(named) == {"normal.block_1", "fc.block_1"}
    deeper = sketch(section((3, 4, 4)))
    with pytest.raises(TransferError, match="or leave layers out with --exclude"):
        plan_transfer(theirs, deeper)
    assert plan_transfer(theirs, deeper, TransferOptions(exclude=("*.block_3",))).received
    with pytest.raises(TransferError, match="got 9, which neither network has"):
        plan_transfer(theirs, ours, TransferOptions(exclude=(9,)))
    with pytest.raises(TransferError, match=r"names of layers that have a counterpart, got normal\.blok"):
        plan_transfer(theirs, ours, TransferOptions(layers=("normal.blok",)))


def test_a_rule_does_not_undo_an_exclusion() -> None:
    options = TransferOptions(map=(MapRule("*", "*"),), exclude=("normal.block_1",))
    made = origins(plan_transfer(source(section()), sketch(section()), options))
    assert "normal.block_1" not in made
    assert "head" not in made
