"""Which tensor of a source belongs to which tensor of the target, where names alone decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dmx.errors import TransferError, suggest
from dmx.transfer.aliases import known_as
from dmx.transfer.describe import LayerSketch, NetworkSketch, TensorSketch
from dmx.transfer.globs import check_rule, rename, rename_layer, rule_network, rule_text
from dmx.transfer.options import MapRule, TransferOptions
from dmx.transfer.order import ordered_like

# Prefixes that tools put before all names of a network.
_WRAPPERS = ("module.", "_orig_mod.", "state_dict.", "model.", "net.", "network.")


@dataclass(frozen=True)
class NamedTensor:
    """A tensor of a source, with its layer and network."""

    network: NetworkSketch
    layer: LayerSketch
    tensor: TensorSketch


@dataclass(frozen=True)
class NamePairing:
    """Pairs by name.

    Attributes:
        pairs: By the name of the target's tensor.
        notes: Prefixes that were removed to find them.
    """

    pairs: Mapping[str, NamedTensor]
    notes: tuple[str, ...]


def pair_names(sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions) -> NamePairing:
    """Return the pairs of tensors of equal name, and those that rules make; nothing is paired by order.

    Raises:
        TransferError: A rule, a depth or a head to copy does not exist.
    """
    ruled = _ruled(sources, target, options.map)
    notes: tuple[str, ...] = ()
    equal: dict[str, NamedTensor] = {}
    if len(sources) == 1:
        equal, notes = _equal(sources[0], target)
        source = ordered_like(sources[0], target, {name: found.layer.name for name, found in equal.items()})
        if source is not sources[0]:
            equal, _ = _equal(source, target)
        equal = _selected(equal, source, target, options)
    elif not ruled:
        raise TransferError(
            f"Rules must say what comes from which of {len(sources)} sources, got none. "
            "Write a map, e.g. 'encoder.*' of one and 'decoder.*' of another."
        )
    pairs = {**equal, **ruled}
    if options.head == "copy":
        _require_head(pairs, target)
    return NamePairing(pairs, notes)


def _all(network: NetworkSketch) -> dict[str, NamedTensor]:
    return {tensor.name: NamedTensor(network, layer, tensor) for layer in network.layers for tensor in layer.tensors}


def _equal(source: NetworkSketch, target: NetworkSketch) -> tuple[dict[str, NamedTensor], tuple[str, ...]]:
    """Return tensors of equal name, wrapper prefixes of either side removed where that pairs more of them."""
    theirs = _all(source)
    ours = [tensor.name for tensor in target.tensors]
    best: dict[str, NamedTensor] = {}
    removed = ("", "")
    for source_prefix in _prefixes(list(theirs)):
        bare = {name.removeprefix(source_prefix): found for name, found in theirs.items()}
        for target_prefix in _prefixes(ours):
            found = {name: bare[short] for name in ours if (short := name.removeprefix(target_prefix)) in bare}
            if len(found) > len(best):
                best, removed = found, (source_prefix, target_prefix)
    notes = [
        f"Names of {network.name} were compared without their prefix '{prefix}'."
        for network, prefix in zip((source, target), removed, strict=True)
        if prefix
    ]
    return best, tuple(notes)


def _prefixes(names: Sequence[str]) -> list[str]:
    """Return what may stand before all names: nothing, common first parts, wrappers that only some names have."""
    found, prefix = [""], ""
    parts = names[0].split(".")[:-1] if names else []
    for part in parts:
        prefix += f"{part}."
        if not all(name.startswith(prefix) for name in names):
            break
        found.append(prefix)
    found += [wrapper for wrapper in _WRAPPERS if any(name.startswith(wrapper) for name in names)]
    return list(dict.fromkeys(found))


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
    heads = {tensor.name for layer in target.layers if layer.is_head for tensor in layer.tensors}
    with_head = options.head == "copy" or any(layer.is_head for layer in chosen)
    for layer in chosen:
        if not layer.is_head and not any(found.layer is layer for name, found in equal.items() if name not in heads):
            raise TransferError(
                f"Depth {layer.depth} of the source, {layer.name}, has no counterpart of equal name in the target. "
                f"Leave {layer.depth} out of --layers, or name the target in a map."
            )
    return {
        name: found
        for name, found in equal.items()
        if (with_head if name in heads else not chosen or found.layer.name in names)
    }


def _require_head(pairs: Mapping[str, NamedTensor], target: NetworkSketch) -> None:
    """Check that a head that is to be copied has a counterpart."""
    head = target.head
    if head is None or not any(tensor.name in pairs for tensor in head.tensors):
        name = head.name if head else "no module"
        raise TransferError(
            f"The head cannot be copied: the head of {target.name} is {name}, and the source has no layer of that "
            "name. Name the source's in a map."
        )


def _ruled(sources: Sequence[NetworkSketch], target: NetworkSketch, rules: Sequence[MapRule]) -> dict[str, NamedTensor]:
    """Return the pairs that rules make, of tensors or of whole layers."""
    pairs: dict[str, NamedTensor] = {}
    names = {known: tensor.name for tensor in target.tensors for known in known_as(tensor.name, target.aliases)}
    for rule in rules:
        check_rule(rule)
        network = rule_network(rule, sources)
        aliases = _aliases(network, target)
        given = {new: found for found in _all(network).values() if (new := _renamed(rule, found, aliases)) is not None}
        hits = {names[new]: found for new, found in given.items() if new in names}
        if not hits:
            side, known = (network, [t.name for t in network.tensors]) if not given else (target, list(names))
            wrong = rule.source if not given else next(iter(given))
            raise TransferError(
                f"Rule {rule_text(rule)} must name tensors or layers of both networks, but {side.name} has no "
                f"'{wrong}'.{suggest(wrong, known)}"
            )
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
