"""Distances between the surfaces of two regions, in mm.

By default a surface is made of surface elements, as in Nikolov et al. 2021 ("Clinically Applicable Segmentation of Head
and Neck Anatomy for Radiotherapy", J Med Internet Res 23(7), e26151): wherever the eight voxels around a corner are not
all inside or all outside, an element lies at the corner, with the area that marching cubes gives it. Every statistic is
weighted by area. Alternatively a surface is made of voxels: the centers of those with one of their six neighbors
outside, each counted once.

Beyond the border of the volume, everything is outside. Distances are exact Euclidean ones, found with a k-d tree over
the points of the surface alone: unlike a distance transform its cost does not grow with the space between far regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree

from dmx.errors import ConfigError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
SurfaceKind = Literal["elements", "voxels"]

_LENGTH_SLACK = 1e-5
"""Headers keep affines in float32 and direction cosines with six digits: voxels of 1 mm read 1.0000000139 mm."""
_SHARE_SLACK = 1e-6


def surface_kind(text: str) -> SurfaceKind:
    """Return what a person calls a kind of surface.

    Raises:
        ConfigError: There is no such kind.
    """
    for kind in get_args(SurfaceKind):
        if kind == text:
            return cast(SurfaceKind, kind)
    raise ConfigError(f"surface must be {' or '.join(map(repr, get_args(SurfaceKind)))}, got {text!r}.")


@dataclass(frozen=True, kw_only=True)
class SurfaceDefinition:
    """What the distances between two surfaces are taken from.

    Attributes:
        kind: ``elements`` of Nikolov et al. 2021, or centers of ``voxels``.
        tolerance_mm: Distance up to which two surfaces count as one in the normalized surface Dice.

    Raises:
        ConfigError: One of them has no such value.
    """

    kind: SurfaceKind = "elements"
    tolerance_mm: float = 1.0

    def __post_init__(self) -> None:
        surface_kind(self.kind)
        if not (np.isfinite(self.tolerance_mm) and self.tolerance_mm >= 0):
            raise ConfigError(f"tolerance must be 0 mm or more, got {self.tolerance_mm}.")

    @property
    def words(self) -> str:
        """Say in a table what a surface is."""
        return "surface elements (Nikolov et al. 2021)" if self.kind == "elements" else "centers of surface voxels"


ELEMENTS = SurfaceDefinition()
"""What surfaces are unless another definition is asked for."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The surface of a region.

    Attributes:
        points: Its points in mm, [points, 3].
        areas: Area of each in mm², [points]; ``None`` where each counts the same.
    """

    points: Floats
    areas: Floats | None = None

    @property
    def weights(self) -> Floats:
        """How much each point counts, [points]."""
        return np.ones(len(self.points)) if self.areas is None else self.areas


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """The distance of each point of one surface to the nearest one of the other, in mm.

    Attributes:
        truth: Surface of the truth.
        prediction: Surface of the prediction.
        of_truth: For each point of the truth, the distance to the prediction.
        of_prediction: For each point of the prediction, the distance to the truth.
    """

    truth: Surface
    prediction: Surface
    of_truth: Floats
    of_prediction: Floats

    @property
    def _sides(self) -> tuple[tuple[Floats, Surface], ...]:
        return (self.of_truth, self.truth), (self.of_prediction, self.prediction)

    def hausdorff(self, percentile: float = 95.0) -> float:
        """Return the larger of the two directed percentiles in mm; 100 gives the Hausdorff distance.

        The percentile of each direction, then the maximum (Taha and Hanbury 2015; MONAI; DeepMind's surface-distance),
        and not the percentile of both directions together. Of surface elements, it is the distance within which that
        share of the area lies.
        """
        return max(_percentile(distances, surface, percentile) for distances, surface in self._sides)

    def average(self) -> float:
        """Return the average symmetric surface distance in mm: the mean over both surfaces (Heimann et al. 2009)."""
        total = sum(float(distances @ surface.weights) for distances, surface in self._sides)
        return total / sum(float(surface.weights.sum()) for _, surface in self._sides)

    def within(self, tolerance_mm: float) -> float:
        """Return the normalized surface Dice: the share of both surfaces within a tolerance of the other.

        Nikolov et al. 2021. A distance that differs from the tolerance by the rounding of a header is within it.
        """
        limit = tolerance_mm * (1 + _LENGTH_SLACK)
        close = sum(float(surface.weights[distances <= limit].sum()) for distances, surface in self._sides)
        return close / sum(float(surface.weights.sum()) for _, surface in self._sides)


def _percentile(distances: Floats, surface: Surface, percentile: float) -> float:
    if surface.areas is None or percentile >= 100:
        return float(np.percentile(distances, percentile))
    order = np.argsort(distances)
    shares = np.cumsum(surface.areas[order])
    # Where a share is hit exactly, rounding must not choose the element.
    place = int(np.searchsorted(shares, shares[-1] * (percentile / 100 - _SHARE_SLACK)))
    return float(distances[order[place]])


def surface_distances(
    truth: Bools, prediction: Bools, spacing_mm: Sequence[float], *, kind: SurfaceKind = "elements"
) -> SurfaceDistances:
    """Measure between two regions of one grid.

    Args:
        truth: Region [I, J, K] with at least one voxel.
        prediction: The same.
        spacing_mm: Voxel size per axis.
        kind: What a surface is made of.

    Raises:
        ValueError: A region is empty, so that no distance exists.
    """
    if not truth.any() or not prediction.any():
        raise ValueError("Surface distances need a voxel in the truth and in the prediction; one of them is empty.")
    there, here = (surface_of(region, spacing_mm, kind=kind) for region in (truth, prediction))
    of_truth, _ = cKDTree(here.points).query(there.points)
    of_prediction, _ = cKDTree(there.points).query(here.points)
    return SurfaceDistances(
        truth=there, prediction=here, of_truth=np.asarray(of_truth), of_prediction=np.asarray(of_prediction)
    )


def surface_of(region: Bools, spacing_mm: Sequence[float], *, kind: SurfaceKind = "elements") -> Surface:
    """Return the surface of a region [I, J, K]; one without a voxel has no points."""
    boxes = find_objects(region.astype(np.uint8))
    if not boxes:
        return Surface(points=np.empty((0, 3)), areas=np.empty(0) if kind == "elements" else None)
    first = [part.start for part in boxes[0]]
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    inner = region[boxes[0]]
    if kind == "voxels":
        return Surface(points=(np.argwhere(inner & ~binary_erosion(inner)) + first) * spacing)
    table, places = _element_areas(tuple(spacing.tolist()))
    codes = _corner_codes(np.pad(inner, 1), places)
    corners = np.argwhere((codes > 0) & (codes < len(table) - 1))
    # Corner (0, 0, 0) of a volume lies half a voxel before its first center.
    return Surface(points=(corners + first - 0.5) * spacing, areas=table[codes[tuple(corners.T)]])


def _element_areas(spacing_mm: tuple[float, ...]) -> tuple[Floats, NDArray[np.int64]]:
    """Return the area of each of the 256 neighborhoods in mm², and the bit of each of its 2 x 2 x 2 voxels."""
    from monai.metrics.utils import create_table_neighbour_code_to_surface_area

    areas, places = create_table_neighbour_code_to_surface_area(spacing_mm)
    return areas.numpy().astype(np.float64), places.numpy().reshape(2, 2, 2).astype(np.int64)


def _corner_codes(padded: Bools, places: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return which of the eight voxels around each corner between the voxels of a volume are inside, as bits."""
    shape = tuple(n - 1 for n in padded.shape)
    codes = np.zeros(shape, dtype=np.intp)
    for offset, place in np.ndenumerate(places):
        codes += place * padded[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    return codes
