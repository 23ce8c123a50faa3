"""Which tensor of a source belongs to which tensor of the target, where names alone decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from dmx.errors import TransferError, suggest
from dmx.transfer.aliases import known_as
from dmx.transfer.describe import LayerSketch, NetworkSketch
from dmx.transfer.globs import check_rule, rename, rename_layer, rule_network, rule_text
from dmx.transfer.options import MapRule, TransferOptions
from dmx.transfer.order import ordered_like
from dmx.transfer.prefixes import NamedTensor, all_tensors, equal_names


@dataclass(frozen=True)
class NamePairing:
    """Pairs by name.

    Attributes:
        pairs: By the name of the target's tensor.
        notes: Prefixes that were removed to find them.
        heads: Network and tensor of what the head would receive if it were asked for.
        excluded: Target's tensors that would receive something if they were not excluded.
    """

    pairs: Mapping[str, NamedTensor]
    notes: tuple[str, ...]
    heads: frozenset[tuple[str, str]] = frozenset()
    excluded: frozenset[str] = frozenset()


def pair_names(sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions) -> NamePairing:
    """Return the pairs of tensors of equal name, and those that rules make; nothing is paired by order.

    Raises:
        TransferError: A rule, a depth or a head to copy does not exist.
    """
    ruled = _ruled(sources, target, options)
    notes: tuple[str, ...] = ()
    heads: set[tuple[str, str]] = set()
    equal: dict[str, NamedTensor] = {}
    if len(sources) == 1:
        equal, notes = equal_names(sources[0], target)
        source = ordered_like(sources[0], target, {name: found.layer.name for name, found in equal.items()})
        if source is not sources[0]:
            equal, _ = equal_names(source, target)
        in_heads = _head_tensors(target)
        heads = {(found.network.name, found.tensor.name) for name, found in equal.items() if name in in_heads}
        equal = _selected(equal, source, target, options)
        equal = {name: found for name, found in equal.items() if name not in ruled}
    elif not ruled:
        raise TransferError(
            f"Rules must say what comes from which of {len(sources)} sources, got none. "
            "Write a map, e.g. 'encoder.*' of one and 'decoder.*' of another."
        )
    pairs = {**equal, **ruled}
    excluded = _excluded(pairs, sources, target, options)
    pairs = {name: found for name, found in pairs.items() if name not in excluded}
    if options.head == "copy":
        _require_head(pairs, target)
    return NamePairing(pairs, notes, frozenset(heads), frozenset(excluded))


def _excluded(
    pairs: Mapping[str, NamedTensor],
    sources: Sequence[NetworkSketch],
    target: NetworkSketch,
    options: TransferOptions,
) -> set[str]:
    """Return the tensors of the target whose layer, or whose counterpart's, is excluded.

    Raises:
        TransferError: Something excluded does not exist.
    """
    owners = {tensor.name: layer for layer in target.layers for tensor in layer.tensors}
    excluded: set[str] = set()
    for one in options.exclude:
        if not any(_fits(layer, one, _aliases(network, target)) for network in sources for layer in network.layers):
            require_layer(one, target)
        excluded |= {
            name
            for name, found in pairs.items()
            if _fits(found.layer, one, _aliases(found.network, target))
            or (isinstance(one, str) and _fits(owners[name], one, target.aliases))
        }
    return excluded


def require_layer(excluded: int | str, target: NetworkSketch) -> None:
    """Check that a layer that is excluded, and that no source has, is one of the target.

    Raises:
        TransferError: It is none.
    """
    known = [name for layer in target.layers if layer.depth for name in known_as(layer.name, target.aliases)]
    if isinstance(excluded, int) or not any(fnmatchcase(name, excluded) for name in known):
        raise TransferError(
            f"--exclude must hold depths of the source, or names of layers, got {excluded}, which neither network has."
            f"{suggest(str(excluded), known)}"
        )


def _fits(layer: LayerSketch, wanted: int | str, aliases: Mapping[str, str]) -> bool:
    """Return whether a layer is meant, also by the name of a module that it lies in."""
    if _is_meant(layer, wanted, aliases):
        return True
    return isinstance(wanted, str) and any(fnmatchcase(name, f"{wanted}.*") for name in known_as(layer.name, aliases))


def with_class_layers(target: NetworkSketch, sources: Sequence[NetworkSketch]) -> NetworkSketch:
    """Return a target of which the layers that follow the number of classes are heads, as far as two networks show it.

    A network of dmx knows them itself. Of any other module, those are meant whose channels out differ from the
    source's as those of its head do.

    Args:
        target: The network that receives.
        sources: The networks that give.
    """
    if len(sources) != 1 or target.head is None or any(tensor.by_class for tensor in target.tensors):
        return target
    equal, _ = equal_names(sources[0], target)

    def sizes(layer: LayerSketch) -> set[tuple[int, int]]:
        pairs = [(tensor, equal[tensor.name].tensor) for tensor in layer.tensors if tensor.name in equal]
        return {
            (theirs.shape[axis], ours.shape[axis])
            for ours, theirs in pairs
            for axis, follows in enumerate(ours.axes[: len(theirs.shape)])
            if follows == "out"
        }

    changed = {pair for pair in sizes(target.head) if pair[0] != pair[1]}
    layers = (replace(layer, is_head=layer.is_head or bool(sizes(layer) & changed)) for layer in target.layers)
    return replace(target, layers=tuple(layers)) if changed else target


def _chosen(source: NetworkSketch, wanted: Sequence[int | str], aliases: Mapping[str, str]) -> tuple[LayerSketch, ...]:
    """Return the layers of the given depths or names."""
    layers = [layer for layer in source.layers if layer.depth]
    chosen: list[LayerSketch] = []
    for one in wanted:
        if isinstance(one, int) and not source.ordered:
            raise TransferError(
                f"--layers {one}: the file of {source.name} does not keep the order of its layers, so depths mean "
                f"nothing. Name the layers instead; it has: {', '.join(layer.name for layer in layers)}."
            )
        found = [layer for layer in layers if _is_meant(layer, one, aliases)]
        if not found:
            near = suggest(str(one), [name for layer in layers for name in known_as(layer.name, aliases)])
            deepest = max((layer.depth for layer in layers), default=0)
            raise TransferError(
                f"--layers must hold depths of the source from 1 to {deepest}, or names of its layers, "
                f"got {one}.{near} Its layers are the modules that own parameters, in their order."
            )
        chosen += found
    return tuple(chosen)


def _is_meant(layer: LayerSketch, wanted: int | str, aliases: Mapping[str, str]) -> bool:
    if isinstance(wanted, int):
        return layer.depth == wanted
    return any(fnmatchcase(name, wanted) for name in known_as(layer.name, aliases))


def _aliases(network: NetworkSketch, target: NetworkSketch) -> Mapping[str, str]:
    """Return the short names of a network; a file knows none, but it may hold what the target's stand for."""
    return network.aliases or target.aliases


