"""Outlines of networks, and what is worth saying about a transfer."""

from collections.abc import Sequence
from dataclasses import replace

from dmx.errors import TransferError
from dmx.transfer.channels import by_name
from dmx.transfer.describe import LayerSketch, NetworkSketch
from dmx.transfer.options import TransferOptions
from dmx.transfer.plan import TransferPlan
from dmx.transfer.unused import EXCLUDED, some, unused_warnings
from dmx.transfer.values import LayerOutline, NetworkOutline, TensorPlan


def outline(network: NetworkSketch) -> NetworkOutline:
    """Return what a picture shows of a network."""
    layers = tuple(_layer(layer) for layer in network.layers)
    return NetworkOutline(network.name, network.channels, network.classes, layers)


def _layer(layer: LayerSketch) -> LayerOutline:
    kernels = [tensor.kernel for tensor in layer.tensors if tensor.kernel]
    # A kernel in factors is as large as its factors together.
    same = len({len(kernel) for kernel in kernels}) == 1
    largest = tuple(max(sizes) for sizes in zip(*kernels, strict=True)) if same else kernels[0] if kernels else ()
    return LayerOutline(
        name=layer.name,
        pathway=layer.pathway,
        position=layer.position,
        depth=layer.depth,
        is_head=layer.is_head,
        channels=layer.out_channels,
        kernel=largest,
        parameters=layer.parameters,
    )


def remarks(
    sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions, tensors: Sequence[TensorPlan]
) -> tuple[str, ...]:
    """Return which channels and classes correspond, and which pathways of the sources are not used."""
    notes = []
    heads = {layer.name for layer in target.layers if layer.is_head}
    for source in sources:
        if options.channels != "pair":
            notes += _for_all_channels(source, target, options)
        elif options.match_channels == "name" and source.channels and target.channels and _known(source, target):
            notes += _names("Input channels", source, source.channels, target.channels)
        if any(tensor.layer in heads and tensor.network == source.name for tensor in tensors):
            notes += _classes(source, target, options)
        if source.prefix:
            notes.append(f"Names of {source.name} were compared without their prefix '{source.prefix}'.")
        used = {tensor.source_layer for tensor in tensors if tensor.network == source.name}
        for pathway in source.pathways:
            if not used & {layer.name for layer in source.pathway(pathway)}:
                notes.append(f"Pathway '{pathway}' of {source.name} is not used.")
    return tuple(notes)


def _classes(source: NetworkSketch, target: NetworkSketch, options: TransferOptions) -> list[str]:
    """Return how the rows of a copied head correspond, where the names of the classes differ."""
    theirs, ours = source.classes, target.classes
    same = len(theirs) == len(ours) == len(by_name(theirs, ours))
    if not theirs or not ours or options.classes_from == "names" or same:
        return _names("Classes", source, theirs, ours) if theirs and ours else []
    pairs = [f"{ours_name} from {name}" for name, ours_name in zip(theirs, ours, strict=False) if name != ours_name]
    return [f"Classes from {source.name} by position: {', '.join(pairs)}."]


def _for_all_channels(source: NetworkSketch, target: NetworkSketch, options: TransferOptions) -> list[str]:
    """Return how the channels of the scan become those of the target, all alike."""
    if not _known(source, target):
        raise TransferError(
            f"--channels {options.channels} needs to know which layers read the scan, and neither {source.name} nor "
            f"{target.name} says so. Leave it out."
        )
    how = "taken again and again" if options.channels == "repeat" else "averaged"
    here = f"{len(target.channels)} here" if target.channels else "those here"
    return [f"Input channels of {source.name} are {how} for {here}; their kernels are scaled to keep the sum."]


def _known(source: NetworkSketch, target: NetworkSketch) -> bool:
    """Return whether the layers that read the scan are known, so that its channels can be told apart."""
    return any(layer.reads == () for network in (source, target) for layer in network.layers)


