"""Plan a transfer: from the names and shapes of two networks to what happens to each tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmx.transfer.channels import ChannelMap, ChannelMaps
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
from dmx.transfer.named import plan_named
from dmx.transfer.names import pair_names, with_class_layers
from dmx.transfer.options import TransferOptions
from dmx.transfer.plan import TransferPlan
from dmx.transfer.remarks import outline, remarks, warn
from dmx.transfer.tensors import KernelMismatchError, TensorPair, channel_rule, counterpart, initialized, plan_tensor
from dmx.transfer.unused import EXCLUDED, source_tensors, unused_notes
from dmx.transfer.values import EqualOutput, TensorPlan

_DEFAULTS = TransferOptions()


@dataclass(frozen=True)
class _Draft:
    """A plan in the making.

    Attributes:
        tensors: What happens to each tensor of the target.
        pairs: Layers that receive: (target layer, network, source layer).
        equal: Outputs that stay equal.
        notes: What is worth knowing.
        heads: Network and tensor of what the head would receive if it were asked for.
    """

    tensors: tuple[TensorPlan, ...]
    pairs: tuple[tuple[str, str, str], ...]
    equal: tuple[EqualOutput, ...] = ()
    notes: tuple[str, ...] = ()
    heads: frozenset[tuple[str, str]] = frozenset()


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
    target = target if pathways else with_class_layers(target, sources)
    draft = (_by_pathways if pathways else _by_names)(sources, target, options)
    heads = {layer.name for layer in target.layers if layer.is_head}
    check_head_received(any(name in heads for name, _, _ in draft.pairs), options)
    given = source_tensors(sources, draft.tensors, draft.heads, options)
    plan = TransferPlan(
        options=options,
        target=outline(target),
        sources=tuple(outline(network) for network in sources),
        pairs=draft.pairs,
        tensors=draft.tensors,
        source_tensors=given,
        equal=draft.equal,
        notes=(*draft.notes, *remarks(sources, target, options, draft.tensors), *unused_notes(given)),
    )
    return warn(plan, sources, target)


def _by_pathways(sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions) -> _Draft:
    pairing = pair_layers(sources, target, options)
    maps = ChannelMaps(target, pairing.counterparts, options)
    chosen = [pairing.counterparts[layer.name] for layer in target.layers if layer.name in pairing.selected]
    for pair in chosen:
        if pair.target.is_head:
            counts = (pair.source.out_channels, pair.target.out_channels)
            check_head(counts, pair.network, target=target, options=options)
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
            reason = EXCLUDED if layer.name in pairing.excluded else _why_not(layer, pair, options)
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
    scan = "in" in tensor.axes and pair.target.reads == () and pair.source.reads == ()
    rule = channel_rule(tensor.axes.index("in"), tensor, source, options) if scan else None
    tensors = TensorPair(
        layer=pair.target,
        tensor=tensor,
        network=pair.network.name,
        source_layer=pair.source,
        source=source,
        maps=axes,
        zero=options.extra == "zero-cross",
        rules=() if rule is None else (rule,),
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
                reason = EXCLUDED if tensor.name in pairing.excluded else _absent(layer, tensor, options)
                plans.append(initialized(layer, tensor, reason))
                continue
            try:
                plans.append(plan_named(layer, tensor, found, target=target, options=options))
            except KernelMismatchError as error:
                mismatches.append(str(error))
                continue
            if plans[-1].action != "initialized":
                layers[layer.name, found.network.name, found.layer.name] = None
    if mismatches:
        raise kernel_error(mismatches)
    return _Draft(tuple(plans), tuple(layers), notes=pairing.notes, heads=pairing.heads)


def _absent(layer: LayerSketch, tensor: TensorSketch, options: TransferOptions) -> str:
    if layer.is_head and options.head == "initialized":
        return "the head is new"
    if options.layers:
        return "its layer of the source is not asked for"
    return f"the source has no tensor of the name {tensor.name}"
