"""NIfTI in and out. The only module that imports nibabel.

The header is parsed without nibabel's repairs and held against the size of the file before anything is allocated, so a
damaged or hostile file costs one sentence and no memory.
"""

import gzip
import io
import stat
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dmx.cohort.files import atomic_file
from dmx.cohort.grid import Affine, NiftiGrid
from dmx.cohort.header import NiftiHeader, interpret, require_data
from dmx.errors import CohortError
from dmx.geometry import Triple, triple

_LONGEST_HEADER = 540
_COMPRESSION = 4
_BEHIND = 2**20


@dataclass(frozen=True, eq=False)
class Volume:
    """An array on its grid.

    Attributes:
        array: [I, J, K], the file's integers or float32, scaling applied.
        header: The grid.
    """

    array: NDArray[Any]
    header: NiftiGrid

    @property
    def affine(self) -> Affine:
        """4x4, voxel to mm in RAS+ world coordinates."""
        return self.header.affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis."""
        return self.header.spacing

    @property
    def orientation(self) -> str:
        """Where the axes point, e.g. ``RAS``."""
        return orientation(self.affine)

    @property
    def spatial_shape(self) -> Triple:
        """Voxels per axis."""
        return triple(self.array.shape)


def orientation(affine: Affine) -> str:
    """Return where the voxel axes point, e.g. ``RAS``: towards right, anterior, superior."""
    from nibabel.orientations import aff2axcodes

    return "".join(str(code) for code in aff2axcodes(affine))


def _parse_header(path: Path, start: bytes) -> NiftiHeader:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    little, big = int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")
    for size, version, kind in ((348, 1, Nifti1Header), (540, 2, Nifti2Header)):
        if size in (little, big) and len(start) >= size:
            raw = kind(start[:size], endianness="<" if size == little else ">", check=False)
            return interpret(path, raw, version=version)
    raise CohortError(f"'{path}' is not a NIfTI file: it does not start with a NIfTI-1 or NIfTI-2 header.")


def read_volume(path: str | Path) -> Volume:
    """Read a 3D NIfTI file (``.nii``, ``.nii.gz``; version 1 or 2).

    Raises:
        CohortError: The file cannot be used; the message names it.
    """
    header = _require_3d(Path(path), read_header(path))
    return Volume(array=_read_data(Path(path), header), header=header.grid)


def read_grid(path: str | Path) -> NiftiGrid:
    """Read the grid of a 3D NIfTI file without its voxels.

    Raises:
        CohortError: The file cannot be used; the message names it.
    """
    return _require_3d(Path(path), read_header(path)).grid


def read_series(path: str | Path) -> tuple[NDArray[Any], NiftiGrid]:
    """Read a NIfTI file of three or four dimensions as [I, J, K, T] and the grid of its volumes.

    Raises:
        CohortError: The file cannot be used; the message names it.
    """
    header = read_header(path)
    if len(header.shape) > 4:
        raise CohortError(f"'{path}' must have 3 or 4 dimensions, got {len(header.shape)}: {header.shape}.")
    array = _read_data(Path(path), header)
    return array.reshape((*header.grid.shape, -1), order="F"), header.grid


def integer_type(highest: int, lowest: int = 0) -> np.dtype[Any]:
    """Return the smallest type for label maps that holds these values; unsigned beyond 8 bits is not widely read.

    >>> integer_type(255), integer_type(256), integer_type(3, -1), integer_type(100_000)
    (dtype('uint8'), dtype('int16'), dtype('int16'), dtype('int32'))
    """
    for kind in (np.uint8, np.int16, np.int32):
        if np.iinfo(kind).min <= lowest and highest <= np.iinfo(kind).max:
            return np.dtype(kind)
    return np.dtype(np.int64)


def write_volume(path: str | Path, array: NDArray[Any], grid: NiftiGrid, *, dtype: DTypeLike) -> None:
    """Write a NIfTI file on a grid: complete or not at all, the same bytes for the same values.

    Args:
        path: File to write, ``.nii`` or ``.nii.gz``; folders are made.
        array: [I, J, K] of the grid's shape.
        grid: Affine, codes, units and voxel sizes, kept as they are.
        dtype: Type on disk; values that it cannot hold are refused.

    Raises:
        CohortError: The array does not fit the grid or the type, or the file cannot be written.
    """
    path = Path(path)
    _require_suffix(path)
    if np.dtype(dtype).kind not in "iuf" or np.dtype(dtype) == np.float16:
        raise CohortError(f"'{path}' must be written as integers or floats of 4 or 8 bytes, got {np.dtype(dtype)}.")
    if array.shape != grid.shape:
        raise CohortError(f"'{path}' must have the shape of its grid {grid.shape}, got an array of {array.shape}.")
    content = _encode(_cast(path, array, np.dtype(dtype)), grid)
    if path.name.endswith(".gz"):
        packed = io.BytesIO()
        # Neither time nor name go into the file: equal volumes are equal bytes.
        with gzip.GzipFile(filename="", fileobj=packed, mode="wb", compresslevel=_COMPRESSION, mtime=0) as stream:
            stream.write(content)
        content = packed.getvalue()
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise CohortError(f"'{path}' cannot be written: {error.strerror or error}.") from error


def read_header(path: str | Path) -> NiftiHeader:
    """Read what a NIfTI file promises and hold it against the file's size.

    Raises:
        CohortError: The header cannot be used, or promises more data than the file can hold.
    """
    path = Path(path)
    _require_suffix(path)
    try:
        status = path.stat()
        # A pipe would wait for ever, a device never end.
        if not stat.S_ISREG(status.st_mode):
            raise CohortError(f"'{path}' cannot be read: it is not a file.")
        with closing(_open(path)) as stream:
            start = stream.read(_LONGEST_HEADER)
        header = _parse_header(path, start)
        require_data(path, header, status.st_size)
    except CohortError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise CohortError(f"'{path}' cannot be read: {_reason(error)}.") from error
    # A hostile header can make any part of a parser fail; all of it is the file's fault.
    except Exception as error:
        raise CohortError(f"'{path}' has a damaged NIfTI header: {error}.") from error
    return header


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _require_suffix(path: Path) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise CohortError(f"'{path}' must be a NIfTI file that ends in .nii or .nii.gz.")


def _require_3d(path: Path, header: NiftiHeader) -> NiftiHeader:
    if len(header.shape) != 3:
        raise CohortError(
            f"'{path}' must be 3D, got {len(header.shape)} dimensions {header.shape}: write each of its volumes to a "
            "file and a column of its own."
        )
    return header


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _read_data(path: Path, header: NiftiHeader) -> NDArray[Any]:
    size = int(np.prod(header.shape, dtype=np.int64)) * header.dtype.itemsize
    try:
        with closing(_open(path)) as stream:
            stream.seek(header.offset)
            content = bytearray(size)
            filled = _fill(stream, content)
            # The checksum at the end of a gzip file is compared only when the end is reached; a damaged stream can go
            # on behind the data.
            while path.name.endswith(".gz") and stream.read(_BEHIND):
                pass
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise CohortError(f"'{path}' cannot be read: {_reason(error) or 'not enough memory'}.") from error
    if filled != size:
        raise CohortError(f"'{path}' is cut off: its header promises {size} bytes of data, got {filled}.")
    array = np.frombuffer(content, dtype=header.dtype).reshape(header.shape, order="F")
    if header.dtype.kind in "iu" and (header.slope, header.intercept) == (1.0, 0.0):
        return array.astype(header.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        if (header.slope, header.intercept) != (1.0, 0.0):
            array = array * np.float64(header.slope) + np.float64(header.intercept)
        return array.astype(np.float32, order="F", copy=False)


def _fill(stream: io.BufferedReader | gzip.GzipFile, content: bytearray) -> int:
    """Read until the buffer is full or the stream ends; return the number of bytes."""
    filled = 0
    with memoryview(content) as view:
        while count := stream.readinto(view[filled:]):
            filled += count
    return filled


def _cast(path: Path, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        low, high = array.min(), array.max()
        if not (limits.min <= low and high <= limits.max) or (array.dtype.kind == "f" and (array % 1 != 0).any()):
            raise CohortError(f"'{path}' must hold {dtype} values, got others between {low} and {high}.")
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError as error:
        raise CohortError(f"'{path}' must hold {dtype} values, got one that is too large.") from error


def _encode(array: NDArray[Any], grid: NiftiGrid) -> bytes:
    from nibabel.nifti1 import Nifti1Header, Nifti1Image
    from nibabel.nifti2 import Nifti2Header, Nifti2Image

    header = Nifti1Header() if grid.version == 1 else Nifti2Header()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header["pixdim"][:4] = (grid.quaternion[0], *grid.zooms)
    for key, value in zip(("quatern_b", "quatern_c", "quatern_d"), grid.quaternion[1:4], strict=True):
        header[key] = value
    for key, value in zip(("qoffset_x", "qoffset_y", "qoffset_z"), grid.quaternion[4:], strict=True):
        header[key] = value
    for key, row in zip(("srow_x", "srow_y", "srow_z"), grid.affine[:3], strict=True):
        header[key] = row
    header["qform_code"], header["sform_code"] = grid.qform_code, grid.sform_code
    header["xyzt_units"] = grid.xyzt_units
    image_class = Nifti1Image if grid.version == 1 else Nifti2Image
    content: bytes = image_class(array, None, header).to_bytes()
    return content
