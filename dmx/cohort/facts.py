"""What can be said about one file by reading it once. Facts are kept by the content of the file."""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.cache import FactStore, default_cache_dir
from dmx.cohort.digest import file_sha256
from dmx.cohort.fingerprint import landmarks, voxels_hash
from dmx.cohort.volume import orientation, read_volume
from dmx.errors import CohortError

# Another version of what is measured does not meet the old one's facts.
_VERSION = 3
_MAX_VALUES = 1000
_WHOLE = 1e-3

Kind = Literal["intensities", "labels"]


@dataclass(frozen=True)
class FileFacts:
    """One file, measured.

    Attributes:
        sha256: Hash of its content, empty where it cannot be read.
        error: Why it cannot be used; then nothing below says anything.
        shape: Voxels per axis.
        affine: 4x4 as rows.
        affine_of: ``sform`` or ``qform``, the field that the affine comes from; empty: neither says anything.
        qform: 4x4 as rows where the affine comes from the sform and there is a qform, too.
        qform_orientation: Its orientation.
        orientation: E.g. ``RAS``.
        zooms: Voxel size as the header has it beside the affine.
        units: Unit of space as the header has it: 0 unknown, 1 m, 2 mm, 3 micrometers.
        nan: Number of voxels that are not a number.
        infinite: Number of infinite voxels.
        low: Smallest finite value.
        high: Largest finite value.
        whole: All values are whole numbers (labels only).
        counts: Voxels per value (labels only), as pairs; at most 1000 of them.
        voxels: Hash of what the voxels say, however they are saved (intensities only).
        landmarks: What the scan is known by when it was flipped, cropped or resampled (intensities only).
    """

    sha256: str = ""
    error: str = ""
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    affine_of: str = ""
    qform: tuple[tuple[float, ...], ...] = ()
    qform_orientation: str = ""
    orientation: str = ""
    zooms: tuple[float, ...] = ()
    units: int = 0
    nan: int = 0
    infinite: int = 0
    low: float = 0.0
    high: float = 0.0
    whole: bool = True
    counts: tuple[tuple[float, int], ...] = ()
    voxels: str = ""
    landmarks: str = ""


def file_facts(path: Path, kind: Kind, *, cache_dir: Path | None = None, fresh: bool = False) -> FileFacts:
    """Measure a file, or recall what was measured; a file that cannot be used is a fact, not an exception.

    Args:
        path: The file.
        kind: What it holds.
        cache_dir: Folder in which facts are kept; the user's cache by default.
        fresh: Hash the file whatever is remembered of it.
    """
    store = _store(cache_dir or default_cache_dir())
    digest = ""
    try:
        digest = file_sha256(path, cache_dir=cache_dir, fresh=fresh)
        # What the same bytes mean depends on how the file is packed, which its name says.
        key = f"{digest}.{kind}.{''.join(path.suffixes[-2:])}"
        if (known := store.get(key)) is not None:
            return FileFacts(**{name: _tuples(value) for name, value in known.items()})
        facts = _measure(path, kind, digest)
    except CohortError as error:
        return FileFacts(sha256=digest, error=str(error))
    store.put(key, asdict(facts))
    return facts


def _measure(path: Path, kind: Kind, digest: str) -> FileFacts:
    volume = read_volume(path)
    array, grid = volume.array, volume.header
    finite = array
    nan = infinite = 0
    if array.dtype.kind == "f":
        nan = int(np.isnan(array).sum())
        infinite = int(np.isinf(array).sum())
        finite = array[np.isfinite(array)] if nan or infinite else array
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    whole, counts = _count(finite) if kind == "labels" else (True, ())
    qform = grid.qform if grid.affine_of == "sform" else None
    # A quaternion of a damaged header may be anything.
    if qform is not None and not (np.isfinite(qform).all() and abs(np.linalg.det(qform[:3, :3])) > 0):
        qform = None
    return FileFacts(
        sha256=digest,
        affine_of=grid.affine_of,
        qform=() if qform is None else tuple(tuple(row) for row in qform.tolist()),
        qform_orientation="" if qform is None else orientation(qform),
        shape=grid.shape,
        affine=tuple(tuple(row) for row in grid.affine.tolist()),
        orientation=orientation(grid.affine),
        zooms=grid.zooms,
        units=grid.xyzt_units % 8,
        nan=nan,
        infinite=infinite,
        low=low,
        high=high,
        whole=whole,
        counts=counts,
        voxels=voxels_hash(array) if kind == "intensities" else "",
        landmarks=landmarks(array, volume.spacing) if kind == "intensities" else "",
    )


def _count(values: NDArray[Any]) -> tuple[bool, tuple[tuple[float, int], ...]]:
    """Return whether values are whole up to float rounding, and how many voxels have each of them."""
    whole = True
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        whole = not values.size or float(np.abs(values - rounded).max()) <= _WHOLE
        values = rounded if whole else values
    found, counts = np.unique(values, return_counts=True)
    pairs = zip(found[:_MAX_VALUES].tolist(), counts[:_MAX_VALUES].tolist(), strict=True)
    return whole, tuple((float(value), int(count)) for value, count in pairs)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@cache
def _store(folder: Path) -> FactStore:
    return FactStore(folder / f"file_facts_v{_VERSION}.jsonl")
