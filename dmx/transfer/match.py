"""Which layer of a source belongs to which layer of the target, where both have pathways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dmx.errors import TransferError, suggest
from dmx.transfer.describe import LayerSketch, NetworkSketch
from dmx.transfer.globs import check_rule, rename_layer, rule_network, rule_text
from dmx.transfer.options import TransferOptions


@dataclass(frozen=True)
class LayerPair:
    """A layer of the target and what it corresponds to."""

    target: LayerSketch
    network: NetworkSketch
    source: LayerSketch


@dataclass(frozen=True)
class Pairing:
    """Which layers correspond.

    Attributes:
        counterparts: By target layer; transferred or not.
        selected: Target layers that receive.
        excluded: Target layers that would receive something if they were not excluded.
    """

    counterparts: dict[str, LayerPair]
    selected: frozenset[str]
    excluded: frozenset[str] = frozenset()


def pathway_pairs(source: NetworkSketch, target: NetworkSketch) -> tuple[tuple[str, str], ...]:
    """Return (source pathway, target pathway): k-th to k-th, extra ones from the last parallel one, fc to fc."""
    last = len(source.pathways) - 1
    pairs = [(source.pathways[min(index, last)], name) for index, name in enumerate(target.pathways)]
    return (*pairs, ("fc", "fc"))


def pair_layers(sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions) -> Pairing:
    """Return which layers correspond and which of them receive.

    Raises:
        TransferError: A pathway of the source is too short, a depth or a rule does not exist.
    """
    ruled = _ruled(sources, target, options)
    if len(sources) > 1:
        if not ruled:
            raise TransferError(
                f"Rules must say what comes from which of {len(sources)} sources, got none. "
                "Write a map, e.g. 'normal.*' of one and 'fc.*' of another."
            )
        excluded = set().union(*(_excluded(ruled, network, target, options.exclude) for network in sources))
        return Pairing(ruled, frozenset(ruled.keys() - excluded), frozenset(excluded))
    source = sources[0]
    default = _same_places(source, target)
    counterparts = {**default, **ruled}
    excluded = _excluded(counterparts, source, target, options.exclude)
    if options.layers:
        chosen = _by_depth(source, target, options.layers, default)
    else:
        chosen = {name for name, pair in default.items() if not pair.target.is_head}
        _require_depth(source, target, without=set(ruled) | excluded)
    if options.head == "copy" and target.head is not None and target.head.name in counterparts:
        chosen.add(target.head.name)
    return Pairing(counterparts, frozenset((chosen | set(ruled)) - excluded), frozenset(excluded))


def _excluded(
    counterparts: Mapping[str, LayerPair], source: NetworkSketch, target: NetworkSketch, excluded: Sequence[int | str]
) -> set[str]:
    """Return the layers of the target that are excluded, themselves or by what they correspond to.

    Raises:
        TransferError: A depth or name does not exist.
    """
    found: set[str] = set()
    for one in excluded:
        if isinstance(one, int):
            names = {name for name, pair in counterparts.items() if pair.source.depth == one}
            known = any(layer.depth == one for layer in source.layers)
        else:
            pairs = counterparts.items()
            names = {name for name, pair in pairs if fnmatchcase(pair.source.name, one)}
            names |= {layer.name for layer in target.layers if fnmatchcase(layer.name, one)}
            known = bool(names) or any(fnmatchcase(layer.name, one) for layer in source.layers)
        if not known:
            raise TransferError(
                f"--exclude must hold depths of the source, or names of layers, got {one}, which neither network has."
                f"{suggest(str(one), [layer.name for layer in source.layers])}"
            )
        found |= names
    return found


def _same_places(source: NetworkSketch, target: NetworkSketch) -> dict[str, LayerPair]:
    """Return the layers at the same position of corresponding pathways, head with head."""
    pairs = {}
    for source_pathway, target_pathway in pathway_pairs(source, target):
        for theirs, ours in zip(source.pathway(source_pathway), target.pathway(target_pathway), strict=False):
            pairs[ours.name] = LayerPair(ours, source, theirs)
    if source.head is not None and target.head is not None:
        pairs[target.head.name] = LayerPair(target.head, source, source.head)
    return pairs


def _require_depth(source: NetworkSketch, target: NetworkSketch, *, without: set[str]) -> None:
    short = []
    for theirs, ours in pathway_pairs(source, target):
        has = len(source.pathway(theirs))
        needs = sum(1 for layer in target.pathway(ours)[has:] if layer.name not in without)
        if needs:
            short.append(f"'{ours}' has {has + needs} layers but the source's '{theirs}' has {has}")
    if short:
        raise TransferError(
            f"The source needs at least as many layers as the target in each pathway, the head not counted: "
            f"{'; '.join(short)}. Name the source's depths to transfer with --layers, e.g. --layers 1 2, or leave "
            "layers out with --exclude."
        )


def _by_depth(
    source: NetworkSketch, target: NetworkSketch, depths: Sequence[int | str], places: Mapping[str, LayerPair]
) -> set[str]:
    """Return the target layers that the given depths, or layers by name, of the source go to."""
    longest = max(len(source.pathway(name)) for name in source.pathways)
    hidden = len(source.pathway("fc"))
    last = longest + hidden + 1
    chosen: set[str] = set()
    for depth in depths:
        named = {name for name, pair in places.items() if fnmatchcase(pair.source.name, str(depth))}
        if not named and (not isinstance(depth, int) or not 1 <= depth <= last):
            raise TransferError(
                f"--layers must hold depths of the source from 1 to {last} "
                f"(parallel pathways 1 to {longest}, then fc, the head is {last}), or names of layers that have a "
                f"counterpart, got {depth}.{suggest(str(depth), [layer.name for layer in source.layers])}"
            )
        if not isinstance(depth, int):
            chosen |= named
        elif depth == last:
            assert target.head is not None
            chosen.add(target.head.name)
        else:
            chosen |= _places(source, target, depth, longest=longest)
    return chosen


def _places(source: NetworkSketch, target: NetworkSketch, depth: int, *, longest: int) -> set[str]:
    """Return where a depth before the head goes."""
    fc = depth > longest
    position = depth - longest if fc else depth
    found, missing = set(), []
    for theirs, ours in pathway_pairs(source, target):
        if (theirs == "fc") != fc or len(source.pathway(theirs)) < position:
            continue
        layers = target.pathway(ours)
        if len(layers) < position:
            missing.append(
                f"'{ours}' has {len(layers)} layers, so none for {source.pathway(theirs)[position - 1].name}"
            )
        else:
            found.add(layers[position - 1].name)
    if missing or not found:
        reason = "; ".join(missing) or "no pathway of the target corresponds to the pathways that have it"
        raise TransferError(
            f"Depth {depth} of the source has no counterpart in the target: {reason}. Leave {depth} out of --layers."
        )
    return found


def _ruled(sources: Sequence[NetworkSketch], target: NetworkSketch, options: TransferOptions) -> dict[str, LayerPair]:
    """Return the pairs that rules make."""
    pairs: dict[str, LayerPair] = {}
    names = [layer.name for layer in target.layers]
    for rule in options.map:
        check_rule(rule)
        network = rule_network(rule, sources)
        given = {layer.name: new for layer in network.layers if (new := rename_layer(rule, layer.name)) is not None}
        if not given:
            known = [layer.name for layer in network.layers]
            raise TransferError(
                f"Rule {rule_text(rule)} matches no layer of {network.name}.{suggest(rule.source, known)} "
                f"It has: {', '.join(known)}."
            )
        hits = {old: new for old, new in given.items() if new in names}
        if not hits:
            wrong = next(iter(given.values()))
            raise TransferError(
                f"Rule {rule_text(rule)} leads to '{wrong}', which {target.name} does not have."
                f"{suggest(wrong, names)} It has: {', '.join(names)}."
            )
        head = {target.head.name} if target.head is not None else set()
        if options.head == "initialized" and not set(hits.values()) <= head:
            hits = {old: new for old, new in hits.items() if new not in head}
        for old, new in hits.items():
            if new in pairs:
                raise TransferError(
                    f"Two rules lead to '{new}', the second is {rule_text(rule)}. Each layer takes one source."
                )
            ours, theirs = target.layer(new), network.layer(old)
            assert ours is not None
            assert theirs is not None
            pairs[new] = LayerPair(ours, network, theirs)
    return pairs
