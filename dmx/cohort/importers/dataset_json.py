"""Cohorts of the Medical Segmentation Decathlon and of nnU-Net (version 2): a folder with a ``dataset.json``."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmx.cohort.case import Case, Cohort
from dmx.cohort.digest import file_sha256
from dmx.cohort.files import atomic_file
from dmx.cohort.importers.imported import Imported, clean_names, read_json_object
from dmx.cohort.manifest import check_classes
from dmx.cohort.regions import Regions, checked_regions
from dmx.cohort.volume import read_header, read_series, write_volume
from dmx.config.dataset_labels import DatasetLabels, read_dataset_labels
from dmx.errors import CohortError

Progress = Callable[[int, int], None]

_SOURCES = "sources.json"


@dataclass(frozen=True)
class _Description:
    """What ``dataset.json`` says, whichever tool wrote it."""

    path: Path
    content: Mapping[str, Any]
    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    regions: Regions = field(default_factory=Regions)
    ignore: int | None = None


def import_dataset_json(
    path: str | Path,
    *,
    split_dir: Path,
    classes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Imported:
    """Read a ``dataset.json`` of either tool.

    Args:
        path: The file, or the folder that holds it.
        split_dir: Folder for the channels of scans that keep all of them in one 4D file.
        classes: Names of the classes where those of the file cannot be used.
        progress: Told how many of how many cases are done.

    Raises:
        CohortError: The file or a scan that must be split cannot be used.
    """
    path = Path(path).absolute()
    path = path / "dataset.json" if path.is_dir() else path
    content = read_json_object(path)
    channels = content.get("channel_names", content.get("modality"))
    labels = _labels(path, content)
    description = _Description(
        path=path,
        content=content,
        name=str(content.get("name") or path.parent.name),
        channels=_channels(path, channels),
        classes=check_classes(classes, "The option for classes") if classes else _classes(path, labels.classes),
        # Classes that are named make label maps of regions usable without regions_class_order.
        regions=Regions() if classes and not labels.order else _regions(path, labels),
        ignore=labels.ignore,
    )
    decathlon = isinstance(content.get("training"), list) and "channel_names" not in content
    pairs = _decathlon_pairs(description) if decathlon else _nnunet_pairs(description)
    cases, notes = [], []
    if labels.regions and not description.regions:
        notes.append(f"The regions {', '.join(labels.regions)} are left out: '{path}' has no regions_class_order.")
    for index, (name, images, label_map) in enumerate(pairs):
        cases.append(_case(description, name, images, label_map=label_map, split_dir=split_dir))
        if progress is not None:
            progress(index + 1, len(pairs))
    if not cases:
        raise CohortError(f"'{path}' describes no training cases.")
    unlabeled = content.get("test") or []
    if unlabeled and isinstance(unlabeled, list):
        notes.append(f"{len(unlabeled)} test cases without label map are left out.")
    cohort = Cohort(
        description.name,
        description.classes,
        description.channels,
        tuple(cases),
        regions=description.regions,
        ignore=description.ignore,
    )
    return Imported(cohort, tuple(notes))


def _channels(path: Path, named: Any) -> tuple[str, ...]:
    """Return channel names in the order of their numbers."""
    if not isinstance(named, Mapping) or not named:
        raise CohortError(f"'{path}' must name its channels in 'channel_names' (nnU-Net) or 'modality' (Decathlon).")
    numbers = sorted((_number(path, "channel", number), str(name)) for number, name in named.items())
    if [number for number, _ in numbers] != list(range(len(numbers))):
        raise CohortError(f"'{path}' must number its channels from 0 without gaps, got {list(named)}.")
    return clean_names((name for _, name in numbers), f"channels of '{path}'")


def _labels(path: Path, content: Mapping[str, Any]) -> DatasetLabels:
    """Return what labels mean, given as ``{"1": "lesion"}`` or ``{"lesion": 1}``."""
    labels = content.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        raise CohortError(f"'{path}' must name its classes in 'labels'.")
    by_name = all(isinstance(value, int | list) or str(value).isdecimal() for value in labels.values())
    if not by_name:
        if len({*map(str, labels.values())}) < len(labels):
            raise CohortError(f"'{path}' must give each label its own name, got {dict(labels)}.")
        labels = {str(name): _number(path, "label", number) for number, name in labels.items()}
    elif not any(isinstance(value, list) for value in labels.values()):
        labels = {name: _number(path, "label", value) for name, value in labels.items()}
    try:
        return read_dataset_labels(labels, content.get("regions_class_order"))
    except ValueError as error:
        raise CohortError(f"'{path}': {error}.") from None


def _regions(path: Path, labels: DatasetLabels) -> Regions:
    if not labels.regions:
        return Regions()
    names = clean_names(labels.regions, f"regions of '{path}'")
    return checked_regions(dict(zip(names, labels.regions.values(), strict=True)), labels.order, f"'{path}'")


def _classes(path: Path, labels: Mapping[str, int]) -> tuple[str, ...]:
    """Return class names by label; a gap becomes ``class_<n>``. Labels that only make up regions have no names."""
    if not labels:
        return ()
    names = {label: name for name, label in labels.items()}
    if len(names) != len(labels) or min(names) != 0 or max(names) > 1000:
        raise CohortError(f"'{path}' must give each class its own label from 0, got {dict(labels)}.")
    filled = [names.get(label, f"class_{label}") for label in range(max(names) + 1)]
    return check_classes(clean_names(filled, f"classes of '{path}'"), f"'{path}'")


def _number(path: Path, what: str, text: Any) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        raise CohortError(f"'{path}' must have a number for each {what}, got {text!r}.") from None


def _decathlon_pairs(description: _Description) -> list[tuple[str, list[Path], Path | None]]:
    pairs: list[tuple[str, list[Path], Path | None]] = []
    for number, entry in enumerate(description.content["training"]):
        files = entry if isinstance(entry, Mapping) else {}
        image, label = files.get("image"), files.get("label")
        if not isinstance(image, str) or not isinstance(label, str):
            raise CohortError(f"'{description.path}', training case {number}: must name an 'image' and a 'label'.")
        folder = description.path.parent
        pairs.append((_stem(image), [folder / image], folder / label))
    return pairs


def _nnunet_pairs(description: _Description) -> list[tuple[str, list[Path], Path | None]]:
    folder, content = description.path.parent, description.content
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in (".nii", ".nii.gz"):
        raise CohortError(f"'{description.path}' must describe NIfTI files (.nii, .nii.gz), got '{ending}'.")
    listed = content.get("dataset")
    if isinstance(listed, Mapping):
        return [_listed_pair(description, str(name), entry) for name, entry in listed.items()]
    names = sorted(path.name.removesuffix(ending) for path in (folder / "labelsTr").glob(f"*{ending}"))
    numbers = range(len(description.channels))
    return [
        (
            name,
            [folder / "imagesTr" / f"{name}_{k:04d}{ending}" for k in numbers],
            folder / "labelsTr" / f"{name}{ending}",
        )
        for name in names
        if not name.startswith(".")
    ]


def _listed_pair(description: _Description, name: str, entry: Any) -> tuple[str, list[Path], Path | None]:
    images = entry.get("images") if isinstance(entry, Mapping) else None
    label = entry.get("label") if isinstance(entry, Mapping) else None
    if not isinstance(images, list) or len(images) != len(description.channels) or not isinstance(label, str):
        raise CohortError(
            f"'{description.path}', case '{name}': must list {len(description.channels)} 'images' and a 'label'."
        )
    folder = description.path.parent
    return name, [folder / str(image) for image in images], folder / label


def _case(description: _Description, name: str, images: list[Path], *, label_map: Path | None, split_dir: Path) -> Case:
    if len(images) != len(description.channels):
        images = _split_channels(images[0], description.channels, split_dir)
    channels = dict(zip(description.channels, images, strict=True))
    return Case(name=name, subject=name, channels=channels, label_map=label_map)


def _split_channels(image: Path, channels: Sequence[str], folder: Path) -> list[Path]:
    """Write each volume of a 4D scan to a file of its own; files that hold what they would hold are kept.

    ``sources.json`` in the folder says of each file which volume of which content it was made from, and what it held.
    """
    files = [folder / f"{_stem(image.name)}_{channel}.nii.gz" for channel in channels]
    shape = read_header(image).shape
    if len(shape) != 4 or shape[3] != len(channels):
        raise CohortError(f"'{image}' must hold the {len(channels)} channels {', '.join(channels)}, got shape {shape}.")
    known = _split_sources(folder)
    content = file_sha256(image)
    wanted = {file: {"scan": content, "volume": index} for index, file in enumerate(files)}
    if all(file.is_file() and known.get(file.name) == {**wanted[file], "file": file_sha256(file)} for file in files):
        return files
    array, grid = read_series(image)
    for index, file in enumerate(files):
        write_volume(file, array[..., index], grid, dtype=array.dtype)
        known[file.name] = {**wanted[file], "file": file_sha256(file)}
    with atomic_file(folder / _SOURCES) as stream:
        stream.write(json.dumps(known, indent=1, sort_keys=True).encode())
    return files


def _split_sources(folder: Path) -> dict[str, Any]:
    """Return what is known of the files that earlier imports wrote; nothing where it cannot be read."""
    try:
        known = json.loads((folder / _SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".nii")
