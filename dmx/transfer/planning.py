"""Plan a transfer: from the names and shapes of two networks to what happens to each tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dmx.transfer.channels import ChannelMap, ChannelMaps, by_name, prefix
from dmx.transfer.checks import (
    check_head,
    check_head_received,
    check_sources,
    kernel_error,
    require_exact,
    require_known_joins,
)
from dmx.transfer.describe import Axis, LayerSketch, NetworkSketch, TensorSketch
from dmx.transfer.exactness import differences, equal_outputs
from dmx.transfer.match import LayerPair, Pairing, pair_layers
from dmx.transfer.names import NamedTensor, pair_names
from dmx.transfer.options import TransferOptions
from dmx.transfer.plan import TransferPlan
from dmx.transfer.remarks import outline, remarks, warn
from dmx.transfer.tensors import KernelMismatchError, TensorPair, counterpart, initialized, plan_tensor
from dmx.transfer.values import EqualOutput, SourceTensor, TensorPlan

_DEFAULTS = TransferOptions()


@dataclass(frozen=True)
class _Draft:
    """A plan in the making.

    Attributes:
        tensors: What happens to each tensor of the target.
        pairs: Layers that receive: (target layer, network, source layer).
        equal: Outputs that stay equal.
        notes: What is worth knowing.
    """

    tensors: tuple[TensorPlan, ...]
    pairs: tuple[tuple[str, str, str], ...]
    equal: tuple[EqualOutput, ...] = ()
    notes: tuple[str, ...] = ()


def plan_transfer(
    source: NetworkSketch | Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions = _DEFAULTS
) -> TransferPlan:
    """Return what each tensor of the target receives; no weight is read.

    Networks with pathways are paired by pathway and position, all others by the names of their tensors.

    Args:
        source: The network that gives; with rules also several, each with its own name.
        target: The network that receives.
        options: What to transfer, and how.

    Raises:
        TransferError: The networks do not fit in the way that is asked for, or nothing would be transferred.
    """
    sources = (source,) if isinstance(source, NetworkSketch) else tuple(source)
    check_sources(sources, options)
    pathways = bool(target.pathways) and all(network.pathways for network in sources)
    draft = (_by_pathways if pathways else _by_names)(sources, target, options)
    heads = {layer.name for layer in target.layers if layer.is_head}
    check_head_received(any(name in heads for name, _, _ in draft.pairs), options)
    used = {(tensor.network, tensor.source) for tensor in draft.tensors if tensor.action != "initialized"}
    plan = TransferPlan(
        options=options,
        target=outline(target),
        sources=tuple(outline(network) for network in sources),
        pairs=draft.pairs,
        tensors=draft.tensors,
        source_tensors=tuple(
            SourceTensor(network.name, tensor.name, layer.name, tensor.shape, (network.name, tensor.name) in used)
            for network in sources
            for layer in network.layers
            for tensor in layer.tensors
        ),
        equal=draft.equal,
        notes=(*draft.notes, *remarks(sources, target, options, draft.tensors)),
    )
    return warn(plan, sources, target)


def _by_pathways(sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions) -> _Draft:
    pairing = pair_layers(sources, target, options)
    maps = ChannelMaps(target, pairing.counterparts, options)
    chosen = [pairing.counterparts[layer.name] for layer in target.layers if layer.name in pairing.selected]
    for pair in chosen:
        if pair.target.is_head:
            check_head(pair.target, pair.network, pair.source, target=target, options=options)
    if options.extra == "zero-cross":
        require_exact(chosen, maps)
    tensors = _plan_layers(target, pairing, maps, options)
    equal = equal_outputs(target, pairing, maps, {tensor.name: tensor for tensor in tensors})
    pairs = tuple((pair.target.name, pair.network.name, pair.source.name) for pair in chosen)
    return _Draft(tensors, pairs, equal, tuple(differences(chosen, pairing, target)))


def _plan_layers(
    target: NetworkSketch, pairing: Pairing, maps: ChannelMaps, options: TransferOptions
) -> tuple[TensorPlan, ...]:
    plans: list[TensorPlan] = []
    mismatches: list[str] = []
    for layer in target.layers:
        pair = pairing.counterparts.get(layer.name)
        if pair is None or layer.name not in pairing.selected:
            reason = _why_not(layer, pair, options)
            plans += [initialized(layer, tensor, reason) for tensor in layer.tensors]
            continue
        axes: dict[Axis, ChannelMap] = {"in": maps.input(pair), "out": maps.output(pair)}
        for tensor in layer.tensors:
            try:
                plans.append(_plan_part(pair, tensor, axes, options))
            except KernelMismatchError as error:
                mismatches.append(str(error))
    if mismatches:
        raise kernel_error(mismatches)
    return tuple(plans)


def _why_not(layer: LayerSketch, pair: LayerPair | None, options: TransferOptions) -> str:
    if layer.is_head:
        return "the head is new"
    if pair is None:
        return "the source has no such layer"
    return "not named by a rule" if not options.layers else f"depth {pair.source.depth} of the source is not asked for"


def _plan_part(
    pair: LayerPair, tensor: TensorSketch, axes: Mapping[Axis, ChannelMap], options: TransferOptions
) -> TensorPlan:
    """Return what happens to one tensor of a layer that receives."""
    source = counterpart(tensor.part, pair.source)
    if source is None:
        if tensor.kernel:
            theirs = ", ".join(part.part for part in pair.source.tensors if part.kernel)
            raise KernelMismatchError(f"{tensor.name} has no counterpart in {pair.source.name}, which has {theirs}")
        return initialized(pair.target, tensor, f"{pair.source.name} of the source has no {tensor.part}")
    tensors = TensorPair(
        layer=pair.target,
        tensor=tensor,
        network=pair.network.name,
        source_layer=pair.source,
        source=source,
        maps=axes,
        zero=options.extra == "zero-cross",
    )
    return plan_tensor(tensors, adapt_kernels=options.adapt_kernels)


def _by_names(sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions) -> _Draft:
    pairing = pair_names(sources, target, options)
    if options.extra == "zero-cross":
        require_known_joins(pairing.pairs, target)
    plans: list[TensorPlan] = []
    mismatches: list[str] = []
    layers: dict[tuple[str, str, str], None] = {}
    for layer in target.layers:
        for tensor in layer.tensors:
            found = pairing.pairs.get(tensor.name)
            if found is None:
                reason = "the head is new" if layer.is_head else _absent(tensor, options)
                plans.append(initialized(layer, tensor, reason))
                continue
            layers[layer.name, found.network.name, found.layer.name] = None
            if layer.is_head:
                check_head(layer, found.network, found.layer, target=target, options=options)
            try:
                plans.append(_plan_named(layer, tensor, found, target=target, options=options))
            except KernelMismatchError as error:
                mismatches.append(str(error))
    if mismatches:
        raise kernel_error(mismatches)
    return _Draft(tuple(plans), tuple(layers), notes=pairing.notes)


def _absent(tensor: TensorSketch, options: TransferOptions) -> str:
    if options.layers:
        return "its layer of the source is not asked for"
    return f"the source has no tensor of the name {tensor.name}"


def _plan_named(
    layer: LayerSketch, tensor: TensorSketch, found: NamedTensor, *, target: NetworkSketch, options: TransferOptions
) -> TensorPlan:
    """Return what happens to a tensor whose layer is known by its name alone."""
    source = found.tensor
    if source.shape == tensor.shape:
        # A file does not say what its axes mean; a tensor of the same name and shape means the same.
        source = replace(source, axes=tensor.axes)
    sizes = dict(zip(source.axes, source.shape, strict=True))
    maps: dict[Axis, ChannelMap] = {
        axis: prefix(sizes.get(axis, 0), size)
        for axis, size in zip(tensor.axes, tensor.shape, strict=True)
        if axis in {"in", "out"}
    }
    theirs, ours = found.network, target
    names = theirs.channels and ours.channels and options.match_channels == "name"
    if names and "in" in maps and (layer.reads == () or found.layer.reads == ()):
        maps["in"] = by_name(theirs.channels, ours.channels)
    reordered = set(theirs.classes) == set(ours.classes) or options.classes_from == "names"
    if layer.is_head and theirs.classes and reordered and tensor.shape[:1] == (len(ours.classes),):
        maps["out"] = by_name(theirs.classes, ours.classes)
    pair = TensorPair(
        layer=layer,
        tensor=tensor,
        network=theirs.name,
        source_layer=found.layer,
        source=source,
        maps=maps,
    )
    return plan_tensor(pair, adapt_kernels=options.adapt_kernels)
