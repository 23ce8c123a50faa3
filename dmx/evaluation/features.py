"""Feature maps of any layer as volumes on the grid of the prediction."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmx.errors import ModelError, suggest
from dmx.evaluation.layout import Tile
from dmx.geometry import PatchPlan, SegmentPlan, Triple
from dmx.model.network import Network

Allocate = Callable[[str, tuple[int, int, int, int]], Tensor]


class Collector(Protocol):
    """Takes what layers give while a volume is predicted by tiles."""

    def watching(self, network: Network) -> AbstractContextManager[None]:
        """Keep the latest output of layers while the context is open; opened again when tiles had to be smaller."""
        ...

    def collect(self, tiles: Sequence[Tile], shape: Triple) -> None:
        """Take what layers gave for tiles of a volume of this size, in the order of the latest forward pass."""
        ...


class FeatureMaps:
    """Collect the outputs of layers while a volume is predicted, stitched like the prediction itself.

    Maps of subsampled pathways are repeated to full resolution. Where no tile was, maps are 0.

    Args:
        layers: Layer name → first and last channel of it, both included, e.g. ``{"normal.3": (0, 9)}``.
        allocate: Gives the array for a layer from its name and shape [channels, I, J, K], zeroed; by default float32 in
            memory. A tensor over a memory map keeps large requests on disk.

    Attributes:
        volumes: Layer name → feature maps [channels, I, J, K], filled as tiles are predicted.
    """

    def __init__(self, layers: Mapping[str, tuple[int, int]], allocate: Allocate | None = None) -> None:
        for name, (first, last) in layers.items():
            if not 0 <= first <= last:
                raise ModelError(f"Feature maps {first} to {last} of layer '{name}' are no range; give first <= last.")
        self.volumes: dict[str, Tensor] = {}
        self._layers = dict(layers)
        self._allocate = allocate or (lambda _, shape: torch.zeros(shape))
        self._latest: dict[str, Tensor] = {}
        self._pathways: dict[str, str] = {}

    @contextmanager
    def watching(self, network: Network) -> Iterator[None]:
        """Keep the latest output of each layer while the context is open.

        Raises:
            ModelError: The network has no layer of that name.
        """
        groups = {group.name: group for group in network.layer_groups()}
        handles = []
        try:
            for name in self._layers:
                if name not in groups:
                    raise ModelError(
                        f"The network has no layer '{name}'.{suggest(name, groups)} Its layers are {', '.join(groups)}."
                    )
                self._pathways[name] = groups[name].pathway
                handles.append(groups[name].modules[-1].register_forward_hook(self._keep(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._latest.clear()

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._latest[name] = output

        return hook

    def collect(self, tiles: Sequence[Tile], shape: Triple) -> None:
        """Put what the layers gave for tiles into the volumes.

        Args:
            tiles: The tiles of the latest forward pass, in its order.
            shape: Volume size.

        Raises:
            ModelError: A layer has fewer channels than asked for, or gives no volume.
        """
        for name, (first, last) in self._layers.items():
            output = self._latest[name]
            if output.ndim != 5:
                raise ModelError(
                    f"Layer '{name}' gives {output.ndim} dimensions, which are no feature maps of a volume."
                )
            if last >= output.shape[1]:
                raise ModelError(f"Layer '{name}' has {output.shape[1]} feature maps, got a request for 0 to {last}.")
            if name not in self.volumes:
                self.volumes[name] = self._allocate(name, (last - first + 1, *shape))
            for tile, maps in zip(tiles, output[:, first : last + 1].float(), strict=True):
                block = to_output_block(maps, tile.plan, self._pathways[name])
                ends = [min(n, s + o) for n, s, o in zip(shape, tile.start, tile.plan.output_shape, strict=True)]
                target = [slice(s, end) for s, end in zip(tile.start, ends, strict=True)]
                part = [slice(0, end - s) for s, end in zip(tile.start, ends, strict=True)]
                held = self.volumes[name]
                held[(slice(None), *target)] = block[(slice(None), *part)].to(held)


def to_output_block(maps_CIJK: Tensor, plan: SegmentPlan, pathway: str) -> Tensor:
    """Return a layer's output for a segment at full resolution, cut to the segment's output block.

    Convolutions without padding take the same from both ends, so a map lies in the middle of what its pathway read; the
    layers that join the pathways read the whole segment. In a network without a margin, maps of another size are
    coarser and are resized to the segment.

    Args:
        maps_CIJK: Output of a layer.
        plan: Plan of the segment.
        pathway: Pathway of the layer.
    """
    whole = PatchPlan(pathway, plan.shape, (1, 1, 1), (0, 0, 0))
    patch = next((patch for patch in plan.patches if patch.name == pathway), whole)
    if patch.factor == (1, 1, 1) and max(*plan.margin_before, *plan.margin_after) == 0:
        maps_CIJK = functional.interpolate(maps_CIJK.unsqueeze(0), size=plan.shape, mode="nearest").squeeze(0)
    block = maps_CIJK
    for axis in range(3):
        lost = patch.shape[axis] - maps_CIJK.shape[axis + 1]
        first = patch.offset[axis] + lost // 2 * patch.factor[axis]
        wanted = torch.arange(plan.output_shape[axis], device=block.device) + plan.margin_before[axis] - first
        index = wanted.div(patch.factor[axis], rounding_mode="floor").clamp(0, maps_CIJK.shape[axis + 1] - 1)
        block = block.index_select(axis + 1, index)
    return block
