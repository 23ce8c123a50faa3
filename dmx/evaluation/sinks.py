"""Where the outputs of tiles go: a map of probabilities, or labels alone."""

import math
from typing import Protocol

import torch
from torch import Tensor

from dmx.cohort.regions import Regions
from dmx.evaluation.layout import Tile
from dmx.evaluation.memory import KEEP_ON_DEVICE, free_bytes
from dmx.geometry import Triple


class Sink(Protocol):
    """Receives the class probabilities of tiles."""

    def add(self, tile: Tile, probabilities_CIJK: Tensor) -> None:
        """Take the output block of one tile."""

    def finish(self, roi: Tensor | None) -> Tensor:
        """Return the volume in main memory, zero outside of the roi where one is given."""


def _clipped(tile: Tile, shape: Triple) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where the block lies in the volume, and which part of the block that is."""
    ends = [min(n, s + o) for n, s, o in zip(shape, tile.start, tile.plan.output_shape, strict=True)]
    target = tuple(slice(s, end) for s, end in zip(tile.start, ends, strict=True))
    return target, tuple(slice(0, end - s) for s, end in zip(tile.start, ends, strict=True))


class ProbabilitySink:
    """Hold probabilities [classes, I, J, K]; zero where no tile was.

    Without weighting the later of two tiles wins. With weighting, overlapping tiles are averaged with a Gaussian that
    falls from 1 in the middle of a tile to its border (deviation: an eighth of the tile), because what lies near the
    border of a tile was predicted from less surrounding.

    Args:
        shape: Volume size.
        weighted: Average overlapping tiles.
        dtype: Type of the result; averages are taken in float32.
        device: Where the result is gathered while there is room.
    """

    def __init__(self, shape: Triple, *, weighted: bool, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = shape
        self._dtype = dtype
        self._device = device
        self._weighted = weighted
        self._total = torch.zeros(())
        self._held: Tensor | None = None

    def add(self, tile: Tile, probabilities_CIJK: Tensor) -> None:
        """Take the output block of one tile."""
        if self._held is None:
            self._held = self._allocate(len(probabilities_CIJK))
        target, part = _clipped(tile, self._shape)
        block = probabilities_CIJK[(slice(None), *part)].to(self._held.device)
        if not self._weighted:
            self._held[(slice(None), *target)] = block.to(self._held.dtype)
            return
        weight = gaussian(tile.plan.output_shape, self._held.device)[part]
        self._held[(slice(None), *target)] += block * weight
        self._total[target] += weight

    def _allocate(self, classes: int) -> Tensor:
        """Return zeros on the device, or in main memory where they would crowd it."""
        dtype = torch.float32 if self._weighted else self._dtype
        voxels = math.prod(self._shape)
        crowded = self._device.type != "cpu" and voxels * 4 * (classes + 1) > KEEP_ON_DEVICE * free_bytes(self._device)
        device = torch.device("cpu") if crowded else self._device
        if self._weighted:
            self._total = torch.zeros(self._shape, device=device)
        return torch.zeros((classes, *self._shape), dtype=dtype, device=device)

    def finish(self, roi: Tensor | None) -> Tensor:
        """Return the probabilities, zero outside of the roi where one is given."""
        held = self._held
        if held is None:
            raise ValueError("No tile was added.")
        if self._weighted:
            held /= self._total.clamp_min(torch.finfo(torch.float32).tiny)
        if roi is not None:
            held *= (roi != 0).to(held.device)
        return held.to(self._dtype).cpu()


def label_type(num_labels: int) -> torch.dtype:
    """Return the smallest type that holds that many labels, 0 included."""
    return torch.uint8 if num_labels <= 256 else torch.int16


def to_labels(probabilities_CIJK: Tensor, regions: Regions) -> Tensor:
    """Return the label map [I, J, K] of probabilities: the most probable class, or the regions above a half."""
    if not regions:
        return probabilities_CIJK.argmax(dim=0).to(label_type(len(probabilities_CIJK)))
    dtype = label_type(regions.highest + 1)
    empty = torch.zeros(probabilities_CIJK.shape[1:], dtype=dtype, device=probabilities_CIJK.device)
    labels: Tensor = regions.paint(probabilities_CIJK > 0.5, empty)
    return labels


class LabelSink:
    """Hold the label of each voxel only; the later of two overlapping tiles wins.

    Up to 256 classes take one byte per voxel, more take two.

    Args:
        shape: Volume size.
        device: Where the result is gathered.
        regions: Regions whose labels are held; without members the most probable class is.
    """

    def __init__(self, shape: Triple, device: torch.device, regions: Regions) -> None:
        self._shape = shape
        self._device = device
        self._regions = regions
        self._held: Tensor | None = None

    def add(self, tile: Tile, probabilities_CIJK: Tensor) -> None:
        """Take the output block of one tile."""
        target, part = _clipped(tile, self._shape)
        block = to_labels(probabilities_CIJK[(slice(None), *part)], self._regions)
        if self._held is None:
            self._held = torch.zeros(self._shape, dtype=block.dtype, device=self._device)
        self._held[target] = block.to(self._held.device)

    def finish(self, roi: Tensor | None) -> Tensor:
        """Return the labels, background outside of the roi where one is given."""
        if self._held is None:
            raise ValueError("No tile was added.")
        held = self._held.cpu()
        return held if roi is None else held * (roi != 0).cpu()


def gaussian(shape: Triple, device: torch.device) -> Tensor:
    """Return the weights of a tile's voxels: 1 in the middle, at least a thousandth of it per axis at the border."""
    weight = torch.ones((), device=device)
    for axis, length in enumerate(shape):
        distance = torch.arange(length, device=device, dtype=torch.float32) - (length - 1) / 2
        profile = torch.exp(-0.5 * (distance / (length / 8)) ** 2).clamp_min(1e-3)
        weight = weight * profile.reshape([-1 if a == axis else 1 for a in range(3)])
    return weight
