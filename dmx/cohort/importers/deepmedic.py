"""Cohorts of DeepMedic: its ``.cfg`` files with their lists of files, or its tables. Nothing in them is executed."""

import csv
import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from dmx.cohort.case import Case, Cohort
from dmx.cohort.importers.imported import Imported, clean_name, clean_names, read_text
from dmx.config.deepmedic import parse_assignments
from dmx.errors import CohortError

_MISSING = "-"


@dataclass(frozen=True)
class _Keys:
    """Names of the settings that describe one split."""

    split: str
    table: str
    channels: str
    label_maps: str
    rois: str
    names: str
    weight_maps: str


_SPLITS = (
    _Keys(
        "training",
        "dataframe_train",
        "channelsTraining",
        "gtLabelsTraining",
        "roiMasksTraining",
        "",
        "weightedMapsForSamplingEachCategoryTrain",
    ),
    _Keys(
        "validation",
        "dataframe_val",
        "channelsValidation",
        "gtLabelsValidation",
        "roiMasksValidation",
        "namesForPredictionsPerCaseVal",
        "weightedMapsForSamplingEachCategoryVal",
    ),
    _Keys("evaluation", "dataframe", "channels", "gtLabels", "roiMasks", "namesForPredictionsPerCase", ""),
)
_MARKS = {"numberOfOutputClasses", *(keys.channels for keys in _SPLITS), *(keys.table for keys in _SPLITS)}


@dataclass(frozen=True)
class _Config:
    """The settings of one ``.cfg`` file that could be read as plain values."""

    path: Path
    values: Mapping[str, Any]
    unread: Set[str]

    def get(self, key: str) -> Any:
        if key in self.unread:
            raise CohortError(f"'{self.path}': '{key}' must be a plain value; expressions are not executed.")
        return self.values.get(key)


@dataclass(frozen=True)
class _Split:
    """One split's files: a list per channel, a list per other column."""

    split: str
    channels: Mapping[str, Sequence[Path | None]]
    label_maps: Sequence[Path | None]
    rois: Sequence[Path | None]
    weight_maps: Mapping[str, Sequence[Path | None]]
    names: Sequence[str]


def import_deepmedic(path: str | Path, *, name: str | None = None) -> Imported:
    """Read the cohort of a folder of ``.cfg`` files, of one of them, or of a table (``.csv``).

    Args:
        path: Folder (searched with its subfolders), ``.cfg`` file or table.
        name: Name of the cohort; the folder's by default.

    Raises:
        CohortError: A file cannot be read, lists differ in length, or nothing describes a cohort.
    """
    path = Path(path).absolute()
    if path.suffix == ".csv":
        splits, classes = [_table_split("", path)], None
    else:
        configs = _configs(path)
        splits = [split for keys in _SPLITS for config in configs if (split := _read_split(config, keys)) is not None]
        classes = next((found for config in configs if (found := config.get("numberOfOutputClasses"))), None)
    if not splits:
        raise CohortError(
            f"'{path}' has no DeepMedic configuration that names channels ('channelsTraining' and others)."
        )
    channels = _channel_names(path, splits)
    cases, notes = _merge(splits)
    if isinstance(classes, int) and classes > 1:
        names: tuple[str, ...] = ("background", *(f"class_{k}" for k in range(1, classes)))
    else:
        names = ()
        notes = (*notes, "The number of classes is in no model configuration: name the classes with --classes.")
    folder = path if path.is_dir() else path.parent
    return Imported(Cohort(name or folder.name, names, channels, cases), notes)


def _configs(path: Path) -> list[_Config]:
    files = sorted(path.rglob("*.cfg")) if path.is_dir() else [path]
    configs = []
    for file in files:
        config = _parse(file)
        if config is not None and _MARKS & (config.values.keys() | config.unread):
            configs.append(config)
        elif not path.is_dir():
            raise CohortError(f"'{path}' is not a DeepMedic configuration: it has none of {', '.join(sorted(_MARKS))}.")
    return configs


def _parse(path: Path) -> _Config | None:
    """Return the assignments of a file, or None where it is no configuration: the lists are ``.cfg`` files too."""
    assignments = parse_assignments(read_text(path))
    return None if assignments is None else _Config(path, assignments.values, assignments.unread)


def _read_split(config: _Config, keys: _Keys) -> _Split | None:
    if table := config.get(keys.table):
        return _table_split(keys.split, _beside(config.path, table, keys.table))
    listed = config.get(keys.channels)
    if not listed:
        return None
    files = _list_files(config, keys.channels)
    columns = clean_names(_short_names([file.stem for file in files], "channel"), f"channels of '{config.path}'")
    channels = dict(zip(columns, (_read_list(file) for file in files), strict=True))
    weight_files = _list_files(config, keys.weight_maps) if keys.weight_maps else []
    weight_names = _short_names([file.stem for file in weight_files], "category")
    names = _list_files(config, keys.names) if keys.names else []
    split = _Split(
        split=keys.split,
        channels=channels,
        label_maps=_read_list(file) if (file := _list_file(config, keys.label_maps)) else (),
        rois=_read_list(file) if (file := _list_file(config, keys.rois)) else (),
        weight_maps=dict(zip(weight_names, (_read_list(file) for file in weight_files), strict=True)),
        names=[line for file in names for line in _lines(file)],
    )
    _check_lengths(config.path, split, files[0])
    return split


