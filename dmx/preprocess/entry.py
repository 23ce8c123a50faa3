"""One prepared case on disk: a folder with a file of arrays and a small file that says where each lies in it.

The small file is written last and the folder appears under its name in one step, so an entry is complete or absent. All
arrays share a file because a memory map holds a file descriptor: a process may have a thousand of them.
"""

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.regions import IGNORED
from dmx.errors import CohortError
from dmx.geometry import Triple
from dmx.preprocess.native import Geometry
from dmx.preprocess.pipeline import PreparedCase

FORMAT = 4
INDEX = "entry.json"
ARRAYS = "arrays.bin"
# Cache lines of current processors.
_ALIGNMENT = 64

# Maps that some array of this process still reads from.
_OPEN: WeakValueDictionary[Path, mmap.mmap] = WeakValueDictionary()


class Arrays(Mapping[str, NDArray[Any]]):
    """Arrays by name, each opened when it is asked for and not held."""

    def __init__(self, folder: Path, places: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder = folder
        self._places = places

    def __getitem__(self, name: str) -> NDArray[Any]:
        return open_array(self._folder, self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A prepared case whose arrays lie on disk; holding it costs no memory and no open file.

    Arrays are memory-mapped when they are asked for. All that are alive share one file descriptor, which closes with
    the last of them. Changes never reach the disk.

    Attributes:
        name: The case's name.
        subject: The person.
        folder: Where its arrays are.
        index: Content of the small file.
    """

    name: str
    subject: str
    folder: Path
    index: Mapping[str, Any]

    @property
    def channels(self) -> NDArray[np.float32]:
        """float32 [C, I, J, K]."""
        return open_array(self.folder, self.index["channels"])

    @property
    def labels(self) -> NDArray[Any] | None:
        """Class indices [I, J, K], ``None`` without a label map."""
        return self._optional("labels")

    @property
    def roi(self) -> NDArray[np.uint8] | None:
        """0 or 1, uint8 [I, J, K], ``None`` without a roi."""
        return self._optional("roi")

    @property
    def weight_maps(self) -> Mapping[str, NDArray[np.float32]]:
        """Sampling weights by name, float32 [I, J, K]."""
        return Arrays(self.folder, self.index["weight_maps"])

    @property
    def weight_cumsums(self) -> Mapping[str, NDArray[np.float64]]:
        """Cumulative sums of the flat weight maps, float64 [I·J·K]."""
        return Arrays(self.folder, self.index["weight_cumsums"])

    @property
    def centers(self) -> Mapping[str, NDArray[Any]]:
        """Flat voxel indices (int32, or int64 for 2³¹ voxels and more) of each category, all within the roi.

        ``roi`` (every voxel without one) and, with a label map, ``foreground``, ``background``, ``class_<k>`` (the k-th
        class or region). Voxels that nobody annotated belong to none; where there are some, ``image`` holds all others.
        """
        return Arrays(self.folder, self.index["centers"])

    @property
    def geometry(self) -> Geometry:
        """The way back to the scan's grid."""
        return Geometry.from_dict(self.index["geometry"])

    @property
    def volumes(self) -> Mapping[str, Sequence[float]]:
        """Class or ``roi`` → its volume in ml in the file and here, where the scan was resampled or cropped."""
        volumes: Mapping[str, Sequence[float]] = self.index["volumes"]
        return volumes

    @property
    def shape(self) -> Triple:
        """Voxels of the prepared arrays."""
        return self.geometry.shape

    def _optional(self, name: str) -> NDArray[Any] | None:
        place = self.index[name]
        return None if place is None else open_array(self.folder, place)


def open_array(folder: Path, place: Mapping[str, Any]) -> NDArray[Any]:
    """Map an array of an entry into memory.

    Raises:
        CohortError: The entry is gone, or cut off.
    """
    shape = tuple(place["shape"])
    path = folder / ARRAYS
    mapped = _OPEN.get(path)
    if mapped is None:
        try:
            with path.open("rb") as file:
                # Copy on write: torch warns about arrays that cannot be written, and the file stays as it is anyway.
                mapped = _OPEN[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            reason = "it is gone" if isinstance(error, FileNotFoundError) else error
            raise CohortError(
                f"The prepared case '{folder}' cannot be read: {reason}. It was whole when the work began; whoever "
                "goes on prepares it anew."
            ) from error
    count = int(np.prod(shape, dtype=np.int64))
    flat = np.frombuffer(mapped, dtype=place["dtype"], count=count, offset=place["offset"])
    return flat.reshape(shape)


def write_entry(folder: Path, prepared: PreparedCase, *, classes: Iterable[Sequence[int]]) -> None:
    """Write an entry into an empty folder, every file flushed to the disk.

    Args:
        folder: Where to.
        prepared: The case.
        classes: Class indices of each region, or of each class but the background.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    maps = prepared.weight_maps
    centers = find_centers(prepared, classes)
    distinct = {id(array): array for array in centers.values()}
    with (folder / ARRAYS).open("xb") as file:
        places = {identity: _append(file, array) for identity, array in distinct.items()}
        index = {
            "format": FORMAT,
            "geometry": prepared.geometry.as_dict(),
            "channels": _append(file, prepared.channels),
            "labels": None if prepared.labels is None else _append(file, prepared.labels),
            "roi": None if prepared.roi is None else _append(file, prepared.roi),
            "weight_maps": {name: _append(file, array) for name, array in maps.items()},
            "weight_cumsums": {
                name: _append(file, np.cumsum(array, axis=None, dtype=np.float64)) for name, array in maps.items()
            },
            "centers": {category: places[id(array)] for category, array in centers.items()},
            "volumes": {name: list(pair) for name, pair in prepared.volumes.items()},
            "num_bytes": file.tell(),
        }
        flush_file(file)
    with (folder / INDEX).open("xb") as file:
        file.write(json.dumps(index).encode())
        flush_file(file)


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the content of an entry's small file; ``None`` where the entry is absent or damaged.

    The arrays must be there in their full size; their bytes are not read.
    """
    try:
        index = json.loads((folder / INDEX).read_bytes())
        whole = (folder / ARRAYS).stat().st_size == index["num_bytes"]
        return index if whole and index["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_centers(prepared: PreparedCase, classes: Iterable[Sequence[int]]) -> dict[str, NDArray[Any]]:
    """Return the flat indices of the voxels of each sampling category; equal categories share one array.

    Args:
        prepared: The case.
        classes: Class indices of each region, or of each class but the background.
    """
    size = int(np.prod(prepared.geometry.shape))
    dtype = np.int32 if size < 2**31 else np.int64
    inside = np.arange(size, dtype=dtype) if prepared.roi is None else np.flatnonzero(prepared.roi).astype(dtype)
    if prepared.labels is None:
        return {"roi": inside}
    flat = prepared.labels.ravel()
    centers = {}
    if prepared.labels.dtype.kind == "i" and (flat == IGNORED).any():
        inside = inside[flat[inside] != IGNORED]
        centers["image"] = inside if prepared.roi is None else np.flatnonzero(flat != IGNORED).astype(dtype)
    labels = flat[inside]
    members = [tuple(indices) for indices in classes]
    centers["roi"] = inside
    is_foreground = np.isin(labels, sorted({index for indices in members for index in indices}))
    centers["foreground"] = inside[is_foreground]
    centers["background"] = centers["class_0"] = inside[~is_foreground]
    for k, indices in enumerate(members, start=1):
        centers[f"class_{k}"] = centers["foreground"] if len(members) == 1 else inside[np.isin(labels, indices)]
    return centers


def _append(file: BinaryIO, array: NDArray[Any]) -> dict[str, Any]:
    """Write an array and return where it lies."""
    file.write(bytes(-file.tell() % _ALIGNMENT))
    place = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": file.tell()}
    if array.size:
        file.write(np.ascontiguousarray(array).data)
    return place


def flush_file(file: BinaryIO) -> None:
    """Bring what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())
