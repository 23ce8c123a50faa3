"""One case, from its files to the arrays that the network sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.case import Case
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.label_values import values_text
from dmx.cohort.regions import IGNORED
from dmx.cohort.volume import integer_type, read_grid, read_volume
from dmx.errors import CohortError
from dmx.preprocess.contract import Contract, first_channel
from dmx.preprocess.kept import class_volumes
from dmx.preprocess.native import Geometry, cropped, forward, plan_geometry
from dmx.preprocess.normalize import normalize_channel
from dmx.preprocess.region import Region, bounding_box, foreground, nonzero

__all__ = ["PreparedCase", "class_indices", "preprocess_case"]


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """What the network sees of a case.

    Attributes:
        name: The case's name.
        channels: float32 [C, I, J, K].
        labels: Class indices [I, J, K], uint8 or int16, or int8 or int16 where voxels can be ignored (-1); ``None``
            without a label map.
        roi: 0 or 1, uint8 [I, J, K]; ``None`` without one.
        weight_maps: Sampling weights by name, float32 [I, J, K].
        geometry: The way back to the scan's grid.
        volumes: Class or ``roi`` → its volume in ml in the file and here; only where the scan was resampled or cropped.
    """

    name: str
    channels: NDArray[np.float32]
    labels: NDArray[Any] | None
    roi: NDArray[np.uint8] | None
    weight_maps: Mapping[str, NDArray[np.float32]]
    geometry: Geometry
    volumes: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def preprocess_case(case: Case, contract: Contract) -> PreparedCase:
    """Read a case and prepare it: turn, resample, crop, pad, normalize.

    Raises:
        CohortError: A file cannot be used, or there is nothing to measure or to crop to; the message names the case.
    """
    reader = _Reader(case, read_grid(first_channel(case, contract.channels)))
    images = {name: reader.channel(name, contract) for name in contract.channels}
    roi = None if case.roi is None else _binary(reader.read("roi", case.roi))
    settings = contract.preprocess
    box_around, measured_in = _regions(case, contract, images, roi)
    geometry = plan_geometry(reader.grid, settings.orientation, contract.spacing)
    if box_around is not None:
        geometry = _crop(case, box_around, geometry, settings.crop_margin)
    geometry = replace(geometry, pad_before=contract.pad_before, pad_after=contract.pad_after)
    if measured_in is None:
        measured = np.ones(geometry.shape, dtype=np.bool_)
    else:
        measured = forward(measured_in, geometry, kind="labels" if measured_in is roi else "region")
    channels = np.empty((len(contract.channels), *geometry.shape), dtype=np.float32)
    for index, (name, image) in enumerate(images.items()):
        if image is None:
            channels[index] = contract.fill[name]
            continue
        placed = forward(image, geometry, kind="spline")
        channels[index] = normalize_channel(placed, measured, settings.normalize, case=case.name, channel=name)
    indices = None if case.label_map is None else _indices(reader, case.label_map, contract)
    labels = None if indices is None else forward(indices, geometry, kind="labels")
    placed_roi = None if roi is None else forward(roi, geometry, kind="labels").astype(np.uint8)
    volumes = {} if roi is None or placed_roi is None else class_volumes(roi, placed_roi, geometry, {"roi": (1,)})
    if indices is not None and labels is not None:
        volumes = class_volumes(indices, labels, geometry, contract.scored) | volumes
    weight_maps = {name: _weights(reader, name, path, geometry) for name, path in case.weight_maps.items()}
    if labels is not None and contract.ignore is not None:
        weight_maps = {name: np.where(labels == IGNORED, np.float32(0), map_) for name, map_ in weight_maps.items()}
    return PreparedCase(
        name=case.name,
        channels=channels,
        labels=labels,
        roi=placed_roi,
        weight_maps=weight_maps,
        geometry=geometry,
        volumes=volumes,
    )


class _Reader:
    """Reads the files of one case, all on one grid."""

    def __init__(self, case: Case, grid: NiftiGrid) -> None:
        self.case = case
        self.grid = grid

    def read(self, what: str, path: Path) -> NDArray[Any]:
        """Return a file's array; its shape must be that of the first channel, its values finite."""
        array = read_volume(path).array
        if array.shape != self.grid.shape:
            raise CohortError(
                f"case '{self.case.name}', {what}: '{path}' must have the shape {self.grid.shape} of the "
                f"case's first channel, got {array.shape}."
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise CohortError(f"case '{self.case.name}', {what}: '{path}' has {bad} voxels that are NaN or infinite.")
        return array

    def channel(self, name: str, contract: Contract) -> NDArray[Any] | None:
        """Return a channel's array, or ``None`` for one that the contract fills."""
        path = self.case.channels.get(name)
        if path is not None:
            return self.read(f"channel '{name}'", path)
        if name not in contract.fill:
            raise CohortError(
                f"case '{self.case.name}' lacks the channel '{name}'. Give cohort.fill a value for it, or leave the "
                "case out."
            )
        return None


def _binary(array: NDArray[Any]) -> Region:
    region: Region = np.rint(array) > 0
    return region


def _regions(
    case: Case, contract: Contract, images: Mapping[str, NDArray[Any] | None], roi: Region | None
) -> tuple[Region | None, Region | None]:
    """Return, on the scan's grid, what to crop to (``None``: no crop) and where to measure (``None``: everywhere)."""
    if roi is not None and not roi.any():
        raise CohortError(f"case '{case.name}': the roi '{case.roi}' is empty.")
    crop, wanted = contract.preprocess.crop_to_roi, contract.preprocess.normalize.region
    if wanted == "roi" and roi is None:
        wanted = "image" if contract.compatibility == "deepmedic" else "foreground"
    computed = None
    if wanted == "foreground" or (crop and roi is None):
        compute = nonzero if contract.preprocess.foreground == "nonzero" else foreground
        computed = compute([image for image in images.values() if image is not None])
    measured = {"roi": roi, "foreground": computed, "image": None}[wanted]
    return (roi if roi is not None else computed) if crop else None, measured


def _crop(case: Case, region: Region, geometry: Geometry, margin: int) -> Geometry:
    box = bounding_box(forward(region, geometry, kind="region" if case.roi is None else "labels"), margin)
    if box is None:
        raise CohortError(
            f"case '{case.name}': nothing is left of its roi at the voxel size {geometry.spacing}. Use a smaller "
            "preprocess.spacing."
        )
    return cropped(geometry, *box)


def class_indices(labels: NDArray[Any], contract: Contract, *, case: str, path: Path) -> NDArray[Any]:
    """Return the class index of each voxel of a label map, as the contract says; ``IGNORED`` where nobody said it.

    Args:
        labels: Whole numbers, also stored as floats.
        contract: Classes and the labels that are merged.
        case: Name of the case, for the error.
        path: File of the label map, for the error.

    Raises:
        CohortError: A label is no class.
    """
    whole = np.rint(labels).astype(np.int64)
    found = np.unique(whole)
    known = [IGNORED if label == contract.ignore else contract.class_of(int(label)) for label in found]
    if None in known:
        wrong = found[known.index(None)]
        allowed = f"0 to {len(contract.classes) - 1} ({', '.join(contract.classes)})"
        if contract.labels_complete:
            allowed = values_text(contract.labels, contract.classes)
        raise CohortError(
            f"case '{case}': '{path}' has the label {wrong}, allowed are {allowed}. Name the class in the manifest, or "
            "map the label in cohort.labels; voxels that nobody annotated have the label cohort.ignore."
        )
    indices = np.array(known)
    dtype = integer_type(len(contract.classes) - 1)
    if contract.ignore is not None:
        dtype = np.dtype(np.int8 if len(contract.classes) <= 128 else np.int16)
    classes: NDArray[Any] = indices[np.searchsorted(found, whole)].astype(dtype)
    return classes


def _indices(reader: _Reader, path: Path, contract: Contract) -> NDArray[Any]:
    return class_indices(reader.read("label map", path), contract, case=reader.case.name, path=path)


def _weights(reader: _Reader, name: str, path: Path, geometry: Geometry) -> NDArray[np.float32]:
    weights = reader.read(f"weight map '{name}'", path)
    if weights.min() < 0:
        raise CohortError(
            f"case '{reader.case.name}': the weight map '{path}' must have values of at least 0, got {weights.min()}."
        )
    placed: NDArray[np.float32] = forward(weights, geometry, kind="linear").astype(np.float32)
    return placed
