"""Kernels that are collapsed, grown and inflated."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dmx.errors import TransferError
from dmx.model.sketch import sketch_module
from dmx.transfer.apply import apply_plan
from dmx.transfer.kernels import kernel_steps
from dmx.transfer.options import TransferOptions
from dmx.transfer.planning import plan_transfer
from dmx.transfer.values import TensorPlan
from tests.transfer.networks import build, plan, section, transfer

ADAPT = TransferOptions(adapt_kernels=True)


def adapt(theirs: nn.Module, ours: nn.Module) -> TensorPlan:
    """Transfer between two single layers; a head follows them so that they are not taken for one."""
    before, after = (nn.ModuleDict({"layer": layer, "out": nn.Linear(2, 2)}) for layer in (theirs, ours))
    made = plan_transfer(sketch_module(before, name="a"), sketch_module(after, name="b"), ADAPT)
    apply_plan(made, {"a": before.state_dict()}, after.state_dict())
    return made.tensors[0]


def constant(layer: nn.Module, size: int, axes: int) -> Tensor:
    """Return what a layer gives for channels that are constant over the volume."""
    values = torch.tensor([0.7, -1.3]).view(1, 2, *[1] * axes)
    with torch.no_grad():
        return layer(values.expand(1, 2, *[size] * axes)).flatten(2)[:, :, 0]  # type: ignore[no-any-return]


def test_a_kernel_grows_by_zeros_about_its_center_and_computes_the_same() -> None:
    theirs, ours = nn.Conv3d(2, 3, 3), nn.Conv3d(2, 3, (5, 3, 5))
    entry = adapt(theirs, ours)
    assert entry.action == "adapted"
    assert entry.exact
    assert entry.rule == "kernel 3x3x3 to 5x3x5: axis 0 grown from 3 to 5 by zeros, axis 2 grown from 3 to 5 by zeros"
    assert torch.equal(ours.weight[:, :, 1:4, :, 1:4], theirs.weight)
    assert int(ours.weight.count_nonzero()) == int(theirs.weight.count_nonzero())
    volume = torch.randn(1, 2, 9, 9, 9)
    assert torch.allclose(ours(volume), theirs(volume)[:, :, 1:-1, :, 1:-1], atol=1e-5)


def test_a_kernel_that_grows_by_an_odd_number_shifts_and_is_not_exact() -> None:
    assert not adapt(nn.Conv3d(2, 3, 2), nn.Conv3d(2, 3, 3)).exact


@pytest.mark.parametrize("sizes", [(3, 1), (5, 3), (4, 2), (4, 3)])
def test_a_kernel_collapses_by_sum(sizes: tuple[int, int]) -> None:
    theirs, ours = nn.Conv3d(2, 3, sizes[0]), nn.Conv3d(2, 3, sizes[1])
    entry = adapt(theirs, ours)
    assert not entry.exact
    assert torch.allclose(ours.weight.sum((2, 3, 4)), theirs.weight.sum((2, 3, 4)), atol=1e-6)
    assert torch.allclose(constant(ours, 6, 3), constant(theirs, 6, 3), atol=1e-5)


def test_a_collapsed_kernel_keeps_its_inner_taps() -> None:
    theirs, ours = nn.Conv3d(1, 1, (5, 1, 1)), nn.Conv3d(1, 1, (3, 1, 1))
    adapt(theirs, ours)
    old, new = theirs.weight.flatten(), ours.weight.flatten()
    assert torch.allclose(new, torch.stack([old[0] + old[1], old[2], old[3] + old[4]]))


def test_two_dimensions_are_inflated_to_three_by_dividing() -> None:
    theirs, ours = nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, (3, 3, 5))
    entry = adapt(theirs, ours)
    assert "inflated along axis 2, divided by 5" in entry.rule
    assert not entry.exact
    assert torch.allclose(ours.weight, theirs.weight[..., None] / 5)
    assert torch.allclose(constant(ours, 6, 3), constant(theirs, 6, 2), atol=1e-5)


def test_inflating_by_one_is_exact() -> None:
    theirs, ours = nn.Conv2d(2, 3, 3), nn.Conv3d(2, 3, (3, 3, 1))
    assert adapt(theirs, ours).exact
    scan = torch.randn(1, 2, 6, 6, 4)
    slices = [functional.conv2d(scan[..., k], theirs.weight, theirs.bias) for k in range(4)]
    assert torch.allclose(ours(scan), torch.stack(slices, -1), atol=1e-5)


def test_three_dimensions_are_flattened_to_two_by_sum() -> None:
    theirs, ours = nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3)
    adapt(theirs, ours)
    assert torch.allclose(ours.weight, theirs.weight.sum(4))


def test_the_inserted_axis_is_the_one_without_which_the_sizes_agree() -> None:
    steps = kernel_steps((3, 1), (3, 5, 1))
    assert steps is not None
    assert [(step.kind, step.axis) for step in steps] == [("inflate", 1)]
    assert kernel_steps((3,), (3, 3, 3)) is None
    assert kernel_steps((3, 3), (3, 3)) == ()


def test_between_pathways_adapted_layers_are_reported_and_counted() -> None:
    theirs, ours = build(section(kernels=3), seed=1), build(section(kernels=(3, 5)), seed=2)
    made = transfer(theirs, ours, adapt_kernels=True)
    entry = next(tensor for tensor in made.tensors if tensor.name == "normal.block_2.conv.weight")
    assert (entry.action, entry.exact, entry.received) == ("adapted", True, 4 * 3 * 125)
    assert torch.equal(
        ours.get_parameter("normal.block_2.conv.weight")[:, :, 1:4, 1:4, 1:4],
        theirs.get_parameter("normal.block_2.conv.weight"),
    )
    assert "normal.block_2" not in {equal.layer for equal in made.equal}
    assert any("normal.block_2" in line and "adapted" in line for line in made.summary())
    with pytest.raises(TransferError, match="--adapt-kernels"):
        plan(section(kernels=3), section(kernels=(3, 5)))


def test_an_adapted_kernel_is_sliced_too() -> None:
    theirs, ours = build(section((3, 4), kernels=3), seed=1), build(section((5, 6), kernels=(3, 5)), seed=2)
    transfer(theirs, ours, adapt_kernels=True, extra="zero-cross")
    kernel = ours.get_parameter("normal.block_2.conv.weight")
    old = theirs.get_parameter("normal.block_2.conv.weight")
    assert torch.equal(kernel[:4, :3, 1:4, 1:4, 1:4], old)
    assert int(kernel[:4].count_nonzero()) == int(old.count_nonzero())
    assert (kernel[4:] != 0).all()
