"""Carry out a plan: the only lines that change a network."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dmx.errors import TransferError
from dmx.transfer.finite import listed, not_finite
from dmx.transfer.kernels import KernelStep, kernel_steps
from dmx.transfer.places import MODES
from dmx.transfer.plan import TransferPlan
from dmx.transfer.tensors import (
    RING_FULL,
    ROWS_FILLED,
    ROWS_MEAN,
    ROWS_REFILLED,
    WRITTEN_MEAN,
    WRITTEN_REFILLED,
)
from dmx.transfer.values import AxisRule, TensorPlan

# A kernel's first axes are its channels out and in.
_CHANNEL_AXES = 2


class TensorReader(Protocol):
    """Whatever gives a tensor by name: a dictionary, or a file that reads one tensor at a time."""

    def __getitem__(self, name: str, /) -> Tensor:
        """Return a tensor."""
        ...


@torch.no_grad()
def apply_plan(plan: TransferPlan, sources: Mapping[str, TensorReader], target_state: Mapping[str, Tensor]) -> None:
    """Write what the plan says into the tensors of the target, in place; everything else stays as it is.

    Args:
        plan: The plan.
        sources: Tensors of each source, by the network's name in the plan.
        target_state: The target's state dict, whose tensors are the network's own.

    Raises:
        TransferError: A tensor is missing, has another shape than planned, or holds what is no number; the target is
            changed only after all of its own tensors have been checked.
    """
    for entry in plan.tensors:
        shape = tuple(target_state[entry.name].shape) if entry.name in target_state else None
        if shape != entry.shape:
            raise TransferError(
                f"The plan is for another network: {entry.name} must have the shape {list(entry.shape)}, "
                f"got {'no such tensor' if shape is None else list(shape)}. Plan the transfer again."
            )
    _require_finite(plan, sources)
    for entry in plan.tensors:
        if entry.action != "initialized":
            _write(entry, sources[entry.network], target_state)


def _require_finite(plan: TransferPlan, sources: Mapping[str, TensorReader]) -> None:
    """Require numbers in all that is received.

    Raises:
        TransferError: A tensor holds NaN or infinite values.
    """
    given = {(entry.network, entry.source) for entry in plan.tensors if entry.action != "initialized"}
    bad = [(network, name) for network, name in sorted(given) if not_finite({name: sources[network][name]})]
    if bad:
        names = listed([name for _, name in bad])
        raise TransferError(
            f"{len(bad)} tensors of '{bad[0][0]}' hold NaN or infinite values, as after a training that diverged: "
            f"{names}. Take an earlier checkpoint or another file, or leave their layers out with --exclude."
        )


def _write(entry: TensorPlan, reader: TensorReader, target_state: Mapping[str, Tensor]) -> None:
    target, source = target_state[entry.name], reader[entry.source]
    if tuple(source.shape) != entry.source_shape:
        raise TransferError(
            f"The plan is for another source: {entry.source} must have the shape {list(entry.source_shape)}, "
            f"got {list(source.shape)}. Plan the transfer again."
        )
    if entry.rule == RING_FULL:
        target.fill_(len(target_state[f"{entry.name.removesuffix('count')}means"]))
        return
    value = _adapt(entry, source, reader).to(device=target.device, dtype=target.dtype)
    last = max((axis for axis, runs in enumerate(entry.parts) if runs is not None), default=None)
    if last is None:
        target.copy_(value)
        return
    places = []
    for axis, runs in enumerate(entry.parts[: last + 1]):
        if runs is not None:
            value = value.index_select(axis, _indices([(run.source, run.length) for run in runs], value))
        ours = [(0, entry.shape[axis])] if runs is None else [(run.target, run.length) for run in runs]
        places.append(_indices(ours, target))
    if entry.zeroed:
        new = torch.ones(entry.shape[1], dtype=torch.bool, device=target.device).index_fill_(0, places[1], value=False)
        target[torch.meshgrid(places[0], new.nonzero()[:, 0], indexing="ij")] = 0.0
    target[torch.meshgrid(*places, indexing="ij")] = value


def _indices(runs: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Return the channels of runs, given as first channel and length."""
    return torch.cat([torch.arange(first, first + length, device=like.device) for first, length in runs])


def _adapt(entry: TensorPlan, source: Tensor, reader: TensorReader) -> Tensor:
    """Return the source's values with the axes of the target, its channels not yet chosen."""
    for rule in entry.axis_rules:
        source = _interpolated(source, rule) if rule.kind == "places" else _for_channels(source, rule)
    if any(rule.kind == "places" for rule in entry.axis_rules):
        return source
    if entry.rule in {ROWS_MEAN, ROWS_REFILLED}:
        source = source.mean(0)
    elif entry.rule in {WRITTEN_MEAN, WRITTEN_REFILLED}:
        count = int(reader[f"{entry.source.rpartition('.')[0]}.count"])
        source = source[: min(max(count, 1), len(source))].mean(0)
    elif entry.rule and entry.rule != ROWS_FILLED:
        for step in kernel_steps(source.shape[_CHANNEL_AXES:], entry.shape[_CHANNEL_AXES:]) or ():
            source = _step(source, step, step.axis + _CHANNEL_AXES)
    if entry.rule in {ROWS_FILLED, ROWS_REFILLED, WRITTEN_REFILLED}:
        source = source.expand(entry.shape[0], -1)
    return source


def _interpolated(table: Tensor, rule: AxisRule) -> Tensor:
    """Return a table for another grid; places are the middles of equal cells, as where the rule was published."""
    rows = table.movedim(rule.axis, -1)
    others, lead = rows.shape[:-1], rows[..., : rule.lead]
    grid = rows[..., rule.lead :].reshape(1, -1, *rule.source).float()
    made = functional.interpolate(grid, size=rule.target, mode=MODES[len(rule.target)], align_corners=False)
    made = made.reshape(*others, -1).to(table.dtype)
    return torch.cat([lead, made], dim=-1).movedim(-1, rule.axis)


def _for_channels(tensor: Tensor, rule: AxisRule) -> Tensor:
    """Return a tensor for another number of input channels; a kernel (not a norm) is scaled to keep the sum."""
    (theirs,), (ours,) = rule.source, rule.target
    if rule.kind == "mean":
        tensor = tensor.mean(rule.axis, keepdim=True)
    chosen = torch.arange(ours, device=tensor.device) % tensor.shape[rule.axis]
    repeated = tensor.index_select(rule.axis, chosen)
    return repeated * (theirs / ours) if rule.scaled else repeated


def _step(kernel: Tensor, step: KernelStep, axis: int) -> Tensor:
    """Return a kernel with one axis changed."""
    if step.kind == "inflate":
        return kernel.unsqueeze(axis).repeat_interleave(step.target, axis) / step.target
    if step.kind == "flatten":
        return kernel.sum(axis)
    before = abs(step.target - step.source) // 2
    if step.kind == "grow":
        shape = list(kernel.shape)
        shape[axis] = step.target
        grown = kernel.new_zeros(shape)
        grown.narrow(axis, before, step.source).copy_(kernel)
        return grown
    # Outer taps go to the outermost that stay, so that constant inputs give what they gave.
    place = (torch.arange(step.source, device=kernel.device) - before).clamp(0, step.target - 1)
    shape = list(kernel.shape)
    shape[axis] = step.target
    return kernel.new_zeros(shape).index_add_(axis, place, kernel)
