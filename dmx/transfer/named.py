"""What happens to one tensor whose counterpart is known by its name alone."""

from collections.abc import Sequence
from dataclasses import replace

from dmx.transfer.channels import ChannelMap, by_name, prefix, scan_channels
from dmx.transfer.checks import check_head
from dmx.transfer.describe import Axis, LayerSketch, NetworkSketch, TensorSketch
from dmx.transfer.options import TransferOptions
from dmx.transfer.places import place_rule
from dmx.transfer.prefixes import NamedTensor
from dmx.transfer.tensors import TensorPair, channel_rule, initialized, plan_tensor
from dmx.transfer.values import AxisRule, TensorPlan


def plan_named(
    layer: LayerSketch, tensor: TensorSketch, found: NamedTensor, *, target: NetworkSketch, options: TransferOptions
) -> TensorPlan:
    """Return what happens to a tensor of a network without pathways.

    Only axes that are channels, by the type of the module, may differ in size; a table of places is interpolated.

    Args:
        layer: Layer of the target.
        tensor: Its tensor.
        found: The tensor that gives.
        target: The target.
        options: What was asked for.

    Raises:
        KernelMismatchError: The kernels differ and may or can not be adapted.
        TransferError: The rows of a head do not correspond.
    """
    source = _understood(found.tensor, tensor)
    places = None
    why = _why_not(tensor, source)
    if not why and "place" in tensor.axes:
        made = place_rule(tensor, source)
        why, places = (made, None) if isinstance(made, str) else ("", made)
    if why:
        kept = initialized(layer, tensor, why)
        return replace(kept, network=found.network.name, source=source.name, source_shape=source.shape)
    if layer.is_head:
        _check_head(tensor, source, found.network, target=target, options=options)
    scan = _scan_axis(layer, tensor, found.layer)
    rule = None if scan is None else channel_rule(scan, tensor, source, options)
    maps = _maps(tensor, source)
    if scan is not None and rule is None and options.channels == "pair" and options.match_channels == "name":
        _pair(maps, scan, (found.network.channels, target.channels), tensor=tensor, source=source)
    if layer.is_head:
        _pair_classes(maps, found.network.classes, target.classes, tensor=tensor, source=source, options=options)
    pair = TensorPair(
        layer=layer,
        tensor=tensor,
        network=found.network.name,
        source_layer=found.layer,
        source=source,
        maps=maps,
        rules=tuple(one for one in (places, rule) if isinstance(one, AxisRule)),
    )
    return plan_tensor(pair, adapt_kernels=options.adapt_kernels)


def _understood(source: TensorSketch, target: TensorSketch) -> TensorSketch:
    """Return a source's tensor with the target's axes where a file does not say what its own mean."""
    same = source.shape == target.shape or (source.meaning is None and len(source.shape) == len(target.shape))
    return replace(source, axes=target.axes) if same else source


def _why_not(tensor: TensorSketch, source: TensorSketch) -> str:
    """Return why a tensor cannot be received; empty: it can."""
    if any(one.meaning is not None and one.meaning.computed for one in (tensor, source)):
        return "the network computes it from its own sizes"
    channels = tensor.kernel or source.kernel or "in" in tensor.axes
    alike = tensor.axes == source.axes or bool(channels and "fixed" not in tensor.axes)
    sizes = zip(tensor.axes, tensor.shape, source.shape, strict=False)
    if alike and not any(axis == "fixed" and ours != theirs for axis, ours, theirs in sizes):
        return ""
    shapes = f"its shape is {list(tensor.shape)} here and {list(source.shape)} in the source"
    return f"{shapes}, and it has no channels in which they could differ"


def _check_head(
    tensor: TensorSketch,
    source: TensorSketch,
    network: NetworkSketch,
    *,
    target: NetworkSketch,
    options: TransferOptions,
) -> None:
    """Check that the rows of a head correspond."""
    for axis in _class_axes(tensor):
        if axis < len(source.shape):
            counts = (source.shape[axis], tensor.shape[axis])
            check_head(counts, network, target=target, options=options)


def _class_axes(tensor: TensorSketch) -> tuple[int, ...]:
    """Return the axes whose size follows the number of classes: those known to, else the channels out."""
    return tensor.by_class or tuple(index for index, axis in enumerate(tensor.axes) if axis == "out")


def _scan_axis(layer: LayerSketch, tensor: TensorSketch, source: LayerSketch) -> int | None:
    """Return the axis of a tensor that follows the channels of the scan: what a kernel, or a norm, reads of it."""
    if layer.reads != () and source.reads != ():
        return None
    followed: Axis = "in" if layer.in_channels else "out"
    return tensor.axes.index(followed) if followed in tensor.axes else None


def _maps(tensor: TensorSketch, source: TensorSketch) -> dict[Axis, ChannelMap]:
    sizes = dict(zip(source.axes, source.shape, strict=True))
    blocks = 1 if tensor.meaning is None else tensor.meaning.blocks
    return {
        axis: _by_block(sizes.get(axis, 0), size, blocks if axis == "out" else 1)
        for axis, size in zip(tensor.axes, tensor.shape, strict=True)
        if axis in {"in", "out"}
    }


def _by_block(source: int, target: int, blocks: int) -> ChannelMap:
    """Return the first channels that both have of each equal part, such as of query, key and value."""
    if source % blocks or target % blocks:
        return prefix(source, target)
    theirs, ours = source // blocks, target // blocks
    return {k * theirs + channel: k * ours + channel for k in range(blocks) for channel in range(min(theirs, ours))}


def _pair(
    maps: dict[Axis, ChannelMap],
    axis: int,
    names: tuple[Sequence[str], Sequence[str]],
    *,
    tensor: TensorSketch,
    source: TensorSketch,
) -> None:
    """Let an axis follow the channels of the scan by name, where both sides name all of them."""
    theirs, ours = names
    if (len(theirs), len(ours)) == (source.shape[axis], tensor.shape[axis]):
        maps[tensor.axes[axis]] = scan_channels(theirs, ours)


def _pair_classes(
    maps: dict[Axis, ChannelMap],
    theirs: Sequence[str],
    ours: Sequence[str],
    *,
    tensor: TensorSketch,
    source: TensorSketch,
    options: TransferOptions,
) -> None:
    """Let rows of a head follow the names of the classes, where they are asked to or both sides have the same ones."""
    named = by_name(theirs, ours)
    if not (options.classes_from == "names" or len(theirs) == len(ours) == len(named)):
        return
    for axis in _class_axes(tensor):
        if (len(theirs), len(ours)) == (source.shape[axis], tensor.shape[axis]):
            maps[tensor.axes[axis]] = named
