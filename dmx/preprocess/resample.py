"""Interpolation from one voxel grid to another with the same axes and the same center.

Interpolation on such grids is linear and separable: one matrix per axis, [target voxels, source voxels].
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmx.errors import CohortError
from dmx.geometry import Triple, triple

Spacing = tuple[float, float, float]
Matrix = NDArray[np.float32]

Order = Literal[1, 3]

# Relative difference below which two voxel sizes are the same: headers store float32.
_SAME = 1e-4
_MAX_VOXELS = 2**31


def same_spacing(spacing: Spacing, target: Spacing) -> bool:
    """Tell whether two voxel sizes agree up to what a header can say."""
    return all(abs(a / b - 1) < _SAME for a, b in zip(spacing, target, strict=True))


def resampled_shape(shape: Triple, spacing: Spacing, target: Spacing) -> Triple:
    """Return the voxels of the target size that fill the volume, at least one per axis.

    Raises:
        CohortError: They are more than any scan has.

    >>> resampled_shape((240, 240, 155), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    (120, 120, 78)
    """
    # Half voxels round up, on every platform and for every parity.
    result = triple([max(1, int(n * s / t + 0.5)) for n, s, t in zip(shape, spacing, target, strict=True)])
    if math.prod(result) > _MAX_VOXELS:
        raise CohortError(
            f"A scan of {shape} voxels of {spacing} mm would have {result} voxels at preprocess.spacing {target}, more "
            f"than {_MAX_VOXELS}. Use larger voxels."
        )
    return result


@lru_cache(maxsize=64)
def axis_matrix(source: int, target: int, step: float, *, order: Order) -> Matrix:
    """Return the interpolation from one axis to another whose middles coincide.

    Target voxel ``t`` lies at source index ``(t - (target - 1) / 2) · step + (source - 1) / 2``, so that volumes, not
    voxel centers, cover each other. Beyond the ends the last voxel is repeated.

    Args:
        source: Voxels of the source.
        target: Voxels of the target.
        step: Target voxel size divided by source voxel size.
        order: 1 linear, 3 cubic spline.

    Returns:
        float32 [target, source]; each row sums to 1.
    """
    index = (np.arange(target, dtype=np.float64) - (target - 1) / 2) * step + (source - 1) / 2
    unit = np.eye(source)
    columns = [ndimage.map_coordinates(unit[j], index[None], order=order, mode="nearest") for j in range(source)]
    matrix: Matrix = np.stack(columns, axis=1).astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def matrices(source: Triple, target: Triple, steps: Sequence[float], *, order: Order) -> tuple[Matrix, Matrix, Matrix]:
    """Return one matrix per axis; see :func:`axis_matrix`."""
    i, j, k = (axis_matrix(n, m, step, order=order) for n, m, step in zip(source, target, steps, strict=True))
    return i, j, k


def apply(array_IJK: NDArray[Any], per_axis: Sequence[Matrix]) -> NDArray[np.float32]:
    """Interpolate a volume with one matrix per axis."""
    along_i, along_j, along_k = per_axis
    volume = np.ascontiguousarray(array_IJK, dtype=np.float32)
    volume = (along_i @ volume.reshape(volume.shape[0], -1)).reshape(-1, *volume.shape[1:])
    result: NDArray[np.float32] = np.matmul(along_j, volume) @ along_k.T
    return result
