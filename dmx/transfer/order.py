"""The order of layers in files that do not keep it: what depths of such a source mean."""

import re
from collections.abc import Mapping
from dataclasses import replace

from dmx.transfer.describe import LayerSketch, NetworkSketch


def without_order(sketch: NetworkSketch) -> NetworkSketch:
    """Return the sketch of a file whose entries are sorted by name, which says whether that is the network's order.

    It is where names say it: in a network with pathways, and where the names of the layers differ in numbers alone
    (``model.0``, ``model.2``, …).
    """
    patterns = {re.sub(r"\d+", "#", layer.name) for layer in sketch.layers if layer.depth}
    return replace(sketch, ordered=bool(sketch.pathways) or len(patterns) <= 1)


def ordered_like(source: NetworkSketch, target: NetworkSketch, pairs: Mapping[str, str]) -> NetworkSketch:
    """Return a source in the order of the target's layers, where each of its layers has one of the same name there.

    A source whose order is known, or that has other layers too, is returned as it is.

    Args:
        source: The network that gives.
        target: The network that receives.
        pairs: Tensor of the target → layer of the source with the tensor of the same name.
    """
    places: dict[str, int] = {}
    heads: set[str] = set()
    for index, layer in enumerate(target.layers):
        for tensor in layer.tensors:
            if tensor.name in pairs:
                places.setdefault(pairs[tensor.name], index)
                heads |= {pairs[tensor.name]} if layer.is_head else set()
    if source.ordered or any(layer.name not in places for layer in source.layers if layer.depth):
        return source
    layers = sorted(source.layers, key=lambda layer: places.get(layer.name, len(places)))
    return replace(source, ordered=True, layers=_numbered(layers, heads or {layer.name for layer in layers[-1:]}))


def _numbered(layers: list[LayerSketch], heads: set[str]) -> tuple[LayerSketch, ...]:
    """Return the layers, counted anew."""
    counted: list[LayerSketch] = []
    count = 0
    for layer in layers:
        count += layer.depth > 0
        number = count if layer.depth else 0
        counted.append(replace(layer, position=number, depth=number, is_head=layer.name in heads))
    return tuple(counted)
