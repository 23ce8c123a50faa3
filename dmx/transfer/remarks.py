"""Outlines of networks, and what is worth saying about a transfer."""

from collections.abc import Sequence
from dataclasses import replace

from dmx.errors import TransferError
from dmx.transfer.describe import LayerSketch, NetworkSketch
from dmx.transfer.options import TransferOptions
from dmx.transfer.plan import TransferPlan
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
        if options.match_channels == "name" and source.channels and target.channels and _known(source, target):
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
    if not theirs or not ours or options.classes_from == "names" or set(theirs) == set(ours):
        return _names("Classes", source, theirs, ours) if theirs and ours else []
    pairs = [f"{ours_name} from {name}" for name, ours_name in zip(theirs, ours, strict=False) if name != ours_name]
    return [f"Classes from {source.name} by position: {', '.join(pairs)}."]


def _known(source: NetworkSketch, target: NetworkSketch) -> bool:
    """Return whether the layers that read the scan are known, so that its channels can be told apart."""
    return any(layer.reads == () for network in (source, target) for layer in network.layers)


def _names(what: str, source: NetworkSketch, theirs: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Return a sentence about pairs by name, nothing where both sides have the same names in the same order."""
    if tuple(theirs) == tuple(ours):
        return []
    both = [name for name in ours if name in theirs]
    new = [name for name in ours if name not in theirs]
    unused = [name for name in theirs if name not in ours]
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
    warnings = list(plan.warnings)
    if plan.share < 0.5:
        warnings.append(
            f"Only {plan.received:,} of {plan.parameters:,} parameters ({plan.share:.1%}) are received; "
            "the rest stays as initialized."
        )
    by_name = plan.options.match_channels == "name"
    warnings += [
        f"Input channels of {source.name} ({', '.join(source.channels)}) are taken in order for "
        f"{', '.join(target.channels)}, as neither network says which of its layers read the scan."
        for source in sources
        if by_name and source.channels and target.channels and not _known(source, target)
        if source.channels != target.channels
    ]
    warnings += [
        f"No input channel of {source.name} ({', '.join(source.channels)}) has the name of one here "
        f"({', '.join(target.channels)}), so the first layers receive no kernels. "
        "Use --match-channels position to take the channels in order."
        for source in sources
        if by_name and source.channels and target.channels and _known(source, target)
        if not set(source.channels) & set(target.channels)
    ]
    return replace(plan, warnings=tuple(warnings))


def _examples(network: NetworkSketch) -> str:
    names = [tensor.name for tensor in network.tensors]
    return f"{', '.join(names[:2])}, …" if names else "no tensors"