def _check_lengths(path: Path, split: _Split, first: Path) -> None:
    wanted = len(next(iter(split.channels.values())))
    columns: dict[str, Sequence[Any]] = {f"channel '{name}'": files for name, files in split.channels.items()}
    columns |= {"label maps": split.label_maps, "rois": split.rois, "names": split.names}
    columns |= {f"weight map '{name}'": files for name, files in split.weight_maps.items()}
    for column, files in columns.items():
        required = column.startswith(("channel", "weight"))
        if len(files) != wanted and (files or required):
            raise CohortError(
                f"'{path}', {split.split}: the list of {column} must have {wanted} lines like '{first}', "
                f"got {len(files)}."
            )


def _list_files(config: _Config, key: str) -> list[Path]:
    value = config.get(key)
    value = [value] if isinstance(value, str) else (value or [])
    if not isinstance(value, list | tuple):
        raise CohortError(f"'{config.path}': '{key}' must be a list of files, got {value!r}.")
    return [_beside(config.path, text, key) for text in value]


def _list_file(config: _Config, key: str) -> Path | None:
    files = _list_files(config, key)
    return files[0] if files else None


def _beside(path: Path, text: Any, key: str) -> Path:
    if not isinstance(text, str):
        raise CohortError(f"'{path}': '{key}' must name files, got {text!r}.")
    return Path(os.path.normpath(path.parent / text))


def _lines(path: Path) -> list[str]:
    lines = (line.strip() for line in read_text(path).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _read_list(path: Path) -> list[Path | None]:
    return [None if line == _MISSING else _beside(path, line, "list") for line in _lines(path)]


def _table_split(split: str, path: Path) -> _Split:
    """Read a table with ``channel_*`` (sorted by name), ``ground_truth``, ``roi_mask`` and ``prediction_filename``."""
    try:
        rows = list(csv.DictReader(read_text(path).splitlines(), strict=True))
    except csv.Error as error:
        raise CohortError(f"'{path}' is not valid CSV: {error}.") from error
    header = [column for column in (rows[0] if rows else {}) if column]
    channels = sorted(column for column in header if column.startswith("channel_"))
    if not channels:
        raise CohortError(f"'{path}' must have rows and columns 'channel_<name>', got columns {header}.")
    names = clean_names((column.removeprefix("channel_") for column in channels), f"channels of '{path}'")

    def files(column: str) -> list[Path | None]:
        texts = [(row.get(column) or "").strip() for row in rows]
        return [None if text in ("", _MISSING) else _beside(path, text, column) for text in texts]

    return _Split(
        split=split,
        channels=dict(zip(names, map(files, channels), strict=True)),
        label_maps=files("ground_truth") if "ground_truth" in header else (),
        rois=files("roi_mask") if "roi_mask" in header else (),
        weight_maps={},
        names=[(row["prediction_filename"] or "").strip() for row in rows] if "prediction_filename" in header else (),
    )


def _short_names(stems: Sequence[str], kind: str) -> list[str]:
    """Return what tells file names apart: ``trainChannels_flair`` and ``…_t1c`` are ``flair`` and ``t1c``."""
    short = [clean_name(stem.rsplit("_", 1)[-1]) for stem in stems]
    if len(set(short)) == len(short) and all(short) and all("_" in stem for stem in stems):
        return short
    return [f"{kind}_{k}" for k in range(len(stems))]


def _channel_names(path: Path, splits: Sequence[_Split]) -> tuple[str, ...]:
    """Return the first split's channels; DeepMedic matches those of the others by position."""
    names = tuple(splits[0].channels)
    for split in splits:
        if len(split.channels) != len(names):
            raise CohortError(
                f"'{path}' must name the same number of channels in each split, got {len(names)} in "
                f"{splits[0].split} and {len(split.channels)} in {split.split}."
            )
    return names


def _merge(splits: Sequence[_Split]) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Return the cases of all splits; scans that two splits share stay in the first of them."""
    names = tuple(splits[0].channels)
    cases: dict[tuple[Path | None, ...], Case] = {}
    taken: set[str] = set()
    notes = []
    for split in splits:
        for index, files in enumerate(zip(*split.channels.values(), strict=True)):
            if files in cases:
                first = cases[files]
                notes.append(f"Case '{first.name}' of {split.split} is in {first.split} already and stays there.")
                continue
            case = _case(split, index, channels=dict(zip(names, files, strict=True)), taken=taken)
            taken.add(case.name)
            cases[files] = case
    return tuple(cases.values()), tuple(notes)


def _case(split: _Split, index: int, *, channels: dict[str, Path | None], taken: set[str]) -> Case:
    name = _case_name(split, index, next((file for file in channels.values() if file is not None), None))
    name = name if name not in taken else next(free for k in count(2) if (free := f"{name}_{k}") not in taken)
    weights = {column: files[index] for column, files in split.weight_maps.items()}
    return Case(
        name=name,
        subject=name,
        channels=channels,
        label_map=split.label_maps[index] if split.label_maps else None,
        roi=split.rois[index] if split.rois else None,
        weight_maps={column: file for column, file in weights.items() if file is not None},
        split=split.split,
    )


def _case_name(split: _Split, index: int, file: Path | None) -> str:
    """Return the name of the case's prediction, else the folder of its scans, else the name of its first scan."""
    if split.names and split.names[index]:
        return clean_name(re.sub(r"\.nii(\.gz)?$", "", split.names[index])) or f"case_{index}"
    if file is None:
        raise CohortError(f"Case {index + 1} of {split.split} must have at least one channel that is not '-'.")
    firsts = next(iter(split.channels.values()))
    folders = [first.parent for first in firsts if first is not None]
    alone = len(set(folders)) == len(folders)
    return clean_name(file.parent.name if alone else re.sub(r"\.nii(\.gz)?$", "", file.name)) or f"case_{index}"
