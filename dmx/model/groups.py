"""Names for the layers of a network."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """One layer: a kernel with the normalization, activation and dropout before it, or one module of another network.

    Attributes:
        pathway: ``normal``, ``subsampled_1``, …, ``fc``; ``network`` in networks without pathways.
        position: Number of the layer within its pathway, from 1.
        depth: Number of layers from the input to this one, from 1; the pathways run side by side, and the first layer
            of ``fc`` is one deeper than the longest of them.
        name: Prefix of the layer's names in the state dict, e.g. ``normal.block_1`` or ``head``.
        modules: The modules of the layer.
        is_head: Whether the layer gives the class scores.
        parameters: The layer's own parameters by their name in the state dict; each parameter of a network belongs to
            exactly one layer.
    """

    pathway: str
    position: int
    depth: int
    name: str
    modules: tuple[nn.Module, ...]
    is_head: bool
    parameters: Mapping[str, nn.Parameter]
