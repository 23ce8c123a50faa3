"""Sizes, margins and tiles of volumes and segments, in voxels. Plain integers, no arrays.

A *segment* is a box of the volume; the network reads one patch per pathway around it and gives an output block inside
it. :class:`SegmentPlan` is the whole contract between a network and whoever feeds it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

Triple = tuple[int, int, int]


def triple(value: int | Sequence[int]) -> Triple:
    """Return one number per axis.

    >>> triple(3)
    (3, 3, 3)
    """
    if isinstance(value, int):
        return (value, value, value)
    i, j, k = value
    return (int(i), int(j), int(k))


@dataclass(frozen=True)
class PatchPlan:
    """What one pathway reads of a segment.

    Attributes:
        name: Pathway, e.g. ``normal`` or ``subsampled_1``.
        shape: Patch size that the pathway gets, in voxels of the patch.
        factor: Voxels of the volume per voxel of the patch, per axis.
        offset: First voxel of the volume that the patch covers, relative to the segment's first voxel; negative
            is before it. Patch voxel ``j`` covers voxel ``offset + j * factor`` and the ``factor - 1`` after it.
        reduction: ``mean`` averages the covered voxels, ``stride`` takes the first one (DeepMedic).
        border: What stands for voxels outside of the volume: ``edge`` repeats the nearest voxel, ``deepmedic`` fills a
            subsampled patch as DeepMedic does (mean of the eight corner voxels, grid restarted at the border), ``zero``
            puts zeros there (nnU-Net).
    """

    name: str
    shape: Triple
    factor: Triple
    offset: Triple
    reduction: Literal["mean", "stride"] = "mean"
    border: Literal["edge", "deepmedic", "zero"] = "edge"


@dataclass(frozen=True)
class SegmentPlan:
    """How a segment of a given size is read and what block of it the network's output covers.

    Attributes:
        shape: Segment size in voxels.
        output_shape: Size of the network's output in voxels.
        margin_before: Voxels between the segment's first voxel and the output's first voxel.
        margin_after: The same at the other end; ``shape = margin_before + output_shape + margin_after``.
        patches: One entry per input tensor of the network, in its order.
    """

    shape: Triple
    output_shape: Triple
    margin_before: Triple
    margin_after: Triple
    patches: tuple[PatchPlan, ...]


def receptive_field(kernels: Sequence[Triple]) -> Triple:
    """Return the voxels that one output voxel sees through stacked convolutions of stride 1.

    >>> receptive_field([(3, 3, 3)] * 8)
    (17, 17, 17)
    """
    return triple([1 + sum(kernel[axis] - 1 for kernel in kernels) for axis in range(3)])


def segment_start(center: Triple, shape: Triple) -> Triple:
    """Return the first voxel of a segment around a center; an even size has one voxel more behind the center."""
    return triple([c - (n - 1) // 2 for c, n in zip(center, shape, strict=True)])


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles start on an axis so that they cover it; the last one ends with the axis.

    >>> tile_starts(10, 4, 4)
    [0, 4, 6]
    >>> tile_starts(3, 4, 4)
    [0]
    """
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride), length - tile]


def tiles(shape: Triple, tile: Triple, stride: Triple) -> Iterator[Triple]:
    """Yield the first voxel of each tile, the last axis fastest."""
    axes = [tile_starts(*sizes) for sizes in zip(shape, tile, stride, strict=True)]
    i, j, k = axes
    yield from product(i, j, k)
