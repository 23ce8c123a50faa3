"""A case as a person looks at it: axes towards right, anterior, superior, cut to what is not background."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.case import Case, Cohort
from dmx.cohort.label_values import as_class_indices
from dmx.cohort.volume import Volume, read_volume
from dmx.errors import CohortError

_MARGIN = 4
_LARGEST_LABEL = 2**30

Array = NDArray[Any]


@dataclass(frozen=True)
class CaseView:
    """A case in RAS order.

    Attributes:
        channels: [I, J, K] by name; None where the case lacks it.
        labels: Label map, if there is one.
        roi: The roi as booleans, if there is one.
        spacing: Voxel size in mm.
        center: Voxel through which the planes are laid.
    """

    channels: dict[str, Array | None]
    labels: Array | None
    roi: Array | None
    spacing: tuple[float, float, float]
    center: tuple[int, int, int]

    @property
    def sizes_mm(self) -> tuple[float, ...]:
        """Extent along each axis."""
        shown = next(array for array in self.channels.values() if array is not None)
        return tuple(length * size for length, size in zip(shown.shape, self.spacing, strict=True))


def load_view(case: Case, *, cohort: Cohort | None = None) -> CaseView:
    """Read a case to look at it; its labels become class indices as its cohort says, -1 where nobody annotated.

    Raises:
        CohortError: A file of the case cannot be used, its files differ in shape, or it has no channel.
    """
    volumes = {column: read_volume(path) for column, path in case.files().items() if not column.startswith("weight_")}
    reference = next((name for name in volumes if name.startswith("channel_")), None)
    if reference is None:
        raise CohortError(f"Case '{case.name}' has no channel to show.")
    for column, volume in volumes.items():
        if volume.spatial_shape != volumes[reference].spatial_shape:
            raise CohortError(
                f"Case '{case.name}' cannot be shown: {column} has shape {volume.spatial_shape}, {reference} has "
                f"{volumes[reference].spatial_shape}. 'dmx cohort check' lists all such differences."
            )
    arrays = {column: _to_ras(volume) for column, volume in volumes.items()}
    if cohort is not None and "label_map" in arrays:
        arrays["label_map"] = as_class_indices(_integers(arrays["label_map"]), cohort, case=case.name)
    box = _box(arrays.get("roi", arrays[reference]), arrays.get("label_map"))
    arrays = {column: array[box] for column, array in arrays.items()}
    labels = _integers(arrays["label_map"]) if "label_map" in arrays else None
    roi = arrays["roi"] > 0 if "roi" in arrays else None
    spacing = _ras_spacing(volumes[reference])
    region = labels > 0 if labels is not None and (labels > 0).any() else roi
    return CaseView(
        channels={name: arrays.get(f"channel_{name}") for name in case.channels},
        labels=labels,
        roi=roi,
        spacing=spacing,
        center=_center(region, arrays[reference].shape, spacing),
    )


def _integers(array: Array) -> Array:
    """Return labels as integers; values that no class has stay out of the way."""
    if array.dtype.kind == "f":
        array = np.clip(np.rint(array), -1, _LARGEST_LABEL)
    return array.astype(np.int64)


def _box(array: Array, labels: Array | None) -> tuple[slice, ...]:
    """Return the box of what differs from the corner's background, with a margin and with all labels."""
    shown = array != array[0, 0, 0]
    if labels is not None:
        shown |= labels > 0
    if not shown.any():
        return (slice(None),) * 3
    found = [np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(max(0, int(at[0]) - _MARGIN), int(at[-1]) + 1 + _MARGIN) for at in found)


def _ras_order(volume: Volume) -> list[int]:
    return [next(axis for axis, code in enumerate(volume.orientation) if code in pair) for pair in ("RL", "AP", "SI")]


def _to_ras(volume: Volume) -> Array:
    order = _ras_order(volume)
    flipped = tuple(position for position, axis in enumerate(order) if volume.orientation[axis] in "LPI")
    array: Array = np.flip(volume.array.transpose(order), flipped)
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, posinf=0.0, neginf=0.0)
    return array


def _ras_spacing(volume: Volume) -> tuple[float, float, float]:
    x, y, z = (volume.spacing[axis] for axis in _ras_order(volume))
    return (x, y, z)


def _center(region: Array | None, shape: Sequence[int], spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    """Return the voxel of the region next to its center of mass: the mass of two lesions may lie between them."""
    if region is None or not region.any():
        i, j, k = (length // 2 for length in shape)
        return (i, j, k)
    voxels = np.argwhere(region)
    distance = (((voxels - voxels.mean(axis=0)) * spacing) ** 2).sum(axis=1)
    i, j, k = voxels[distance.argmin()].tolist()
    return (i, j, k)


def class_name(index: int, classes: Sequence[str]) -> str:
    """Return the name of a class, named or not."""
    return classes[index] if index < len(classes) else f"class {index}"


def class_volumes(view: CaseView, classes: Sequence[str]) -> dict[int, float]:
    """Return the volume in ml of each class but the background that is named or present."""
    if view.labels is None:
        return {}
    voxel_ml = float(np.prod(view.spacing)) / 1000
    found, counts = np.unique(view.labels[view.labels > 0], return_counts=True)
    voxels = dict.fromkeys(range(1, len(classes)), 0) | dict(zip(found.tolist(), counts.tolist(), strict=True))
    return {label: voxels[label] * voxel_ml for label in sorted(voxels)}


def inside(array: Array, view: CaseView) -> Array:
    """Return where intensities say something: the roi, else all that differs from the corner's background."""
    region = view.roi if view.roi is not None else array != array[0, 0, 0]
    return region if region.any() else np.ones(array.shape, dtype=bool)
