"""What happens to one tensor, once its counterpart and the channel maps are known."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dmx.transfer.channels import ChannelMap, runs_of
from dmx.transfer.describe import Axis, LayerSketch, TensorSketch
from dmx.transfer.kernels import kernel_steps, kernel_text
from dmx.transfer.options import TransferOptions
from dmx.transfer.places import place_text
from dmx.transfer.report import size_text
from dmx.transfer.values import Action, AxisRule, Run, TensorPlan

# Rules for statistics that both sides keep differently; `apply` knows what they do.
ROWS_MEAN = "mean of the rows"
WRITTEN_MEAN = "mean of the written rows"
ROWS_FILLED = "every row filled"
ROWS_REFILLED = "every row filled with the mean of the rows"
WRITTEN_REFILLED = "every row filled with the mean of the written rows"
RING_FULL = "all rows count as written"

# Part of the target → part of the source, where normalization by batch and by a ring of rows meet.
_STATISTICS = {
    "norm.running_mean": "norm.means",
    "norm.running_var": "norm.variances",
    "norm.num_batches_tracked": "norm.count",
    "norm.means": "norm.running_mean",
    "norm.variances": "norm.running_var",
    "norm.count": "norm.num_batches_tracked",
}


@dataclass(frozen=True)
class TensorPair:
    """A tensor of the target and the one it receives from.

    Attributes:
        layer: Layer of the target.
        tensor: Tensor of the target.
        network: Name of the source network.
        source_layer: Layer of the source.
        source: Tensor of the source.
        maps: Which channels correspond, by the axis of the target.
        zero: Whether weights from new to old channels become zero.
        rules: What is done to single axes, before all else.
    """

    layer: LayerSketch
    tensor: TensorSketch
    network: str
    source_layer: LayerSketch
    source: TensorSketch
    maps: Mapping[Axis, ChannelMap]
    zero: bool = False
    rules: tuple[AxisRule, ...] = ()


class KernelMismatchError(Exception):
    """Kernels of different sizes; the message says which. Collected into one error for all layers."""


def counterpart(part: str, source: LayerSketch) -> TensorSketch | None:
    """Return the tensor of a source layer for a part of the target's layer."""
    found = source.part(part) or (source.part(_STATISTICS[part]) if part in _STATISTICS else None)
    # The rows of a ring can be filled from a running mean that nobody counted.
    return source.part("norm.running_mean") if found is None and part == "norm.count" else found


def initialized(layer: LayerSketch, tensor: TensorSketch, reason: str) -> TensorPlan:
    """Return the plan of a tensor that stays as it is."""
    return TensorPlan(tensor.name, layer.name, tensor.shape, tensor.learned, "initialized", reason=reason)


def plan_tensor(pair: TensorPair, *, adapt_kernels: bool) -> TensorPlan:
    """Return what happens to a tensor that has a counterpart.

    Raises:
        KernelMismatchError: The kernels differ and may or can not be adapted.
    """
    tensor, source = pair.tensor, pair.source
    rule, exact = _rows_rule(pair)
    if not rule and (tensor.kernel != source.kernel or _channel_axes(tensor) != _channel_axes(source)):
        rule, exact = _kernel_rule(pair, adapt_kernels=adapt_kernels)
    texts = [axis_text(one) for one in pair.rules]
    rule, exact = ", ".join([*texts, *([rule] if rule else [])]), exact and all(is_exact(one) for one in pair.rules)
    sizes = zip(tensor.axes, tensor.shape, strict=True)
    parts = tuple(_part(index, axis, size, pair) for index, (axis, size) in enumerate(sizes))
    if any(runs == () for runs in parts):
        return initialized(pair.layer, tensor, f"{_empty(tensor, parts)} channel corresponds to one of the source")
    given = [
        size if runs is None else sum(run.length for run in runs)
        for size, runs in zip(tensor.shape, parts, strict=True)
    ]
    whole = all(runs is None for runs in parts)
    action: Action = "adapted" if rule else "copied" if whole else "sliced"
    return TensorPlan(
        name=tensor.name,
        layer=pair.layer.name,
        shape=tensor.shape,
        learned=tensor.learned,
        action=action,
        network=pair.network,
        source=source.name,
        source_layer=pair.source_layer.name,
        source_shape=source.shape,
        parts=parts,
        zeroed=pair.zero and len(_channel_axes(tensor)) > 1 and parts[1] is not None,
        rule=rule,
        exact=exact,
        received=math.prod(given),
        axis_rules=pair.rules,
    )


