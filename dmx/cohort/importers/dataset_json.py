"""Cohorts of the Medical Segmentation Decathlon and of nnU-Net (versions 1 and 2): a folder with a ``dataset.json``."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmx.cohort.case import Case, Cohort
from dmx.cohort.digest import file_sha256
from dmx.cohort.files import atomic_file
from dmx.cohort.importers.imported import (
    Imported,
    broken_notes,
    clean_names,
    companion_notes,
    counted,
    is_broken_link,
    is_companion,
    numbered_names,
    read_json_object,
)
from dmx.cohort.label_values import values_text
from dmx.cohort.manifest import check_classes
from dmx.cohort.regions import Regions, checked_regions
from dmx.cohort.volume import read_header, read_series, write_volume
from dmx.config.dataset_labels import DatasetLabels, read_dataset_labels
from dmx.errors import CohortError

Progress = Callable[[int, int], None]

_SOURCES = "sources.json"
_ENDINGS = (".nii", ".nii.gz")
_NUMBER = re.compile(r"_[0-9]{4}$")
_SHOWN = 5


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
    channels: Sequence[str] = (),
    progress: Progress | None = None,
) -> Imported:
    """Read a ``dataset.json`` of either tool.

    Args:
        path: The file, or the folder that holds it.
        split_dir: Folder for the channels of scans that keep all of them in one 4D file.
        classes: Names of the classes where those of the file cannot be used.
        channels: Names of the channels where those of the file cannot be used, in its order.
        progress: Told how many of how many cases are done.

    Raises:
        CohortError: The file or a scan that must be split cannot be used.
    """
    path = Path(path).absolute()
    path = path / "dataset.json" if path.is_dir() else path
    content = read_json_object(path)
    labels = _labels(path, content)
    names, channel_notes = _channels(path, content.get("channel_names", content.get("modality")), channels)
    named, values = _classes(path, labels.classes, classes)
    description = _Description(
        path=path,
        content=content,
        name=str(content.get("name") or path.parent.name),
        channels=names,
        classes=named,
        # Classes that are named make label maps of regions usable without regions_class_order.
        regions=Regions() if classes and not labels.order else _regions(path, labels),
        ignore=labels.ignore,
    )
    decathlon = isinstance(content.get("training"), list) and "channel_names" not in content
    pairs = _decathlon_pairs(description) if decathlon else _nnunet_pairs(description)
    fetched = [pair for pair in pairs if not any(is_broken_link(file) for file in _files(pair))]
    broken = [file for pair in pairs for file in _files(pair) if is_broken_link(file)]
    cases = []
    for index, (name, images, label_map) in enumerate(fetched):
        cases.append(_case(description, name, images, label_map=label_map, split_dir=split_dir))
        if progress is not None:
            progress(index + 1, len(fetched))
    notes = [*broken_notes(broken, len(pairs) - len(fetched)), *_left_out(description, pairs), *channel_notes]
    if not cases:
        raise CohortError(f"'{path}' describes no training cases.{''.join(f' {note}' for note in notes)}")
    if values:
        notes.append(f"The values in the label maps are {values_text(values, description.classes)}.")
    if labels.regions and not description.regions:
        notes.append(f"The regions {', '.join(labels.regions)} are left out: '{path}' has no regions_class_order.")
    cohort = Cohort(
        description.name,
        description.classes,
        description.channels,
        tuple(cases),
        regions=description.regions,
        ignore=description.ignore,
        label_values=values,
    )
    return Imported(cohort, tuple(notes))


_Pair = tuple[str, list[Path], Path | None]


def _files(pair: _Pair) -> list[Path]:
    _, images, label_map = pair
    return images if label_map is None else [*images, label_map]


def _left_out(description: _Description, pairs: Sequence[_Pair]) -> list[str]:
    """Say what of a folder is in no case, and whether there are as many cases as ``numTraining`` says."""
    content, folder = description.content, description.path.parent
    notes = []
    unlabeled = content.get("test") or []
    if unlabeled and isinstance(unlabeled, list):
        notes.append(f"{counted(len(unlabeled), 'test case')} without label map: left out.")
    known = {file for pair in pairs for file in _files(pair)}
    there = [file for file in (folder / "imagesTr").glob("*") if file.name.endswith(_ENDINGS)]
    notes += companion_notes([file for file in there if is_companion(file)])
    rest = sorted(file for file in there if file not in known and not file.name.startswith("."))
    numbered = any(_NUMBER.search(_stem(image.name)) for _, images, _ in pairs for image in images)
    names = sorted({_NUMBER.sub("", _stem(file.name)) if numbered else _stem(file.name) for file in rest})
    if names:
        notes.append(
            f"{counted(len(names), 'case')} of imagesTr without label map ({', '.join(names[:_SHOWN])}"
            f"{', …' if len(names) > _SHOWN else ''}): left out."
        )
    said = content.get("numTraining")
    if isinstance(said, int) and said != len(pairs):
        notes.append(f"dataset.json says numTraining {said}, and there are {counted(len(pairs), 'case')}.")
    return notes


def _channels(path: Path, named: Any, chosen: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return channel names in the order of their numbers, or those that are chosen instead, and what to say of them."""
    if not isinstance(named, Mapping) or not named:
        raise CohortError(f"'{path}' must name its channels in 'channel_names' (nnU-Net) or 'modality' (Decathlon).")
    numbers = sorted((_number(path, "channel", number), str(name)) for number, name in named.items())
    if [number for number, _ in numbers] != list(range(len(numbers))):
        raise CohortError(f"'{path}' must number its channels from 0 without gaps, got {list(named)}.")
    names = [name for _, name in numbers]
    if chosen and len(chosen) != len(names):
        raise CohortError(
            f"'{path}' has {counted(len(names), 'channel')} ({', '.join(names)}), --channel-names gives "
            f"{len(chosen)}: {', '.join(chosen)}."
        )
    if chosen:
        return clean_names(chosen, f"channels of '{path}'"), []
    numbered = numbered_names(names)
    found = clean_names(numbered, f"channels of '{path}'")
    if list(numbered) == names:
        return found, []
    return found, [f"Channels of the same name are numbered: {', '.join(found)}. --channel-names gives others."]


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


