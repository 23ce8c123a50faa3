"""Label maps on another voxel grid: no class grows or shrinks with it, and what is thin stays.

Shares of voxels are whole numbers, so sums are exact and comparisons are the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmx.geometry import Triple
from dmx.preprocess.resample import Matrix, apply, axis_matrix

Region = NDArray[np.bool_]
Box = tuple[slice, ...]

# Weights along an axis are whole numbers of this unit; the product of three is exact in float32.
_UNIT = 256
_FULL = _UNIT**3
# A class takes no voxel of which it has less, and none that another has so much more of.
_LEAST = 0.25 * _FULL
_FARTHEST = 0.5 * _FULL
_AROUND = np.ones((3, 3, 3), dtype=np.bool_)
_BLOCK = np.ones((2, 2, 2), dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class LabelAxis:
    """How labels go from one axis to another.

    Attributes:
        weights: float32 [target, source] of whole numbers; each row sums to 256.
        nearest: Source voxel at the middle of each target voxel [target].
    """

    weights: Matrix
    nearest: NDArray[np.intp]


def label_axes(source: Triple, target: Triple, steps: Sequence[float]) -> tuple[LabelAxis, LabelAxis, LabelAxis]:
    """Return one :func:`label_axis` per axis."""
    i, j, k = (label_axis(n, m, step) for n, m, step in zip(source, target, steps, strict=True))
    return i, j, k


@lru_cache(maxsize=64)
def label_axis(source: int, target: int, step: float) -> LabelAxis:
    """Return how labels go from one axis to another whose middles coincide.

    Larger voxels take what lies in them, by length; smaller ones are interpolated linearly. A middle between two voxels
    takes the upper one in even voxels of the target and the lower one in odd ones, so that in the mean nothing grows or
    moves.

    Args:
        source: Voxels of the source.
        target: Voxels of the target.
        step: Target voxel size divided by source voxel size.
    """
    middle = (np.arange(target, dtype=np.float64) - (target - 1) / 2) * step + (source - 1) / 2
    weights = _covered(middle, source, step) if step >= 1 else np.asarray(axis_matrix(source, target, step, order=1))
    low = np.floor(middle)
    # Headers round voxel sizes: what is nearly half way is half way.
    between = np.abs(middle - low - 0.5) < 1 / (2 * _UNIT)
    upper = np.where(between, np.arange(target) % 2 == 0, middle - low > 0.5)
    whole = np.stack([_whole_numbers(row) for row in weights.astype(np.float64)])
    whole.setflags(write=False)
    return LabelAxis(whole, np.clip(low + upper, 0, source - 1).astype(np.intp))


def _covered(middle: NDArray[np.float64], source: int, step: float) -> NDArray[np.float64]:
    """Return the share of each target voxel that lies in each source voxel; the last ones go on beyond the ends."""
    bounds = np.concatenate([[-np.inf], np.arange(1, source) - 0.5, [np.inf]])
    first, last = (middle - step / 2)[:, None], (middle + step / 2)[:, None]
    overlap = np.minimum(last, bounds[None, 1:]) - np.maximum(first, bounds[None, :-1])
    shares: NDArray[np.float64] = np.clip(overlap, 0.0, None) / step
    return shares


def _whole_numbers(row: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return weights in units of 1/256; what rounding leaves over goes to the largest remainders, inner ones first."""
    exact = np.clip(row, 0.0, None) * (_UNIT / row.clip(0.0).sum())
    # What differs in the last digits is the same remainder.
    whole = np.floor(exact + 1e-3)
    remainder = np.round(exact - whole, 3)
    places = np.arange(len(row))
    outer = np.round(np.abs(places - np.average(places, weights=exact)), 3)
    whole[np.lexsort((outer, -remainder))[: int(_UNIT - whole.sum())]] += 1
    result: NDArray[np.float32] = whole.astype(np.float32)
    return result


def apply_labels(labels_IJK: NDArray[Any], per_axis: Sequence[LabelAxis], *, keep: bool = True) -> NDArray[Any]:
    """Give each target voxel the label that fills most of it; at a tie that of the voxel at its middle.

    Alone that would shrink what is round or rough, and lose what is thinner than a voxel. So voxels at the border of
    something thick that nearly have a label get it, or those that hardly have it lose it, until as much of the label is
    there as was; and structures thinner than a voxel (plates, vessels, specks) are kept one voxel thick.

    Args:
        labels_IJK: Whole numbers; 0 is the background.
        per_axis: Where they go.
        keep: Whether volumes and thin structures are kept, not only what fills most of a voxel.
    """
    values = np.unique(labels_IJK)
    near = labels_IJK[np.ix_(*(axis.nearest for axis in per_axis))]
    if len(values) == 1:
        return near
    vote = _Vote(near)
    rest = np.full(near.shape, _FULL, dtype=np.float32)
    shares = []
    for value in values[1:]:
        box, share = _share(labels_IJK == value, per_axis)
        rest[box] -= share
        vote.add(value, share, box)
        if value > 0:
            shares.append(_Share(value, box, share))
    vote.add(values[0], rest, (slice(None),) * 3)
    if values[0] > 0:
        shares.append(_Share(values[0], (slice(None),) * 3, rest))
    if keep:
        thin = [one.thin(vote.winner[one.box] == one.value) for one in shares]
        # Small ones first: what they take from larger ones, these take from others.
        for one, fine in sorted(zip(shares, thin, strict=True), key=lambda pair: pair[0].volume):
            _balance(vote, one, fine)
        _put(vote, shares, thin)
    return vote.winner


