"""Where a scan shows something: the computed foreground, and boxes around regions."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmx.geometry import Triple, triple

Region = NDArray[np.bool_]

_CORNER = 3
_TOLERANCE = 0.1


def foreground(channels_IJK: Iterable[NDArray[Any]]) -> Region:
    """Return where any channel differs from its background, holes filled.

    The background is the median of the blocks of 3³ voxels in the eight corners. Where these differ from one another by
    more than a tenth of the image's range (1st to 99th percentile), as in a scan cut out of a larger one, the image has
    no background and all of it is foreground. Otherwise a voxel belongs to it that differs by more than that.
    """
    union: Region | None = None
    for image in channels_IJK:
        region = _foreground_of(image)
        union = region if union is None else union | region
    if union is None:
        raise ValueError("foreground needs at least one channel, got none")
    filled: Region = ndimage.binary_fill_holes(union)
    return filled


def nonzero(channels_IJK: Sequence[NDArray[Any]]) -> Region:
    """Return where any channel is not 0, holes filled; everything where that is nowhere."""
    union = np.logical_or.reduce([image != 0 for image in channels_IJK])
    filled: Region = ndimage.binary_fill_holes(union)
    return filled if filled.any() else np.ones_like(filled)


def _foreground_of(image: NDArray[Any]) -> Region:
    ends = [np.r_[: min(_CORNER, n), max(n - _CORNER, 0) : n] for n in image.shape]
    corners = image[np.ix_(*ends)].astype(np.float64)
    background = np.median(corners)
    low, high = np.percentile(image, (1.0, 99.0))
    limit = _TOLERANCE * (float(max(high, background)) - float(min(low, background)))
    first, last = np.percentile(corners, (10.0, 90.0))
    if last - first > limit or limit == 0:
        return np.ones(image.shape, dtype=np.bool_)
    away: Region = np.abs(image - background) > limit
    return away


def bounding_box(region: Region, margin: int) -> tuple[Triple, Triple] | None:
    """Return first voxel and shape of the box around a region, widened within the volume; ``None`` when it is empty."""
    starts, sizes = [], []
    for axis in range(3):
        inside = np.flatnonzero(region.any(axis=tuple(other for other in range(3) if other != axis)))
        if not inside.size:
            return None
        start = max(int(inside[0]) - margin, 0)
        starts.append(start)
        sizes.append(min(int(inside[-1]) + 1 + margin, region.shape[axis]) - start)
    return triple(starts), triple(sizes)
