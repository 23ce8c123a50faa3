"""Which tiles a volume is predicted by: their sizes and places. No network runs here.

A tile is named by its *output block*; what the network reads around it follows from its :class:`SegmentPlan`.

Subsampled pathways see a grid that is anchored at the tile, so two tiles agree on a voxel only when their starts differ
by a multiple of every factor (the *alignment*). With such starts, and with networks whose convolutions are not padded,
the tiles give what one pass over the whole volume gives, up to float rounding. Three layouts follow from that:

- networks with a margin: rows of tiles around what the roi covers, starts on multiples of the alignment, sizes fitted
  to each row; tiles may reach beyond the volume, whose edge voxels are then repeated;
- networks without a margin, which know nothing beyond the tile: tiles of one size inside of the volume, the last one of
  an axis shifted back, so that each has all the surrounding it can get;
- DeepMedic's compatibility: as the second, inside of the margin of the volume, which was padded by reflection before.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from dmx.errors import ModelError
from dmx.geometry import SegmentPlan, Triple, triple
from dmx.model.network import Network

Region = NDArray[np.bool_]

_REFERENCE_SIZES = (32, 48, 64, 96, 128, 192, 256)
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Tile:
    """One forward pass' worth of a volume.

    Attributes:
        start: First voxel of the output block in the volume; the block may end beyond the volume.
        plan: How the segment around it is read; ``plan.output_shape`` is the block's size.
    """

    start: Triple
    plan: SegmentPlan

    @property
    def segment_start(self) -> Triple:
        """First voxel that the network reads."""
        return triple([s - m for s, m in zip(self.start, self.plan.margin_before, strict=True)])


class Plans:
    """The segment plans of one network, and what they have in common.

    Attributes:
        margin_before: Voxels that the network reads before its output block.
        margin_after: The same behind it.
        alignment: Least common multiple of the subsampling factors, per axis.
        inside: Tiles stay inside of the volume, as DeepMedic's do.
        has_margin: The network sees beyond its output block.
    """

    def __init__(self, network: Network, reference: Triple | None = None) -> None:
        self._network = network
        plan = self._reference() if reference is None else self._network.segment_plan(reference)
        self.margin_before = plan.margin_before
        self.margin_after = plan.margin_after
        self.alignment = triple([math.lcm(*(patch.factor[axis] for patch in plan.patches)) for axis in range(3)])
        self.inside = network.compatibility == "deepmedic"
        self.has_margin = max(*plan.margin_before, *plan.margin_after) > 0

    def _reference(self) -> SegmentPlan:
        """Return the plan of the first usual size that the network takes."""
        for size in _REFERENCE_SIZES[:-1]:
            try:
                return self._network.segment_plan(triple(size))
            except ModelError:
                continue
        return self._network.segment_plan(triple(_REFERENCE_SIZES[-1]))

    def of_segment(self, segment: Triple) -> SegmentPlan:
        """Return the plan of a segment, or raise the network's :class:`ModelError`."""
        return self._network.segment_plan(segment)

    def covering(self, output: Triple) -> SegmentPlan:
        """Return the plan of the smallest segment whose output block is at least as large as asked for.

        Raises:
            ModelError: The network takes no size near it.
        """
        margins = zip(self.margin_before, self.margin_after, strict=True)
        wanted = triple([o + before + after for o, (before, after) in zip(output, margins, strict=True)])
        for multiple in _MULTIPLES:
            try:
                plan = self.of_segment(triple([_round_up(n, multiple) for n in wanted]))
            except ModelError:
                continue
            if all(got >= asked for got, asked in zip(plan.output_shape, output, strict=True)):
                return plan
        return self.of_segment(wanted)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def occupied(roi: Region | None, lows: Sequence[int], highs: Sequence[int]) -> list[tuple[int, int]] | None:
    """Return per axis the range that the roi covers inside a box, or None where it covers nothing.

    Args:
        roi: Region [I, J, K], or None for everything.
        lows: First voxel of the box.
        highs: Voxel after its last.
    """
    if roi is None:
        return list(zip(lows, highs, strict=True))
    box = roi[tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))]
    if not box.any():
        return None
    hits = [np.flatnonzero(np.any(box, axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return [(low + int(found[0]), low + int(found[-1]) + 1) for low, found in zip(lows, hits, strict=True)]


def fitted_tiles(
    shape: Triple, plans: Plans, largest: Triple, *, roi: Region | None = None, overlap: float = 0.0
) -> Iterator[Tile]:
    """Yield tiles in slabs, rows and pieces, each fitted to what the roi covers there.

    Args:
        shape: Volume size.
        plans: Plans of a network with a margin.
        largest: Largest output block.
        roi: Region [I, J, K] outside of which nothing is wanted.
        overlap: Share of a block that its neighbor predicts too.
    """

    def pieces(axis: int, lows: list[int], highs: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        ranges = occupied(roi, lows, highs)
        if ranges is None:
            return
        if axis == 3:
            yield lows, highs
            return
        for low, high in _intervals(ranges[axis], largest[axis], plans.alignment[axis], overlap):
            lower = [*lows[:axis], low, *lows[axis + 1 :]]
            upper = [*highs[:axis], high, *highs[axis + 1 :]]
            yield from pieces(axis + 1, lower, upper)

    for lows, highs in pieces(0, [0, 0, 0], list(shape)):
        yield Tile(triple(lows), plans.covering(triple([high - low for low, high in zip(lows, highs, strict=True)])))


def _intervals(covered: tuple[int, int], largest: int, alignment: int, overlap: float) -> list[tuple[int, int]]:
    """Return intervals that cover a range, starts and lengths on multiples of the alignment.

    >>> _intervals((4, 25), 12, 3, 0.0)
    [(3, 15), (15, 27)]
    >>> _intervals((0, 20), 12, 3, 0.5)
    [(0, 12), (6, 18), (12, 24)]
    """
    low = covered[0] // alignment * alignment
    length = _round_up(covered[1] - low, alignment)
    size = max(alignment, largest // alignment * alignment)
    if length <= size:
        return [(low, low + length)]
    if overlap == 0:
        size = _round_up(-(-length // -(-length // size)), alignment)
    step = max(alignment, int(size * (1 - overlap)) // alignment * alignment)
    count = -(-(length - size) // step) + 1
    return [(low + n * step, low + n * step + size) for n in range(count)]


def grid_tiles(
    shape: Triple, plans: Plans, plan: SegmentPlan, *, roi: Region | None = None, overlap: float = 0.0
) -> Iterator[Tile]:
    """Yield tiles of one size that stay inside of the volume; the last one of an axis is shifted back.

    The order is DeepMedic's (third axis slowest), which decides what remains where shifted tiles overlap.

    Args:
        shape: Volume size.
        plans: Plans of the network.
        plan: Plan of the tiles.
        roi: Region [I, J, K]; a tile without any of it in its output block is left out. DeepMedic keeps a tile that
            reads any of it, which costs a third more and changes nothing within the roi.
        overlap: Share of a block that its neighbor predicts too.
    """
    ranges = occupied(roi, (0, 0, 0), shape)
    if ranges is None:
        return
    if plans.inside:
        margins = zip(shape, plans.margin_before, plans.margin_after, strict=True)
        ranges = [(before, n - after) for n, before, after in margins]
    starts = [_shifted(ranges[a], plan.output_shape[a], shape[a], overlap) for a in range(3)]
    for k, j, i in product(*reversed(starts)):
        start = (i, j, k)
        if roi is None or roi[tuple(slice(s, s + o) for s, o in zip(start, plan.output_shape, strict=True))].any():
            yield Tile(start, plan)


def _shifted(covered: tuple[int, int], size: int, length: int, overlap: float) -> list[int]:
    """Return starts of tiles of one size that cover a range of an axis and stay on the axis where they fit.

    >>> _shifted((2, 12), 4, 12, 0.0)
    [2, 6, 8]
    >>> _shifted((0, 2), 4, 12, 0.0)
    [0]
    """
    low, high = covered
    if high - low <= size:
        return [max(0, min(low - (size - high + low) // 2, length - size))]
    step = max(1, int(size * (1 - overlap)))
    return [*range(low, high - size, step), high - size]


def split_evenly(extent: Triple, parts: Triple, alignment: Triple) -> Triple:
    """Return the block size that cuts an extent into that many parts per axis, on multiples of the alignment."""
    sizes = zip(extent, parts, alignment, strict=True)
    return triple([_round_up(-(-n // count), multiple) for n, count, multiple in sizes])