def channel_rule(axis: int, tensor: TensorSketch, source: TensorSketch, options: TransferOptions) -> AxisRule | None:
    """Return how the kernels of a layer that reads the scan become those of another number of channels, if asked to.

    As in timm (Wightman 2019), kernels are scaled by old over new channels: where all channels hold the same scan, the
    layer gives what it gave.

    Args:
        axis: The axis that follows the channels of the scan.
        tensor: Tensor of the target.
        source: Tensor of the source.
        options: What was asked for.
    """
    theirs, ours = _channels(source, tensor.axes[axis]), tensor.shape[axis]
    if options.channels == "pair" or not theirs or (options.channels == "repeat" and theirs == ours):
        return None
    return AxisRule(
        options.channels, axis, (theirs,), (ours,), scaled=bool(tensor.kernel) or "out" in tensor.axes[:axis]
    )


def axis_text(rule: AxisRule) -> str:
    """Return a rule for an axis as words."""
    if rule.kind == "places":
        return place_text(rule)
    (theirs,), (ours,) = rule.source, rule.target
    how = "repeated" if rule.kind == "repeat" else "averaged"
    scaled = f" and scaled by {theirs}/{ours}" if rule.scaled else ""
    return f"{theirs} input channel{'s' if theirs > 1 else ''} {how} for {ours}{scaled}"


def is_exact(rule: AxisRule) -> bool:
    """Return whether a rule keeps what the layer computes where all input channels hold the same scan."""
    (theirs, *_), (ours, *_) = rule.source, rule.target
    # Means of what a norm or slope holds are not what any channel went through.
    return (rule.kind == "mean" and rule.scaled) or (rule.kind == "repeat" and ours % theirs == 0)


def _channel_axes(tensor: TensorSketch) -> list[Axis]:
    return [axis for axis in tensor.axes if axis in {"in", "out"}]


def _empty(tensor: TensorSketch, parts: tuple[tuple[Run, ...] | None, ...]) -> str:
    axis = next(axis for axis, runs in zip(tensor.axes, parts, strict=True) if runs == ())
    return {"in": "no input", "out": "no output"}.get(axis, "no")


def _part(index: int, axis: Axis, size: int, pair: TensorPair) -> tuple[Run, ...] | None:
    """Return the channels of an axis that are received, None for all of them in their order."""
    if axis not in pair.maps:
        return None
    if any(rule.axis == index for rule in pair.rules):
        return None
    channels = pair.maps[axis]
    runs = runs_of(channels)
    source_size = _channels(pair.source, axis)
    return None if runs == (Run(0, 0, size),) and source_size == size else runs


def _channels(source: TensorSketch, axis: Axis) -> int:
    return next((size for size, own in zip(source.shape, source.axes, strict=True) if own == axis), 0)


def _rows_rule(pair: TensorPair) -> tuple[str, bool]:
    """Return the rule by which statistics become those of the other kind; an empty one where both are alike."""
    ours, theirs = pair.tensor.axes[:1] == ("row",), pair.source.axes[:1] == ("row",)
    written = pair.source_layer.settings.get("statistics") == "written rows"
    if ours and theirs:
        if pair.tensor.shape[0] == pair.source.shape[0]:
            return "", True
        return WRITTEN_REFILLED if written else ROWS_REFILLED, True
    if theirs:
        return WRITTEN_MEAN if written else ROWS_MEAN, True
    if ours:
        return ROWS_FILLED, True
    return (RING_FULL, True) if _ring_is_filled(pair) else ("", True)


def _ring_is_filled(pair: TensorPair) -> bool:
    """Return whether this is the row counter of a ring whose rows a rule fills."""
    ours, theirs = pair.layer.part("norm.means"), pair.source_layer.part("norm.means")
    if pair.tensor.part != "norm.count" or ours is None:
        return False
    return theirs is None or theirs.shape[0] != ours.shape[0]


def _kernel_rule(pair: TensorPair, *, adapt_kernels: bool) -> tuple[str, bool]:
    source, target = pair.source.kernel, pair.tensor.kernel
    alike = _channel_axes(pair.tensor) == _channel_axes(pair.source)
    steps = kernel_steps(source, target) if alike else None
    if steps is None or not adapt_kernels:
        raise KernelMismatchError(
            f"{pair.tensor.name} has {_size(pair.tensor)} where {pair.source.name} has {_size(pair.source)}"
            + (" (cannot be adapted)" if steps is None else "")
        )
    return kernel_text(steps, source, target), all(step.exact for step in steps)


def _size(tensor: TensorSketch) -> str:
    return size_text(tensor.kernel) if tensor.kernel else f"the shape {list(tensor.shape)}"
