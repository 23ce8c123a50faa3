"""What of the sources finds no place in the target, and why."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from dmx.transfer.aliases import known_as
from dmx.transfer.describe import LayerSketch, NetworkSketch, TensorSketch
from dmx.transfer.options import TransferOptions
from dmx.transfer.values import SourceTensor, TensorPlan

EXCLUDED = "excluded"
"""Why what was asked to be left out receives and gives nothing."""

_SHOWN = 6
_NO_PLACE, _HEAD, _NOT_ASKED = "no place here", "the head is not asked for", "its layer is not asked for"
# Of the buffers that hold statistics, those that only count batches do not decide what is computed.
_STATISTICS = ("running_mean", "running_var", "means", "variances")


def source_tensors(
    sources: Sequence[NetworkSketch],
    tensors: Sequence[TensorPlan],
    heads: Collection[tuple[str, str]],
    options: TransferOptions,
) -> tuple[SourceTensor, ...]:
    """Return all tensors of the sources with what became of them.

    Args:
        sources: The networks that give.
        tensors: What each tensor of the target receives.
        heads: Network and tensor of what a head would receive if it were asked for.
        options: What was asked for.
    """
    used = {(tensor.network, tensor.source) for tensor in tensors if tensor.action != "initialized"}
    # What a tensor of the target would have received and could not: its entry says why.
    refused = {(tensor.network, tensor.source): tensor.reason for tensor in tensors if tensor.action == "initialized"}
    found = []
    for network in sources:
        layers = {layer.name for layer in network.layers for own in layer.tensors if (network.name, own.name) in used}
        for layer in network.layers:
            within = layer.name in layers or (not network.pathways and _in_a_matched_block(layer.name, layers))
            for tensor in layer.tensors:
                key = (network.name, tensor.name)
                reason = "" if key in used else refused.get(key, "")
                wanted = not reason and key not in used
                if wanted:
                    # Where a file does not keep the order, its last kernel may be any.
                    is_head = key in heads or (layer.is_head and network.ordered)
                    asked = len(sources) == 1 and not options.layers
                    reason = _HEAD if is_head else _NO_PLACE if asked or within else _NOT_ASKED
                    reason = EXCLUDED if _is_excluded(layer, network, options) else reason
                matters = wanted and reason == _NO_PLACE and _computes(tensor)
                found.append(
                    SourceTensor(
                        *key, layer.name, tensor.shape, key in used, tensor.learned, reason, matters, matters and within
                    )
                )
    return tuple(found)


def _is_excluded(layer: LayerSketch, network: NetworkSketch, options: TransferOptions) -> bool:
    names = known_as(layer.name, network.aliases)
    return any(
        layer.depth == one
        if isinstance(one, int)
        else any(fnmatchcase(name, p) for name in names for p in (one, f"{one}.*"))
        for one in options.exclude
    )


def _computes(tensor: TensorSketch) -> bool:
    return tensor.learned or tensor.part.rpartition(".")[2] in _STATISTICS


def _in_a_matched_block(layer: str, used: Collection[str]) -> bool:
    """Return whether a layer lies beside used ones in a block, as a norm or an attention does.

    A further stage of an encoder, whose name is a number, lies beside others too, but not in their block.
    """
    if any(name.rpartition(".")[0] == layer.rpartition(".")[0] for name in used):
        return True
    while layer:
        layer, _, last = layer.rpartition(".")
        if last.isdigit():
            return False
        if layer and any(name.startswith(f"{layer}.") for name in used):
            return True
    return False


def lost_parameters(tensors: Sequence[SourceTensor]) -> int:
    """Return how many values that a source has learned find no place."""
    return sum(math.prod(tensor.shape) for tensor in tensors if tensor.matters and tensor.learned)


def unused_notes(tensors: Sequence[SourceTensor]) -> Iterator[str]:
    """Yield a sentence per source about whole layers that find no place."""
    for network, own in _by_network([tensor for tensor in tensors if tensor.matters and not tensor.within]).items():
        layers = list(dict.fromkeys(tensor.layer for tensor in own))
        size = lost_parameters(own)
        count = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}, {size:,} parameters"
        yield f"Not used of {network}: {count} ({some(layers)})."


def unused_warnings(tensors: Sequence[SourceTensor]) -> Iterator[str]:
    """Yield a sentence per source about what is missing in layers that are there."""
    for network, own in _by_network([tensor for tensor in tensors if tensor.within]).items():
        names = [tensor.name for tensor in own]
        yield (
            f"{len(names)} tensor{'s' if len(names) > 1 else ''} of {network} found no place although the rest of "
            f"{'their blocks is' if len(names) > 1 else 'its block is'} received, so what is computed differs from the "
            f"source: {some(names)}."
        )


def _by_network(tensors: Sequence[SourceTensor]) -> Mapping[str, list[SourceTensor]]:
    found: dict[str, list[SourceTensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.network, []).append(tensor)
    return found


def some(names: Sequence[str]) -> str:
    """Return some names, and how many more there are.

    >>> some(["a", "b"]), some([str(number) for number in range(8)])
    ('a, b', '0, 1, 2, 3, 4, 5 and 2 more')
    """
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
