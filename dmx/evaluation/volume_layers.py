"""What layers of a segmentation network give for whole volumes: tile by tile, every voxel once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from dmx.errors import ModelError
from dmx.evaluation.features import to_output_block
from dmx.evaluation.layer_masks import LayerMask
from dmx.evaluation.layer_outputs import Layers, Pooling, chosen_layers, chosen_part, pooled, require_all, watching
from dmx.evaluation.layout import Tile
from dmx.evaluation.tiling import Predictor
from dmx.geometry import Triple
from dmx.model.network import Network


class VolumeLayers:
    """Collect the outputs of layers over a volume while it is predicted.

    Maps of subsampled pathways are repeated to full resolution and cut to what a tile predicts, so that each voxel of
    the volume counts once, whatever the tiles. Where tiles lie over each other, the first one counts.

    Args:
        layers: Names of layers, or for each name which channels of it.
        pool: How the voxels become one number per channel; None: volumes are kept, 0 where nothing was predicted.
        roi: Region [I, J, K] whose voxels count; None: all.
    """

    def __init__(self, layers: Layers, *, pool: Pooling | None, roi: Tensor | None = None) -> None:
        self._layers = layers
        self._pool = pool
        self._roi = roi
        self._pathways: dict[str, str] = {}
        self._latest: dict[str, Tensor] = {}
        self._held: dict[str, _Held] = {}
        self._waiting = torch.empty(0)

    @contextmanager
    def watching(self, network: Network) -> Iterator[None]:
        """Watch the layers while the context is open; what was collected before is forgotten.

        Raises:
            ModelError: The network has no such layer.
        """
        modules, masks = chosen_layers(network, self._layers)
        self._pathways = {name: _pathway(network, module_name) for name, module_name in _names(network, modules)}
        self._held, self._waiting = {}, torch.empty(0)

        def take(name: str, output: Tensor) -> Tensor:
            return _volumes(name, output, masks[name])

        with watching(modules, take) as latest:
            self._latest = latest
            yield

    def collect(self, tiles: Sequence[Tile], shape: Triple) -> None:
        """Take what the layers gave for tiles.

        Args:
            tiles: The tiles of the latest forward pass, in its order.
            shape: Volume size.
        """
        require_all(self._pathways, self._latest)
        if not len(self._waiting):
            inside = torch.ones(shape, dtype=torch.bool) if self._roi is None else self._roi != 0
            self._waiting = inside.to(next(iter(self._latest.values())).device, copy=True)
        for place, tile in enumerate(tiles):
            ends = [min(n, s + o) for n, s, o in zip(shape, tile.start, tile.plan.output_shape, strict=True)]
            region = tuple(slice(s, end) for s, end in zip(tile.start, ends, strict=True))
            part = tuple(slice(0, end - s) for s, end in zip(tile.start, ends, strict=True))
            new = self._waiting[region].clone()
            for name, pathway in self._pathways.items():
                maps = self._latest[name][place].float()
                block = to_output_block(maps, tile.plan, pathway)[(slice(None), *part)]
                held = self._held.setdefault(name, _Held(self._pool, shape))
                held.add(block, region, new)
            self._waiting[region] = False
        # A layer that runs twice in a pass is told from one that runs in the next pass.
        self._latest.clear()

    def finish(self) -> dict[str, Tensor]:
        """Return [1, channels, 1, 1] for each layer, or [1, channels, I, J, K] without pooling.

        Raises:
            ModelError: No voxel counted, because the roi is empty.
        """
        return {name: held.result(name) for name, held in self._held.items()}


class _Held:
    """What one layer has given so far for a volume."""

    def __init__(self, pool: Pooling | None, shape: Triple) -> None:
        self._pool = pool
        self._shape = shape
        self._values: list[Tensor] = []
        self._count = 0

    def add(self, block_CIJK: Tensor, region: tuple[slice, ...], new: Tensor) -> None:
        """Take the voxels of a block that are new."""
        if self._pool is None:
            if not self._values:
                self._values = [torch.zeros(len(block_CIJK), *self._shape)]
            volume = self._values[0][(slice(None), *region)]
            volume.copy_(torch.where(new, block_CIJK, volume.to(block_CIJK)))
            self._count += int(new.sum())
            return
        voxels = block_CIJK[:, new]
        if not voxels.shape[1]:
            return
        self._count += voxels.shape[1]
        if self._pool == "median":
            self._values.append(voxels.cpu())
        elif self._pool == "mean":
            total = voxels.double().sum(dim=1).cpu()
            self._values = [total + self._values[0] if self._values else total]
        else:
            largest = voxels.amax(dim=1).cpu()
            self._values = [torch.maximum(largest, self._values[0]) if self._values else largest]

    def result(self, name: str) -> Tensor:
        """Return all of it."""
        if not self._count:
            raise ModelError(f"Layer '{name}' was read nowhere, because the roi is empty.")
        if self._pool is None:
            return self._values[0].unsqueeze(0)
        if self._pool == "median":
            return pooled(torch.cat(self._values, dim=1).unsqueeze(0), "median")
        value = self._values[0] / self._count if self._pool == "mean" else self._values[0]
        return value.float().reshape(1, -1, 1, 1)


def volume_layers(
    predictor: Predictor,
    channels_CIJK: Tensor,
    layers: Layers,
    *,
    roi: Tensor | None = None,
    pool: Pooling | None = "mean",
) -> dict[str, Tensor]:
    """Return what layers give for a whole volume, which goes through the network once for all of them.

    Args:
        predictor: Network and tiles, which neither overlap nor are mirrored here.
        channels_CIJK: The volume.
        layers: Names of layers, or for each name which channels of it.
        roi: Region [I, J, K] whose voxels count.
        pool: How the voxels become one number per channel. ``median`` holds a layer's maps of the whole volume in
            memory, and so does None.

    Returns:
        Layer → float32 [1, channels, 1, 1], or [1, channels, I, J, K] without pooling.

    Raises:
        ModelError: A layer does not exist, gives no volumes, or the roi is empty.
    """
    collected = VolumeLayers(layers, pool=pool, roi=roi)
    once = replace(predictor, section=replace(predictor.section, overlap=0.0, mirror=()))
    once.probabilities(channels_CIJK, roi=roi, features=collected)
    return collected.finish()


def _names(network: Network, modules: Mapping[str, torch.nn.Module]) -> list[tuple[str, str]]:
    """Return for each wanted name the name that its module has in the network."""
    own = {id(module): name for name, module in network.named_modules()}
    return [(name, own[id(module)]) for name, module in modules.items()]


def _pathway(network: Network, module: str) -> str:
    """Return the pathway that a module lies in, or that it is; empty: it reads whole segments."""
    for group in network.layer_groups():
        if f"{module}.".startswith(f"{group.name}.") or f"{group.name}.".startswith(f"{module}."):
            return group.pathway
    return ""


def _volumes(name: str, output: Tensor, mask: LayerMask) -> Tensor:
    """Return the wanted channels of feature maps of volumes."""
    maps = chosen_part(name, output, mask)
    if maps.ndim != 5:
        raise ModelError(f"Layer '{name}' gives {tuple(output.shape)}, which are no feature maps of volumes.")
    # At once: a layer that works in place may change the tensor right after.
    return maps.clone()
