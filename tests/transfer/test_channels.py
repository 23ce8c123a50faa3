"""Input channels that are named otherwise, or are another number."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from dmx.config.model import ModelSection
from dmx.errors import TransferError
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.model.sketch import sketch_module, sketch_network
from dmx.transfer.apply import apply_plan
from dmx.transfer.options import TransferOptions
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer
from tests.transfer.networks import build, patches, section, transfer

UNET = ModelSection(name="UNet", arguments={"channels": [2, 4], "strides": [2], "num_res_units": 1})
FIRST = "network.model.0.conv.unit0.conv.weight"


def unet(channels: int, seed: int) -> Network:
    return build_network(UNET, num_channels=channels, num_classes=2, seed=seed).eval()


def moved(theirs: Network, ours: Network, names: Sequence[tuple[str, ...]], **options: Any) -> TransferPlan:
    plan = plan_transfer(
        sketch_network(theirs, name="a", channels=names[0]),
        sketch_network(ours, name="b", channels=names[1]),
        TransferOptions(**options),
    )
    apply_plan(plan, {"a": theirs.state_dict()}, ours.state_dict())
    return TransferPlan.from_dict(plan.as_dict())


@pytest.mark.parametrize("network", [unet, lambda channels, seed: build(section(), seed=seed, num_channels=channels)])
def test_case_blanks_and_punctuation_do_not_make_another_channel(network: Any) -> None:
    theirs, ours = network(2, 0), network(2, 1)
    plan = moved(theirs, ours, (("T1-w", "FLAIR"), ("flair", "t1 w")))
    name = FIRST if network is unet else "normal.block_1.conv.weight"
    assert torch.equal(ours.state_dict()[name], theirs.state_dict()[name][:, [1, 0]])
    assert any("FLAIR = flair, T1-w = t1 w by name" in note for note in plan.notes)
    assert not plan.warnings


def test_equally_many_channels_of_no_common_name_are_taken_in_order_and_that_is_a_warning() -> None:
    theirs, ours = unet(1, 0), unet(1, 1)
    plan = moved(theirs, ours, (("MRI",), ("CT",)))
    assert torch.equal(ours.state_dict()[FIRST], theirs.state_dict()[FIRST])
    assert any("taken in order, as with --match-channels position: MRI → CT" in warning for warning in plan.warnings)


def test_first_layers_that_receive_nothing_are_named() -> None:
    plan = moved(unet(1, 0), unet(2, 1), (("ct",), ("t1", "t2")))
    [empty] = [warning for warning in plan.warnings if "keep random weights" in warning]
    assert empty == ("2 layers of b keep random weights: network.model.0.conv.unit0.conv, network.model.0.residual.")
    assert any("--channels repeat or mean" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("how", "counts", "exact"),
    [("repeat", (1, 3), True), ("repeat", (3, 1), False), ("mean", (3, 1), True), ("mean", (2, 3), True)],
)
@pytest.mark.parametrize("network", [unet, lambda channels, seed: build(section(), seed=seed, num_channels=channels)])
def test_another_number_of_channels_keeps_the_response(
    network: Any, how: Any, counts: tuple[int, int], exact: bool
) -> None:
    theirs, ours = network(counts[0], 0), network(counts[1], 1)
    plan = moved(theirs, ours, ((), ()), channels=how, head="copy")
    adapted = [tensor for tensor in plan.tensors if tensor.action == "adapted"]
    word = "repeated" if how == "repeat" else "averaged"
    text = f"{counts[0]} input channel{'s' if counts[0] > 1 else ''} {word} for {counts[1]}"
    assert {tensor.rule for tensor in adapted} - {text} == {f"{text} and scaled by {counts[0]}/{counts[1]}"}
    assert exact in {tensor.exact for tensor in adapted}
    # A norm before the kernel is averaged, which is not exact.
    kept = all(tensor.exact for tensor in adapted)
    assert not plan.equal
    assert plan.share == 1
    one = patches(network(1, 0))
    with torch.no_grad():
        old, new = (net([patch.expand(-1, net.num_channels, -1, -1, -1) for patch in one]) for net in (theirs, ours))
    same = torch.allclose(old, new, atol=1e-5)
    assert same == kept


def test_what_cannot_be_filled_is_refused() -> None:
    theirs, ours = build(section(), seed=0), build(section(), seed=1, num_channels=3)
    with pytest.raises(TransferError, match="Leave one of them out"):
        transfer(theirs, ours, channels="repeat", extra="zero-cross")
    plain = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, 2, 1))
    with pytest.raises(TransferError, match="--channels mean needs to know which layers read the scan"):
        plan_transfer(sketch_module(plain, name="a"), sketch_module(plain, name="b"), TransferOptions(channels="mean"))
