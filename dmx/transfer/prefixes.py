"""Tensors of equal name in two networks, whatever a tool put before the names."""

from collections.abc import Sequence
from dataclasses import dataclass

from dmx.transfer.describe import LayerSketch, NetworkSketch, TensorSketch

# Share of a file's tensors that a network in it has at least, and of the target's that it must have then.
_SHARED, _COVERED = 0.2, 0.5

_WRAPPERS = ("module.", "_orig_mod.", "state_dict.", "model.", "net.", "network.")


@dataclass(frozen=True)
class NamedTensor:
    """A tensor of a source, with its layer and network."""

    network: NetworkSketch
    layer: LayerSketch
    tensor: TensorSketch


def all_tensors(network: NetworkSketch) -> dict[str, NamedTensor]:
    """Return the tensors of a network by name."""
    return {tensor.name: NamedTensor(network, layer, tensor) for layer in network.layers for tensor in layer.tensors}


def equal_names(source: NetworkSketch, target: NetworkSketch) -> tuple[dict[str, NamedTensor], tuple[str, ...]]:
    """Return tensors of equal name, wrapper prefixes of either side removed where that pairs more of them."""
    theirs = all_tensors(source)
    ours = [tensor.name for tensor in target.tensors]
    best: dict[str, NamedTensor] = {}
    removed = ("", "")
    like: list[str] = []
    for source_prefix in _prefixes(list(theirs)):
        # What has the prefix comes last, so that it counts where something without it has the same name.
        ordered = sorted(theirs, key=lambda name: name.startswith(source_prefix))
        bare = {name.removeprefix(source_prefix): theirs[name] for name in ordered}
        partial = not all(name.startswith(source_prefix) for name in theirs) and source_prefix not in _WRAPPERS
        for target_prefix in _prefixes(ours, share=1.0):
            found = {name: bare[short] for name in ours if (short := name.removeprefix(target_prefix)) in bare}
            if partial and len(found) < _COVERED * len(ours):
                continue
            if len(found) > len(best):
                best, removed, like = found, (source_prefix, target_prefix), []
            elif len(found) == len(best) and {one.tensor.name for one in found.values()}.isdisjoint(
                one.tensor.name for one in best.values()
            ):
                like.append(source_prefix)
    notes = [
        f"Tensors of {source.name} with the prefix '{prefix}' would fit as well as those with '{removed[0]}', which "
        "were taken; a map names others."
        for prefix in dict.fromkeys(like)
        if best
    ]
    notes += [
        f"Names of {network.name} were compared without their prefix '{prefix}'."
        for network, prefix in zip((source, target), removed, strict=True)
        if prefix
    ]
    return best, tuple(notes)


def _prefixes(names: Sequence[str], *, share: float = _SHARED) -> list[str]:
    """Return what may stand before the names of a network: nothing, first parts that many share, known wrappers.

    Beside the network a file may hold others, such as a teacher, or the tensors of a loss.
    """
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split(".")[:-1]
        for length in range(1, len(parts) + 1):
            prefix = f"{'.'.join(parts[:length])}."
            counts[prefix] = counts.get(prefix, 0) + 1
    found = ["", *(prefix for prefix, count in counts.items() if count >= share * len(names))]
    found += [wrapper for wrapper in _WRAPPERS if any(name.startswith(wrapper) for name in names)]
    return list(dict.fromkeys(found))
