"""What a scan is known by when its file was saved anew: a hash of its voxels, and landmarks that survive resampling."""

import base64
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Likeness = Literal["likely", "possible"]

_LENGTH: Final = 32
# With fewer values than this, scans of different people can be alike: masks, empty ones.
_FEWEST_VALUES: Final = 16

# Landmarks are sought at one physical size, in mm, whatever the voxel size.
_SPACING: Final = 2.0
_FINE, _COARSE = 2.0, 3.2
_MOST: Final = 64
_MOST_VOXELS: Final = 512
_FEWEST_VOXELS: Final = 8
# A landmark must stand out by this part of the standard deviation of the scan.
_CONTRAST: Final = 0.02
# Bounds of the squared distance of the shells around a landmark, in units of the spacing.
_SHELLS: Final = (0, 2, 4, 6, 10, 14, 17)
_STEPS: Final = 40.0
_TENTH: Final = 0.1

# Two landmarks are alike up to this distance of their shells (in standard deviations), and agree in place up to mm.
_ALIKE: Final = 0.6
_APART: Final = 2.0
_FEWEST: Final = 6
# Landmarks that agree, and which part of those that could.
_SURE: Final[Mapping[Likeness, tuple[int, float]]] = {"likely": (12, 0.25), "possible": (7, 0.27)}


def voxels_hash(array: NDArray[Any]) -> str:
    """Return a hash of a volume that neither dtype, scaling, flips nor an order of the axes change.

    The voxels count by the rank of their values: every increasing map of the intensities keeps it.

    Args:
        array: [I, J, K].

    Returns:
        Empty where there are too few values to tell one scan from another.
    """
    values, ranks = np.unique(array, return_inverse=True)
    if len(values) < _FEWEST_VALUES:
        return ""
    return _hash(_canonical(ranks.reshape(array.shape).astype(np.uint32), axes=3))


def pixels_hash(image: NDArray[np.uint8]) -> str:
    """Return a hash of an image [H, W, C] that neither its format, flips nor quarter turns change."""
    return _hash(_canonical(image, axes=2))


def _hash(array: NDArray[Any]) -> str:
    content = np.ascontiguousarray(array)
    return hashlib.sha256(f"{content.dtype.str}{content.shape}".encode() + content.tobytes()).hexdigest()[:_LENGTH]


def _canonical(array: NDArray[Any], *, axes: int) -> NDArray[Any]:
    """Turn an array such that its first axes are in an order and a direction that its content decides."""
    moments = []
    for axis in range(axes):
        others = tuple(other for other in range(array.ndim) if other != axis)
        profile = array.sum(axis=others, dtype=np.int64).tolist()
        places = range(1 - len(profile), len(profile) + 1, 2)
        moment = sum(place * value for place, value in zip(places, profile, strict=True))
        if moment < 0:
            array = np.flip(array, axis)
        moments.append((array.shape[axis], abs(moment)))
    order = sorted(range(axes), key=moments.__getitem__)
    return array.transpose(*order, *range(axes, array.ndim))


def landmarks(array: NDArray[Any], spacing: Sequence[float]) -> str:
    """Return landmarks of a volume as text: places in mm, and what is around each.

    They are extrema of a difference of Gaussians (Lowe 2004) at one physical size; around each the mean and the spread
    of the intensities in shells, which flips and turns do not change.

    Args:
        array: [I, J, K].
        spacing: Voxel size in mm.

    Returns:
        Empty where there are none, as in a blank scan.
    """
    field = _field(array, spacing)
    if field is None:
        return ""
    fine, difference = field
    places = _extrema(difference, _CONTRAST * float(fine.std()))
    if not len(places):
        return ""
    around = _around(fine, places)
    signs = np.sign(difference[tuple(np.rint(places).astype(int).T)])
    shells = np.clip(np.rint(around * _STEPS), -127, 127).astype(np.int8)
    mm = np.rint(places * _SPACING / _TENTH).astype("<i2")
    rows = np.concatenate([mm.view(np.int8), signs[:, None].astype(np.int8), shells], axis=1)
    return base64.b64encode(rows.tobytes()).decode()