def _selected(
    equal: Mapping[str, NamedTensor], source: NetworkSketch, target: NetworkSketch, options: TransferOptions
) -> dict[str, NamedTensor]:
    """Return the pairs of the chosen layers; the target's head is chosen only on request."""
    chosen = _chosen(source, options.layers, _aliases(source, target))
    names = {layer.name for layer in chosen}
    heads = _head_tensors(target)
    for layer in chosen:
        if not any(found.layer is layer for found in equal.values()):
            raise TransferError(
                f"Depth {layer.depth} of the source, {layer.name}, has no counterpart of equal name in the target. "
                f"Leave {layer.depth} out of --layers, or name the target in a map."
            )
    return {
        name: found
        for name, found in equal.items()
        if found.layer.name in names or (options.head == "copy" if name in heads else not chosen)
    }


def _head_tensors(target: NetworkSketch) -> set[str]:
    return {tensor.name for layer in target.layers if layer.is_head for tensor in layer.tensors}


def _require_head(pairs: Mapping[str, NamedTensor], target: NetworkSketch) -> None:
    """Check that a head that is to be copied has a counterpart."""
    if not _head_tensors(target) & pairs.keys():
        name = target.head.name if target.head else "no module"
        raise TransferError(
            f"The head cannot be copied: the head of {target.name} is {name}, and the source has no layer of that "
            "name. Name the source's in a map."
        )


def _ruled(sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions) -> dict[str, NamedTensor]:
    """Return the pairs that rules make, of tensors or of whole layers.

    A rule that reaches other layers as well does not ask for the head.
    """
    pairs: dict[str, NamedTensor] = {}
    heads = _head_tensors(target)
    names = {known: tensor.name for tensor in target.tensors for known in known_as(tensor.name, target.aliases)}
    for rule in options.map:
        check_rule(rule)
        network = rule_network(rule, sources)
        aliases = _aliases(network, target)
        tensors = all_tensors(network).values()
        given = {new: found for found in tensors if (new := _renamed(rule, found, aliases)) is not None}
        hits = {names[new]: found for new, found in given.items() if new in names}
        if not hits:
            side, known = (network, [t.name for t in network.tensors]) if not given else (target, list(names))
            wrong = rule.source if not given else next(iter(given))
            raise TransferError(
                f"Rule {rule_text(rule)} must name tensors or layers of both networks, but {side.name} has no "
                f"'{wrong}'.{suggest(wrong, known)}"
            )
        if options.head == "initialized" and not hits.keys() <= heads:
            hits = {new: found for new, found in hits.items() if new not in heads}
        twice = next((new for new in hits if new in pairs), None)
        if twice is not None:
            raise TransferError(
                f"Two rules lead to '{twice}', the second is {rule_text(rule)}. Each tensor takes one source."
            )
        pairs |= hits
    return pairs


def _renamed(rule: MapRule, found: NamedTensor, aliases: Mapping[str, str]) -> str | None:
    """Return the target's tensor that a rule gives for one of the source."""
    for name in known_as(found.tensor.name, aliases):
        if (new := rename(rule, name)) is not None:
            return new
    for name in known_as(found.layer.name, aliases):
        if (layer := rename_layer(rule, name)) is not None:
            return f"{layer}.{found.tensor.part}"
    return None
