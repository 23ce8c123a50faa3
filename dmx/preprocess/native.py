"""The way of a scan onto the network's grid and back to its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.grid import NiftiGrid
from dmx.cohort.volume import orientation
from dmx.geometry import Triple, triple
from dmx.preprocess import resample
from dmx.preprocess.label_maps import LabelAxis, apply_labels, label_axes
from dmx.preprocess.orient import Flips, axes_and_flips, orient, orient_back
from dmx.preprocess.resample import Matrix, Order, Spacing

Kind = Literal["spline", "linear", "labels", "region"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """What was done to a scan's axes: turned, resampled, cropped, padded, in this order.

    Attributes:
        grid: The scan's own grid.
        axes: Axis of the scan that became each axis.
        flips: Which of them run backwards.
        spacing: Voxel size in mm after resampling.
        full_shape: Voxels after resampling, before cropping.
        resampled: Whether voxels were interpolated.
        crop_start: First voxel that was kept.
        crop_shape: Voxels that were kept.
        pad_before: Voxels added before each axis.
        pad_after: Voxels added after each axis.
    """

    grid: NiftiGrid
    axes: Triple
    flips: Flips
    spacing: Spacing
    full_shape: Triple
    resampled: bool
    crop_start: Triple
    crop_shape: Triple
    pad_before: Triple = (0, 0, 0)
    pad_after: Triple = (0, 0, 0)

    @property
    def shape(self) -> Triple:
        """Voxels of the prepared arrays."""
        padded = zip(self.pad_before, self.crop_shape, self.pad_after, strict=True)
        return triple([sum(parts) for parts in padded])

    @property
    def turned_shape(self) -> Triple:
        """Voxels of the scan in the prepared order of axes."""
        return triple([self.grid.shape[axis] for axis in self.axes])

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        lists = {name: list(value) for name, value in vars(self).items() if isinstance(value, tuple)}
        return vars(self) | lists | {"grid": self.grid.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Geometry":
        """Return the geometry that :meth:`as_dict` described."""
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples, "grid": NiftiGrid.from_dict(values["grid"])})


def plan_geometry(grid: NiftiGrid, target: str, spacing: Spacing | None) -> Geometry:
    """Return how a scan's grid is turned and resampled, without cropping and padding."""
    axes, flips = axes_and_flips(orientation(grid.affine), target)
    x, y, z = (grid.spacing[axis] for axis in axes)
    own = (x, y, z)
    shape = triple([grid.shape[axis] for axis in axes])
    resampled = spacing is not None and not resample.same_spacing(own, spacing)
    if resampled and spacing is not None:
        shape, own = resample.resampled_shape(shape, own, spacing), spacing
    return Geometry(
        grid=grid,
        axes=axes,
        flips=flips,
        spacing=own,
        full_shape=shape,
        resampled=resampled,
        crop_start=(0, 0, 0),
        crop_shape=shape,
    )


def forward(array_IJK: NDArray[Any], geometry: Geometry, *, kind: Kind) -> NDArray[Any]:
    """Bring a native array onto the prepared grid: turn, resample, crop, pad by reflection.

    Args:
        array_IJK: In the scan's own order of axes.
        geometry: Where it goes.
        kind: ``spline`` interpolates with cubic splines, ``linear`` linearly. ``labels`` keeps the volume of each label
            and what is thin, ``region`` takes what fills most of a voxel.

    Returns:
        [I, J, K] of ``geometry.shape``, C order; float32 where it was interpolated, otherwise of the array's type.
    """
    turned = orient(array_IJK, geometry.axes, geometry.flips)
    box = _box(geometry)
    if geometry.resampled and kind in ("labels", "region"):
        # As a whole: what becomes of a voxel depends on those around it, which a crop may leave out.
        turned = apply_labels(turned, _label_axes(geometry, back=False), keep=kind == "labels")[box]
    elif geometry.resampled:
        whole = _matrices(geometry, order=3 if kind == "spline" else 1, back=False)
        turned = resample.apply(turned, [matrix[part] for matrix, part in zip(whole, box, strict=True)])
    else:
        turned = turned[box]
    if any(geometry.pad_before) or any(geometry.pad_after):
        turned = np.pad(turned, list(zip(geometry.pad_before, geometry.pad_after, strict=True)), mode="reflect")
    return np.ascontiguousarray(turned)


def restore_labels(labels_IJK: NDArray[Any], geometry: Geometry) -> tuple[NDArray[Any], NiftiGrid]:
    """Bring a label map back to the scan's grid; voxels outside of the crop become 0.

    Without resampling each voxel returns as it was. With it, see :func:`~dmx.preprocess.label_maps.apply_labels`; where
    probabilities are at hand, ``restore_probabilities(…)[0].argmax(0)`` is finer.

    Args:
        labels_IJK: Integers of ``geometry.shape``.
        geometry: Where it came from.

    Returns:
        The label map in the scan's own axes, and the grid to write it with.
    """
    full = _unpad_uncrop(labels_IJK, geometry, outside=0)
    if geometry.resampled:
        full = apply_labels(full, _label_axes(geometry, back=True))
    return np.ascontiguousarray(orient_back(full, geometry.axes, geometry.flips)), geometry.grid