def _names(what: str, source: NetworkSketch, theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Return a sentence about pairs by name, nothing where both sides have the same names in the same order."""
    if tuple(theirs) == tuple(ours):
        return []
    named = by_name(theirs, ours)
    if not named and len(theirs) == len(ours) and what == "Input channels":
        return []
    here = {index: name for name, index in named.items()}
    both = [
        name if theirs[here[index]] == name else f"{theirs[here[index]]} = {name}"
        for index, name in enumerate(ours)
        if index in here
    ]
    new = [name for index, name in enumerate(ours) if index not in here]
    unused = [name for index, name in enumerate(theirs) if index not in named]
    parts = [f"{', '.join(both)} by name"] if both else ["none in common"]
    parts += [f"new: {', '.join(new)}"] if new else []
    parts += [f"not used: {', '.join(unused)}"] if unused else []
    return [f"{what} from {source.name}: {'; '.join(parts)}."]


def warn(plan: TransferPlan, sources: Sequence[NetworkSketch], target: NetworkSketch) -> TransferPlan:
    """Return the plan with warnings.

    Raises:
        TransferError: Nothing is transferred.
    """
    if not plan.received:
        theirs = ", ".join(f"{source.name} has {_examples(source)}" for source in sources)
        raise TransferError(
            f"Nothing would be transferred: no parameter of {target.name} has a counterpart "
            f"({theirs}; {target.name} has {_examples(target)}). Name pairs in a map."
        )
    warnings = [*plan.warnings, *unused_warnings(plan.source_tensors), *_misfits(plan), *_empty(plan)]
    if plan.share < 0.5:
        warnings.append(
            f"Only {plan.received:,} of {plan.parameters:,} parameters ({plan.share:.1%}) are received; "
            "the rest stays as initialized."
        )
    for source in sources:
        warnings += _channel_warnings(source, target, plan.options)
    return replace(plan, warnings=tuple(warnings))


def _misfits(plan: TransferPlan) -> list[str]:
    """Return a sentence per tensor that has a counterpart and cannot receive it."""
    found = [tensor for tensor in plan.tensors if tensor.learned and tensor.action == "initialized" and tensor.source]
    return [
        f"{some([tensor.name for tensor in found if tensor.reason == reason])} of {plan.target.name} "
        f"stays as initialized: {reason}."
        for reason in dict.fromkeys(tensor.reason for tensor in found)
    ]


def _empty(plan: TransferPlan) -> list[str]:
    """Return a sentence that names the layers whose weights do not come from anywhere although they were asked for."""
    if plan.options.layers or len(plan.sources) > 1:
        return []
    received = {tensor.layer for tensor in plan.tensors if tensor.action != "initialized"}
    heavy = {tensor.layer for tensor in plan.tensors if len(tensor.shape) > 1 and tensor.learned}
    kernels = {
        tensor.layer
        for tensor in plan.tensors
        if tensor.action != "initialized" and len(tensor.shape) > 1 and tensor.learned
    }
    excluded = {tensor.layer for tensor in plan.tensors if tensor.reason == EXCLUDED}
    empty = [
        layer.name
        for layer in plan.target.layers
        if layer.depth and not layer.is_head and layer.name not in excluded
        if layer.name not in received or layer.name in heavy - kernels
    ]
    if not empty:
        return []
    return [
        f"{len(empty)} layer{'s' if len(empty) > 1 else ''} of {plan.target.name} keep random weights: {some(empty)}."
    ]


def _channel_warnings(source: NetworkSketch, target: NetworkSketch, options: TransferOptions) -> list[str]:
    """Return what is probably not meant with the channels of the scan."""
    theirs, ours = source.channels, target.channels
    if options.match_channels != "name" or options.channels != "pair" or not (theirs and ours):
        return []
    names = f"{source.name} ({', '.join(theirs)})"
    if not _known(source, target):
        same = theirs == ours
        taken = f"Input channels of {names} are taken in order for {', '.join(ours)}, as neither network says which of "
        return [] if same else [f"{taken}its layers read the scan."]
    if by_name(theirs, ours):
        return []
    none = f"No input channel of {names} has the name of one here ({', '.join(ours)})"
    if len(theirs) == len(ours):
        pairs = ", ".join(f"{old} → {new}" for old, new in zip(theirs, ours, strict=True))
        return [f"{none}, so they are taken in order, as with --match-channels position: {pairs}."]
    return [
        f"{none}, so the first layers receive no kernels. Use --match-channels position to take the channels in order, "
        "or --channels repeat or mean to fill all of them."
    ]


def _examples(network: NetworkSketch) -> str:
    names = [tensor.name for tensor in network.tensors]
    return f"{', '.join(names[:2])}, …" if names else "no tensors"
