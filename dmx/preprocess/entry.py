"""One prepared case on disk: a folder of arrays and a small file that says what they are.

The small file is written last and the folder appears under its name in one step, so an entry is complete or absent.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.geometry import Triple
from dmx.preprocess.native import Geometry
from dmx.preprocess.pipeline import PreparedCase

FORMAT = 1
_INDEX = "entry.json"


class Arrays(Mapping[str, NDArray[Any]]):
    """Arrays by name, each opened when it is asked for and never held: an open array costs a file descriptor."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self._folder = folder
        self._files = files

    def __getitem__(self, name: str) -> NDArray[Any]:
        return open_array(self._folder / self._files[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A prepared case whose arrays lie on disk; holding it costs no memory and no open file.

    Every access opens the array anew, memory-mapped; changes of it never reach the disk.

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
        return open_array(self.folder / self.index["channels"])

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

        ``roi`` (every voxel without one) and, with a label map, ``foreground``, ``background``, ``class_<k>``.
        """
        return Arrays(self.folder, self.index["centers"])

    @property
    def geometry(self) -> Geometry:
        """The way back to the scan's grid."""
        return Geometry.from_dict(self.index["geometry"])

    @property
    def shape(self) -> Triple:
        """Voxels of the prepared arrays."""
        return self.geometry.shape

    def _optional(self, name: str) -> NDArray[Any] | None:
        file = self.index[name]
        return None if file is None else open_array(self.folder / file)


def open_array(path: Path) -> NDArray[Any]:
    """Map an array of an entry into memory."""
    # Copy on write: torch warns about arrays that cannot be written, and the file stays as it is either way.
    array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def write_entry(folder: Path, prepared: PreparedCase, *, num_classes: int) -> None:
    """Write an entry into an empty folder, every file flushed to the disk.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    writer = _Writer(folder)
    maps = prepared.weight_maps
    centers = find_centers(prepared, num_classes)
    distinct = {id(array): array for array in centers.values()}
    written = {identity: writer.save("centers", array) for identity, array in distinct.items()}
    index = {
        "format": FORMAT,
        "geometry": prepared.geometry.as_dict(),
        "channels": writer.save("channels", prepared.channels),
        "labels": None if prepared.labels is None else writer.save("labels", prepared.labels),
        "roi": None if prepared.roi is None else writer.save("roi", prepared.roi),
        "weight_maps": {name: writer.save("weights", array) for name, array in maps.items()},
        "weight_cumsums": {
            name: writer.save("cumsum", np.cumsum(array, axis=None, dtype=np.float64)) for name, array in maps.items()
        },
        "centers": {category: written[id(array)] for category, array in centers.items()},
    }
    writer.write_text(_INDEX, json.dumps(index | {"sizes": writer.sizes}))


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the content of an entry's small file; ``None`` where the entry is absent or damaged.

    Every array must be there in its full size; its bytes are not read.
    """
    try:
        index = json.loads((folder / _INDEX).read_bytes())
        whole = all((folder / name).stat().st_size == size for name, size in index["sizes"].items())
        return index if whole and index["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_centers(prepared: PreparedCase, num_classes: int) -> dict[str, NDArray[Any]]:
    """Return the flat indices of the voxels of each sampling category; equal categories share one array."""
    size = int(np.prod(prepared.geometry.shape))
    dtype = np.int32 if size < 2**31 else np.int64
    inside = np.arange(size, dtype=dtype) if prepared.roi is None else np.flatnonzero(prepared.roi).astype(dtype)
    centers = {"roi": inside}
    if prepared.labels is None:
        return centers
    labels = prepared.labels.ravel()[inside]
    centers["foreground"] = inside[labels > 0]
    centers["background"] = centers["class_0"] = inside[labels == 0]
    for k in range(1, num_classes):
        centers[f"class_{k}"] = centers["foreground"] if num_classes == 2 else inside[labels == k]
    return centers


class _Writer:
    """Writes files into a folder and remembers their sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sizes: dict[str, int] = {}
        self._numbers = count()

    def save(self, stem: str, array: NDArray[Any]) -> str:
        """Write an array and return the name of its file, which never holds a word of the user's."""
        name = f"{stem}_{next(self._numbers)}.npy"
        with (self.folder / name).open("xb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
            self.sizes[name] = file.tell()
        return name

    def write_text(self, name: str, text: str) -> None:
        """Write a text."""
        with (self.folder / name).open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