class _Vote:
    """Which label has the largest share of each voxel, and which the next one.

    Attributes:
        winner: Label [I, J, K].
        largest: Its share.
        second: The label after it.
        next: Its share.
    """

    def __init__(self, near: NDArray[Any]) -> None:
        self.near = near
        self.winner, self.second = near.copy(), near.copy()
        self.largest, self.next = (np.full(near.shape, -1.0, dtype=np.float32) for _ in range(2))

    def add(self, value: Any, share: Matrix, box: Box) -> None:
        """Count one label's shares."""
        winner, largest, second, after = (part[box] for part in (self.winner, self.largest, self.second, self.next))
        better = (share > largest) | ((share == largest) & (self.near[box] == value))
        second[better], after[better] = winner[better], largest[better]
        winner[better], largest[better] = value, share[better]
        beside = ~better & (share > after)
        second[beside], after[beside] = value, share[beside]


@dataclass(frozen=True, eq=False)
class _Share:
    """A label's share of the voxels around it, in units of 2⁻²⁴."""

    value: Any
    box: Box
    share: Matrix

    @property
    def volume(self) -> float:
        return float(self.share.sum(dtype=np.float64)) / _FULL

    def thin(self, there: Region) -> Region:
        """Return where the label has its largest share across an axis and neither voxel beside is its own.

        Along the other axes it goes on, or ends on both sides; a bump of something thicker ends on one side only.
        """
        share = self.share
        crest = np.zeros(there.shape, dtype=np.bool_)
        whole = ~there & (share > 0)
        for axis in range(share.ndim):
            before, after = (_shifted(share, axis, side) for side in (-1, 1))
            # Of two voxels that share something alike the second one has it; the first one of more is its end.
            highest = (share >= before) & (share > after)
            crest |= highest & ~(_shifted(there, axis, -1) | _shifted(there, axis, 1))
            goes_on = np.minimum(before, after) >= share / 2
            whole &= highest | goes_on | ((share == after) & _shifted(goes_on, axis, 1))
        found: Region = crest & whole
        return found


def _share(region: Region, per_axis: Sequence[LabelAxis]) -> tuple[Box, Matrix]:
    """Return the target voxels around a region that is not empty, and its share of each."""
    box, weights, inner = [], [], region
    for axis, one in enumerate(per_axis):
        inside = np.flatnonzero(region.any(axis=tuple(other for other in range(3) if other != axis)))
        source = slice(int(inside[0]), int(inside[-1]) + 1)
        reached = np.flatnonzero(one.weights[:, source].any(axis=1))
        first, last = (int(reached[0]), int(reached[-1]) + 1) if reached.size else (0, 1)
        # One voxel more on each side, which has nothing of it.
        target = slice(max(first - 1, 0), min(last + 1, len(one.nearest)))
        box.append(target)
        weights.append(one.weights[target, source])
        inner = inner[(slice(None),) * axis + (source,)]
    return tuple(box), apply(inner, weights)


def _balance(vote: _Vote, one: _Share, thin: Region) -> None:
    """Give or take voxels at the border of a label until it has the volume that it had; its thin parts apart."""
    winner, share = vote.winner[one.box], one.share
    there = winner == one.value
    near = ndimage.binary_dilation(there, _AROUND) & ~thin
    counted = near | ~ndimage.binary_dilation(thin, _AROUND)
    missing = float(share[counted].sum(dtype=np.float64)) / _FULL - int(there.sum())
    largest, after, second = vote.largest[one.box], vote.next[one.box], vote.second[one.box]
    if missing > 0:
        found = near & (winner >= 0) & ~there & (share >= _LEAST) & (largest - share <= _FARTHEST)
        moved = found & (largest - share <= _cut(largest[found] - share[found], missing))
        winner[moved] = one.value
    else:
        found = ndimage.binary_opening(there, _BLOCK) & (after >= _LEAST) & (share - after <= _FARTHEST)
        moved = found & (share - after <= _cut(share[found] - after[found], -missing))
        winner[moved] = second[moved]


def _cut(margins: NDArray[np.float32], wanted: float) -> float:
    """Return up to which margin voxels move so that about as many do as are wanted; equal ones move together."""
    levels, counts = np.unique(margins, return_counts=True)
    moved = np.concatenate([[0], np.cumsum(counts)])
    best = int(np.argmin(np.abs(moved - wanted)))
    return float(levels[best - 1]) if best else -1.0


def _put(vote: _Vote, shares: Sequence[_Share], thin: Sequence[Region]) -> None:
    """Put thin structures into the label map, where they take nothing from other thin ones."""
    winner = vote.winner
    free = winner == 0
    for value in np.unique(winner[winner > 0]):
        free |= ndimage.binary_opening(winner == value, _BLOCK)
    taken = np.zeros(winner.shape, dtype=np.float32)
    for one, fine in zip(shares, thin, strict=True):
        there = fine & free[one.box] & (one.share > taken[one.box])
        winner[one.box][there] = one.value
        taken[one.box][there] = one.share[there]


def _shifted(array: NDArray[Any], axis: int, by: int) -> NDArray[Any]:
    """Return the neighbor of each voxel along an axis, 0 beyond the ends."""
    result = np.zeros_like(array)
    low: list[slice] = [slice(None)] * array.ndim
    high = list(low)
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    to, out = (high, low) if by < 0 else (low, high)
    result[tuple(to)] = array[tuple(out)]
    return result
