"""What a NIfTI header promises, held against what can be. Knows the fields, not who parses them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.grid import NiftiGrid
from dmx.errors import CohortError
from dmx.geometry import Triple, triple

# Deflate codes at most 258 bytes with 2 bits.
_MAX_DEFLATE_RATIO = 1032
_MAX_VOXELS = 2**31


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What a file's header promises.

    Attributes:
        grid: The grid of its first three axes.
        shape: All axes, trailing ones of length 1 dropped down to three.
        dtype: Type on disk, byte order included.
        offset: First byte of the data.
        slope: Scaling factor; 1 where the file has none.
        intercept: Added after the factor.
    """

    grid: NiftiGrid
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float


def interpret(path: Path, raw: Any, *, version: int) -> NiftiHeader:
    """Return what the fields of a header mean.

    Args:
        path: File, for the message.
        raw: nibabel's header, unchecked.
        version: 1 or 2 (NIfTI-1 or NIfTI-2).

    Raises:
        CohortError: The fields contradict each other or mean nothing.
    """
    if not bytes(raw["magic"]).startswith(b"n+"):
        raise CohortError(f"'{path}' is not a single NIfTI file (.nii), got the magic {bytes(raw['magic'])!r}.")
    shape = _shape(path, raw["dim"])
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    # NIfTI: a slope of 0 means that the values are not scaled.
    scaled = slope != 0 and np.isfinite([slope, intercept]).all()
    first = int(raw["sizeof_hdr"])
    offset = float(raw["vox_offset"])
    if not first <= offset < 2**40:
        raise CohortError(f"'{path}' has a damaged NIfTI header: its data would start at byte {offset:g}.")
    return NiftiHeader(
        grid=_grid(path, raw, triple(shape[:3]), version=version),
        shape=shape,
        dtype=_dtype(path, raw),
        offset=int(offset),
        slope=slope if scaled else 1.0,
        intercept=intercept if scaled else 0.0,
    )


def _shape(path: Path, dim: NDArray[Any]) -> tuple[int, ...]:
    count = int(dim[0])
    shape = tuple(int(n) for n in dim[1 : 1 + count]) if 1 <= count <= 7 else ()
    if not shape or min(shape) < 1:
        raise CohortError(f"'{path}' has a damaged NIfTI header: its sizes are {dim.tolist()}.")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3:
        raise CohortError(f"'{path}' must be 3D, got {len(shape)} dimensions {shape}.")
    return shape


def _dtype(path: Path, raw: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = raw.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise CohortError(f"'{path}' must hold integers or floats of at most 8 bytes, got {dtype}.")
    return dtype


def _grid(path: Path, raw: Any, shape: Triple, *, version: int) -> NiftiGrid:
    if int(raw["sform_code"]) == 0 and not (np.asarray(raw["pixdim"][1:4]) > 0).all():
        raise CohortError(f"'{path}' must have voxel sizes above 0, got {raw['pixdim'][1:4].tolist()}.")
    with np.errstate(all="ignore"):
        affine = np.asarray(raw.get_best_affine(), dtype=np.float64)
        determinant = float(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
        sizes = float(np.prod(np.sqrt((affine[:3, :3] ** 2).sum(axis=0))))
    # The determinant of the unit axes: 0 where two of them fall together, whatever the voxel size.
    if not sizes > 0 or not np.isfinite(sizes) or abs(determinant) / sizes < 1e-4:
        raise CohortError(f"'{path}' has an affine that cannot be inverted: {affine[:3].tolist()}.")
    x, y, z = (float(value) for value in raw["pixdim"][1:4])
    quaternion = [raw["pixdim"][0], *(raw[f"quatern_{axis}"] for axis in "bcd"), *(raw[f"qoffset_{a}"] for a in "xyz")]
    return NiftiGrid(
        shape=shape,
        affine=affine,
        zooms=(x, y, z),
        qform_code=int(raw["qform_code"]),
        sform_code=int(raw["sform_code"]),
        quaternion=tuple(float(value) for value in quaternion),
        xyzt_units=int(raw["xyzt_units"]),
        version=version,
    )


def require_data(path: Path, header: NiftiHeader, file_size: int) -> None:
    """Refuse a header that promises more than the file can hold, before anything is allocated."""
    voxels = 1
    for length in header.shape:
        voxels *= length
    promised = header.offset + voxels * header.dtype.itemsize
    possible = file_size * _MAX_DEFLATE_RATIO if path.name.endswith(".gz") else file_size
    if promised > possible:
        raise CohortError(f"'{path}' is cut off: its header promises {promised} bytes, the file cannot hold them.")
    if voxels > _MAX_VOXELS:
        raise CohortError(f"'{path}' must have at most {_MAX_VOXELS} voxels, got {header.shape}.")