def _classes(path: Path, labels: Mapping[str, int], chosen: Sequence[str]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return class names by label, or those that are chosen instead, and the class of each label.

    The latter is empty where the labels count from 0 without gaps. Labels that only make up regions have no names.
    """
    names = {label: name for name, label in sorted(labels.items(), key=lambda pair: pair[1])}
    gaps = list(names) != list(range(len(names)))
    values = {label: index for index, label in enumerate(names)} if gaps else {}
    if chosen:
        return check_classes(chosen, "The option for classes"), values if len(chosen) == len(values) else {}
    if not labels:
        return (), {}
    if len(names) != len(labels) or min(names) != 0:
        raise CohortError(f"'{path}' must give each class its own label from 0, got {dict(labels)}.")
    return check_classes(clean_names(names.values(), f"classes of '{path}'"), f"'{path}'"), values


def _number(path: Path, what: str, text: Any) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        raise CohortError(f"'{path}' must have a number for each {what}, got {text!r}.") from None


def _decathlon_pairs(description: _Description) -> list[_Pair]:
    pairs: list[_Pair] = []
    for number, entry in enumerate(description.content["training"]):
        files = entry if isinstance(entry, Mapping) else {}
        image, label = files.get("image"), files.get("label")
        if not isinstance(image, str) or not isinstance(label, str):
            raise CohortError(f"'{description.path}', training case {number}: must name an 'image' and a 'label'.")
        folder = description.path.parent
        pairs.append((_stem(image), _listed_images(folder / image, len(description.channels)), folder / label))
    return pairs


def _listed_images(image: Path, channels: int) -> list[Path]:
    """Return the file that is listed, or the files of its channels (nnU-Net version 1) where it is not there."""
    if not image.exists() and not image.is_symlink():
        ending = image.name.removeprefix(_stem(image.name))
        files = [image.with_name(f"{_stem(image.name)}_{k:04d}{ending}") for k in range(channels)]
        if all(file.exists() or file.is_symlink() for file in files):
            return files
    return [image]


def _nnunet_pairs(description: _Description) -> list[_Pair]:
    folder, content = description.path.parent, description.content
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in _ENDINGS:
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