def restore_probabilities(
    probabilities_CIJK: NDArray[Any], geometry: Geometry
) -> tuple[NDArray[np.float32], NiftiGrid]:
    """Bring probability maps back to the scan's grid, linearly; outside of the crop all is background.

    Args:
        probabilities_CIJK: One map per class, background first, each of ``geometry.shape``.
        geometry: Where they came from.

    Returns:
        float32 [C, I, J, K] in the scan's own axes, and the grid to write each map with.
    """
    return restore_maps(probabilities_CIJK, geometry, outside=(1.0, *[0.0] * (len(probabilities_CIJK) - 1)))


def restore_most_probable(probabilities_CIJK: NDArray[Any], geometry: Geometry) -> tuple[NDArray[Any], NiftiGrid]:
    """Return the most probable class of each voxel of the scan's grid.

    The same as the arg-max of :func:`restore_probabilities`, of which no more than one map is held at a time.

    Args:
        probabilities_CIJK: One map per class, background first, each of ``geometry.shape``.
        geometry: Where they came from.

    Returns:
        uint8 [I, J, K] in the scan's own axes, int16 for more than 256 classes, and the grid to write it with.
    """
    dtype = np.uint8 if len(probabilities_CIJK) <= 256 else np.int16
    labels = np.zeros(geometry.grid.shape, dtype=dtype)
    # A copy: without resampling the map is a view of what came in.
    highest = restore_one(probabilities_CIJK[0], geometry, outside=1.0).copy()
    for index, one in enumerate(probabilities_CIJK[1:], 1):
        current = restore_one(one, geometry)
        # The first of equal ones counts, as with an arg-max.
        better = current > highest
        labels[better] = index
        np.maximum(highest, current, out=highest)
    return labels, geometry.grid


def restore_one(map_IJK: NDArray[Any], geometry: Geometry, *, outside: float = 0.0) -> NDArray[np.float32]:
    """Bring one map back to the scan's grid, linearly; float32 [I, J, K] in the scan's own axes.

    Args:
        map_IJK: Of ``geometry.shape``.
        geometry: Where it came from.
        outside: Value outside of the crop.
    """
    full = _unpad_uncrop(map_IJK, geometry, outside=outside)
    if geometry.resampled:
        full = resample.apply(full, _matrices(geometry, order=1, back=True))
    return orient_back(full, geometry.axes, geometry.flips).astype(np.float32, copy=False)


def restore_maps(
    maps_CIJK: NDArray[Any], geometry: Geometry, *, outside: Sequence[float] | None = None
) -> tuple[NDArray[np.float32], NiftiGrid]:
    """Bring any maps back to the scan's grid, linearly.

    Args:
        maps_CIJK: Each of ``geometry.shape``.
        geometry: Where they came from.
        outside: Value of each map outside of the crop; ``None``: 0.
    """
    result = np.empty((len(maps_CIJK), *geometry.grid.shape), dtype=np.float32)
    for index, one in enumerate(maps_CIJK):
        result[index] = restore_one(one, geometry, outside=0.0 if outside is None else outside[index])
    return result, geometry.grid


def cropped(geometry: Geometry, start: Triple, shape: Triple) -> Geometry:
    """Return the geometry that keeps only a box of the resampled volume."""
    return replace(geometry, crop_start=start, crop_shape=shape)


def _box(geometry: Geometry) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(geometry.crop_start, geometry.crop_shape, strict=True))


def _matrices(geometry: Geometry, *, order: Order, back: bool) -> tuple[Matrix, Matrix, Matrix]:
    return resample.matrices(*_way(geometry, back=back), order=order)


def _label_axes(geometry: Geometry, *, back: bool) -> tuple[LabelAxis, LabelAxis, LabelAxis]:
    return label_axes(*_way(geometry, back=back))


def _way(geometry: Geometry, *, back: bool) -> tuple[Triple, Triple, list[float]]:
    """Return the shape to come from, the shape to go to, and the size of its voxels in those of the former."""
    own = [geometry.grid.spacing[axis] for axis in geometry.axes]
    steps = [target / source for source, target in zip(own, geometry.spacing, strict=True)]
    if back:
        return geometry.full_shape, geometry.turned_shape, [1 / step for step in steps]
    return geometry.turned_shape, geometry.full_shape, steps


def _unpad_uncrop(array_IJK: NDArray[Any], geometry: Geometry, *, outside: float) -> NDArray[Any]:
    if array_IJK.shape != geometry.shape:
        raise ValueError(f"the array must have the prepared shape {geometry.shape}, got {array_IJK.shape}")
    kept = array_IJK[tuple(slice(b, b + n) for b, n in zip(geometry.pad_before, geometry.crop_shape, strict=True))]
    if geometry.crop_shape == geometry.full_shape:
        return kept
    full = np.full(geometry.full_shape, outside, dtype=array_IJK.dtype)
    full[_box(geometry)] = kept
    return full