def _field(array: NDArray[Any], spacing: Sequence[float]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return the smoothed scan at the spacing of landmarks, and the difference to a smoother one."""
    from scipy import ndimage

    size = [count * width / _SPACING for count, width in zip(array.shape, spacing, strict=True)]
    if not (min(size) >= _FEWEST_VOXELS and max(size) <= _MOST_VOXELS):
        return None
    factors = [max(1, int(_SPACING / width + 1e-3)) for width in spacing]
    blocks = _block_mean(np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0), factors)
    widths = [width * factor for width, factor in zip(spacing, factors, strict=True)]
    # A mean of blocks smooths, too.
    done = [(factor**2 - 1) / 12 * width**2 for factor, width in zip(factors, spacing, strict=True)]
    reach = list(zip(blocks.shape, widths, strict=True))
    smoothed = []
    for sigma in (_FINE, _COARSE):
        sigmas = [np.sqrt(max(sigma**2 - less, 0.0)) / width for less, width in zip(done, widths, strict=True)]
        smooth = ndimage.gaussian_filter(blocks, sigmas, mode="nearest", truncate=3.0)
        shape = [max(1, int((count - 1) * width / _SPACING + 1e-3) + 1) for count, width in reach]
        ratio = [_SPACING / width for width in widths]
        smoothed.append(ndimage.affine_transform(smooth, ratio, output_shape=tuple(shape), order=1, mode="nearest"))
    fine, coarse = smoothed
    return fine, fine - coarse


def _block_mean(array: NDArray[Any], factors: Sequence[int]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = array.astype(np.float32)
    for axis, factor in enumerate(factors):
        if factor > 1:
            count = result.shape[axis] // factor
            kept = np.take(result, range(count * factor), axis=axis)
            shape = (*kept.shape[:axis], count, factor, *kept.shape[axis + 1 :])
            result = kept.reshape(shape).mean(axis=axis + 1)
    return result


def _extrema(difference: NDArray[np.float32], contrast: float) -> NDArray[np.float64]:
    """Return the places of the strongest extrema, between the voxels by a parabola through three: [landmarks, 3]."""
    from scipy import ndimage

    high = ndimage.maximum_filter(difference, 3, mode="nearest")
    low = ndimage.minimum_filter(difference, 3, mode="nearest")
    found = ((difference == high) | (difference == low)) & (np.abs(difference) > contrast) & (high > low)
    for axis in range(3):
        inside = np.zeros(difference.shape[axis], dtype=bool)
        inside[1:-1] = True
        found &= np.expand_dims(inside, [other for other in range(3) if other != axis])
    places = np.argwhere(found)
    order = np.argsort(-np.abs(difference[tuple(places.T)]), kind="stable")[:_MOST]
    places = places[order]
    exact = places.astype(np.float64)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        before, at, after = (difference[tuple((places + k * step).T)].astype(np.float64) for k in (-1, 0, 1))
        bend = before - 2 * at + after
        shift = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend != 0)
        exact[:, axis] += np.clip(shift, -0.5, 0.5)
    return exact


@cache
def _offsets() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the offsets of a ball, [points, 3], and the shell of each."""
    reach = int(np.sqrt(_SHELLS[-1]))
    grid = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    squared = (grid**2).sum(axis=1)
    shells = np.searchsorted(_SHELLS, squared, side="right") - 1
    inside = squared < _SHELLS[-1]
    return grid[inside], shells[inside]


def _around(fine: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mean and spread of each shell around each place, in standard deviations of the ball: [places, shells]."""
    from scipy import ndimage

    offsets, shells = _offsets()
    points = (places[:, None] + offsets[None]).reshape(-1, 3).T
    values = ndimage.map_coordinates(fine, points, order=1, mode="nearest").reshape(len(places), -1).astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(values.std(axis=1, keepdims=True), 1e-12)
    parts = [values[:, shells == shell] for shell in range(shells.max() + 1)]
    return np.stack([part.mean(axis=1) for part in parts] + [part.std(axis=1) for part in parts], axis=1)


@dataclass(frozen=True)
class Landmarks:
    """Landmarks as numbers.

    Attributes:
        places: [landmarks, 3] in mm.
        around: [landmarks, numbers], of which the first is the sign of the extremum.
    """

    places: NDArray[np.float32]
    around: NDArray[np.float32]


def read_landmarks(text: str) -> Landmarks:
    """Return what :func:`landmarks` wrote."""
    width = 7 + 2 * (len(_SHELLS) - 1)
    rows = np.frombuffer(base64.b64decode(text), dtype=np.int8).reshape(-1, width)
    places = np.ascontiguousarray(rows[:, :6]).view("<i2").astype(np.float32) * _TENTH
    around = rows[:, 6:].astype(np.float32) / _STEPS
    # Bright and dark spots are never alike.
    around[:, 0] *= 10 * _STEPS
    return Landmarks(places, around)


@cache
def _turns() -> NDArray[np.float32]:
    """Return the 48 flips and orders of three axes: [48, 3, 3]."""
    turns = [
        np.diag(signs) @ np.eye(3)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    return np.array(turns, dtype=np.float32)


def agreement(first: Landmarks, second: Landmarks) -> tuple[int, float]:
    """Return how many landmarks of two scans agree in look and place, and which part of those of the smaller set.

    Scans may be flipped, cropped, shifted, and have another order of the axes.
    """
    distance = np.linalg.norm(first.around[:, None] - second.around[None], axis=2)
    nearest = distance.argmin(axis=1)
    one = np.arange(len(nearest))
    chosen = (distance.argmin(axis=0)[nearest] == one) & (distance[one, nearest] < _ALIKE)
    one, other = one[chosen], nearest[chosen]
    smaller = min(len(first.places), len(second.places))
    if len(one) < _FEWEST:
        return 0, 0.0
    shifts = second.places[other] - np.einsum("tij,nj->tni", _turns(), first.places[one])
    apart = np.abs(shifts[:, :, None] - shifts[:, None])
    most = int((apart < _APART).all(axis=3).sum(axis=2).max())
    return most, most / smaller


def likeness(scans: Iterable[tuple[str, str]], known: Iterable[str]) -> dict[str, Likeness]:
    """Return which scans look like known ones, and how sure that is.

    ``likely``: 12 landmarks agree and 25 % of those of the scan that has fewer; ``possible``: 7 and 27 %.

    Args:
        scans: Name and landmarks; a name may come several times.
        known: Landmarks of known scans.
    """
    others = [read_landmarks(text) for text in known]
    found: dict[str, Likeness] = {}
    for name, text in scans if others else ():
        mine = read_landmarks(text)
        for other in others:
            verdict = _verdict(*agreement(mine, other))
            if verdict is not None and found.get(name) != "likely":
                found[name] = verdict
    return found


def _verdict(count: int, share: float) -> Likeness | None:
    for verdict, (fewest, least) in _SURE.items():
        if count >= fewest and share >= least:
            return verdict
    return None
