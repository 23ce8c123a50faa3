"""How much of each class and of the roi is left after resampling and cropping."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.case import Case, Cohort
from dmx.cohort.label_values import as_class_indices
from dmx.cohort.volume import read_volume
from dmx.preprocess.native import Geometry, forward, plan_geometry
from dmx.preprocess.resample import Spacing

_LOSS = 0.05
# Thin structures that are kept gain more; what rounding to whole voxels adds is no news.
_GAIN = 0.25
_SHOWN = 5
_THREADS = 2


@dataclass(frozen=True)
class KeptVolume:
    """What is left of a class of a case.

    Attributes:
        case: Name of the case.
        name: Class, or ``roi``.
        file_ml: Its volume in the file.
        prepared_ml: Its volume on the grid of the network.
    """

    case: str
    name: str
    file_ml: float
    prepared_ml: float

    @property
    def share(self) -> float:
        """Return the share that is left: 1 is all of it."""
        return self.prepared_ml / self.file_ml


def class_volumes(
    native_IJK: NDArray[Any], prepared_IJK: NDArray[Any], geometry: Geometry, members: Mapping[str, Sequence[int]]
) -> dict[str, tuple[float, float]]:
    """Return the volume in ml of each class of a label map in the file and after preparation, the background left out.

    Args:
        native_IJK: Class indices in the file.
        prepared_IJK: Class indices of ``geometry.shape``.
        geometry: The way from one to the other.
        members: Class or region → the class indices that it consists of.

    Returns:
        Nothing where the label map was neither resampled nor cropped.
    """
    if not geometry.resampled and geometry.crop_shape == geometry.full_shape:
        return {}
    # Padding by reflection repeats what is there.
    inner = tuple(slice(b, b + n) for b, n in zip(geometry.pad_before, geometry.crop_shape, strict=True))
    count = 1 + max((index for indices in members.values() for index in indices), default=0)
    before = _counts(native_IJK, count) * np.prod(geometry.grid.spacing) / 1000
    after = _counts(prepared_IJK[inner], count) * np.prod(geometry.spacing) / 1000
    pairs = {
        name: [round(float(ml[list(indices)].sum()), 6) for ml in (before, after)] for name, indices in members.items()
    }
    return {name: (was, now) for name, (was, now) in pairs.items() if was}


def _counts(labels_IJK: NDArray[Any], count: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.bincount(labels_IJK[labels_IJK > 0].astype(np.int64), minlength=count)
    return found[:count]


def kept_volumes(volumes: Iterable[tuple[str, Mapping[str, Sequence[float]]]]) -> list[KeptVolume]:
    """Return a row per case and class from pairs of a case's name and its volumes."""
    return [KeptVolume(case, name, *pair) for case, by_name in volumes for name, pair in by_name.items()]


def resampled_volumes(
    cohort: Cohort, spacing: Spacing, *, progress: Callable[[int, int], None] | None = None
) -> list[KeptVolume]:
    """Return what a voxel size in mm would leave of each label map and roi of a cohort.

    Raises:
        CohortError: A file cannot be read.
    """

    def measure(case: Case) -> tuple[str, dict[str, tuple[float, float]]]:
        found: dict[str, tuple[float, float]] = {}
        for path, is_roi in ((case.label_map, False), (case.roi, True)):
            if path is not None:
                volume = read_volume(path)
                labels = np.rint(volume.array).astype(np.int64)
                members: Mapping[str, Sequence[int]] = {"roi": (1,)}
                if is_roi:
                    labels = (labels > 0).astype(np.int64)
                else:
                    labels = as_class_indices(labels, cohort, case=case.name)
                    members = _members(cohort, int(labels.max()))
                geometry = plan_geometry(volume.header, "RAS", spacing)
                found |= class_volumes(labels, forward(labels, geometry, kind="labels"), geometry, members)
        return case.name, found

    results = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for result in pool.map(measure, cohort.cases):
            results.append(result)
            if progress is not None:
                progress(len(results), len(cohort.cases))
    return kept_volumes(results)


def _members(cohort: Cohort, highest: int) -> Mapping[str, Sequence[int]]:
    """Return the class indices of each region of a cohort, or of each class."""
    if cohort.regions:
        return cohort.regions.mapped(cohort.label_values).members
    names = [*cohort.classes, *(f"label {value}" for value in range(len(cohort.classes), highest + 1))]
    return {name: (index,) for index, name in enumerate(names) if index}


def kept_warnings(rows: Sequence[KeptVolume], *, spacing: Spacing | None) -> list[str]:
    """Return a warning for each class that vanishes, loses more than 5 % or gains more than 25 %.

    Args:
        rows: What is left.
        spacing: Voxel size in mm that scans were resampled to; None: they were only cropped.
    """
    by_name: dict[str, list[KeptVolume]] = defaultdict(list)
    for row in rows:
        by_name[row.name].append(row)
    if spacing is None:
        where, advice = "After cropping", "Use a larger preprocess.crop_margin, or another roi."
    else:
        where = f"At voxels of {' x '.join(f'{size:g}' for size in spacing)} mm"
        advice = "Use a smaller preprocess.spacing."
    warnings = []
    for name, of_name in by_name.items():
        what = "the roi" if name == "roi" else f"class '{name}'"
        gone = [row for row in of_name if not row.prepared_ml]
        less = [row for row in of_name if 0 < row.share < 1 - _LOSS]
        more = [row for row in of_name if row.share > 1 + _GAIN]
        if gone:
            warnings.append(f"{where} {what} vanishes in {_of(gone, of_name)}: {_names(gone)}. {advice}")
        if less:
            worst = min(less, key=lambda row: row.share)
            warnings.append(
                f"{where} {what} loses more than 5 % of its volume in {_of(less, of_name)}, most in '{worst.case}' "
                f"({worst.share:.0%} is left). {advice}"
            )
        if more:
            worst = max(more, key=lambda row: row.share)
            warnings.append(
                f"{where} {what} gains more than 25 % of its volume in {_of(more, of_name)}, most in '{worst.case}' "
                f"({worst.share:.0%}): what is thinner than a voxel is kept one voxel thick. {advice}"
            )
    return warnings


def _of(some: Sequence[KeptVolume], rows: Sequence[KeptVolume]) -> str:
    return f"{len(some)} of {len(rows)} {'case' if len(rows) == 1 else 'cases'}"


def _names(rows: Sequence[KeptVolume]) -> str:
    shown = ", ".join(f"'{row.case}'" for row in rows[:_SHOWN])
    return f"{shown} and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else shown


def kept_csv(rows: Sequence[KeptVolume]) -> str:
    """Return a table of what is left."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "class", "file_ml", "prepared_ml", "share"])
    for row in rows:
        writer.writerow([row.case, row.name, f"{row.file_ml:g}", f"{row.prepared_ml:g}", f"{row.share:.4f}"])
    return text.getvalue()
