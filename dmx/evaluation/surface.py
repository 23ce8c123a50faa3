"""Distances between the surfaces of two regions, in mm.

The surface of a region is those of its voxels of which at least one of the six neighbors lies outside of it (or outside
of the volume). Distances are exact Euclidean ones between voxel centers, found with a k-d tree over the surface voxels
alone: unlike a distance transform its cost does not grow with the space between two far regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import cKDTree

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SurfaceDistances:
    """The distance of each surface voxel of one region to the nearest one of the other, in mm.

    Attributes:
        of_truth: For the surface of the truth, the distances to the prediction's.
        of_prediction: For the surface of the prediction, the distances to the truth's.
    """

    of_truth: Floats
    of_prediction: Floats

    def hausdorff(self, percentile: float = 95.0) -> float:
        """Return the larger of the two directed percentiles in mm; 100 gives the Hausdorff distance.

        The percentile of each direction, then the maximum: the definition of Taha and Hanbury 2015 and of MONAI.
        """
        return float(max(np.percentile(self.of_truth, percentile), np.percentile(self.of_prediction, percentile)))

    def within(self, tolerance_mm: float) -> float:
        """Return the normalized surface Dice: the share of both surfaces within a tolerance of the other.

        Nikolov et al. 2021, with surface voxels in place of surface elements, as MONAI counts by default.
        """
        close = np.count_nonzero(self.of_truth <= tolerance_mm) + np.count_nonzero(self.of_prediction <= tolerance_mm)
        return close / (len(self.of_truth) + len(self.of_prediction))


def surface_distances(truth: Bools, prediction: Bools, spacing_mm: Sequence[float]) -> SurfaceDistances:
    """Measure between two regions of one grid.

    Args:
        truth: Region [I, J, K] with at least one voxel.
        prediction: The same.
        spacing_mm: Voxel size per axis.

    Raises:
        ValueError: A region is empty, so that no distance exists.
    """
    points = [surface_points(region, spacing_mm) for region in (truth, prediction)]
    if min(len(found) for found in points) == 0:
        raise ValueError("Surface distances need a voxel in the truth and in the prediction; one of them is empty.")
    of_truth, _ = cKDTree(points[1]).query(points[0])
    of_prediction, _ = cKDTree(points[0]).query(points[1])
    return SurfaceDistances(np.asarray(of_truth), np.asarray(of_prediction))


def surface_points(region: Bools, spacing_mm: Sequence[float]) -> Floats:
    """Return the centers of a region's surface voxels in mm, [points, 3]."""
    boxes = find_objects(region.astype(np.uint8))
    if not boxes:
        return np.empty((0, 3))
    box = boxes[0]
    inner = region[box]
    voxels = np.argwhere(inner & ~binary_erosion(inner)) + [part.start for part in box]
    return np.asarray(voxels * np.asarray(spacing_mm, dtype=np.float64))
