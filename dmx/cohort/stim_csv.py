"""The ``.stim.csv`` of DNNBrain, read and written.

Lines ``key=value`` (``type`` and ``path`` must be there), then a line ``data=`` that names the columns, then one line
per stimulus, cells separated by commas without any quoting. ``stimID`` is the image's path below ``path``, ``label`` an
integer, ``condition`` a text, every other column a number (``nan``: missing); ``onset`` and ``duration`` are seconds.
Empty lines do not count. The same image may come several times: that is how repeated presentations are written.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from dmx.cohort.files import atomic_file
from dmx.cohort.labels import number_text, parse_integer, parse_number
from dmx.cohort.stimuli import CONDITION, ID, LABEL, Stimulus, StimulusSet, classes_of
from dmx.cohort.text import read_text, shown
from dmx.errors import CohortError, suggest

SUFFIX = ".stim.csv"
_WHAT = "Stimuli"
_VIDEO = ("video", "video_clip")
# From the root of a disk, or a drive of Windows.
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")


class _Root:
    """The folder of a list's images, which none of them may leave: a list must not reach any other file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._real = folder.resolve()
        self._inside: dict[str, bool] = {}

    def require(self, identity: str, error: Callable[[str], CohortError]) -> Path:
        """Return the image of an id; raise what ``error`` makes of the problem where it lies elsewhere."""
        if not identity or _ABSOLUTE.match(identity) or ".." in identity.replace("\\", "/").split("/"):
            raise error(f"must be the path of an image below the folder of 'path=', got {shown(identity)}")
        image = self.folder / identity
        # Folders are followed once: that costs more than all else about an image.
        place = str(image) if os.path.islink(image) else str(image.parent)  # noqa: PTH114  # never raises
        if place not in self._inside:
            self._inside[place] = Path(os.path.realpath(place)).is_relative_to(self._real)
        if not self._inside[place]:
            raise error(f"{shown(identity)} is a link that leaves the folder '{self.folder}'")
        return image


def read_stim_csv(path: str | Path, *, require_files: bool = True) -> StimulusSet:
    """Read a ``.stim.csv``; images are not opened.

    A relative ``path`` is taken from the file's folder, or else, as DNNBrain does, from the working directory.

    Args:
        path: The file.
        require_files: Whether the images must be there.

    Raises:
        CohortError: The file cannot be used; the message names file and row.
    """
    path = Path(path).absolute()
    header, columns, rows = _parts(path)
    root = _Root(_folder(path, header))
    stimuli = []
    for row, line in rows:
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(columns):
            raise _error(path, row, f"must have {len(columns)} cells like the line 'data=', got {len(cells)}")
        image = root.require(cells[columns.index(ID)], partial(_error_of, path, row))
        if require_files and not os.path.isfile(image):  # noqa: PTH113  # never raises, however long the name
            raise _error(path, row, f"there is no image '{image}'")
        stimuli.append(_stimulus(path, row, dict(zip(columns, cells, strict=True)), image))
    if not stimuli:
        raise CohortError(f"{_WHAT} '{path}' has no stimuli below the line 'data='.")
    classes, labels = classes_of(stimuli)
    name = header.get("title") or path.name.removesuffix(SUFFIX)
    return StimulusSet(name, tuple(stimuli), classes, columns, header, path, labels)


def write_stim_csv(stimuli: StimulusSet, path: str | Path) -> None:
    """Write a ``.stim.csv``, complete or not at all.

    The format has no place for groups and splits: a set of several splits is refused, write each of them to a file of
    its own. ``path`` is kept where it still leads to the images, and otherwise written relative to the file.

    Raises:
        CohortError: Something cannot stand in such a file, or it cannot be written.
    """
    path = Path(path).absolute()
    if not path.name.endswith(SUFFIX):
        raise CohortError(f"{_WHAT} must be written to a file that ends in {SUFFIX}, got '{path}'.")
    if not stimuli.stimuli:
        raise CohortError(f"'{stimuli.name}' has no stimuli to write to '{path}'.")
    if len(splits := {stimulus.split for stimulus in stimuli.stimuli}) > 1:
        names = ", ".join(sorted(splits)) if "" not in splits else "some stimuli without one"
        raise CohortError(f"A {SUFFIX} has no place for splits ({names}): write each split to a file of its own.")
    root = _Root(_common_folder(stimuli))
    columns = _columns_to_write(stimuli)
    header = {"type": "image", "path": "", **(stimuli.header or {"title": stimuli.name})}
    header["path"] = _path_to_write(stimuli, path, root.folder)
    lines = [*_header_lines(header), f"data={','.join(columns)}"]
    for stimulus in stimuli.stimuli:
        root.require(stimulus.id, lambda problem: CohortError(f"{ID} {problem}."))
        lines.append(",".join(_cell(stimulus, column) for column in columns))
    for line in lines:
        if not line.isprintable():
            raise _cannot(line, "has control characters")
    try:
        with atomic_file(path) as file:
            file.write(("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise CohortError(f"{_WHAT} '{path}' cannot be written: {error.strerror or error}.") from error


def one_split(stimuli: StimulusSet, split: str) -> StimulusSet:
    """Return the stimuli of a split as a set of its own, for a file of its own."""
    chosen = tuple(replace(stimulus, split="") for stimulus in stimuli.in_split(split))
    return replace(stimuli, name=f"{stimuli.name} {split}", stimuli=chosen)


def _error(path: Path, row: int, problem: str) -> CohortError:
    end = "" if problem.endswith((".", "?")) else "."
    return CohortError(f"{_WHAT} '{path}', row {row}: {problem}{end}")


def _parts(path: Path) -> tuple[dict[str, str], tuple[str, ...], list[tuple[int, str]]]:
    """Return header, columns, and the numbered lines of the stimuli."""
    header: dict[str, str] = {}
    lines = read_text(path, _WHAT).replace("\r\n", "\n").split("\n")
    for row, line in enumerate(lines, start=1):
        text = line.strip()
        if not text.isprintable():
            raise _error(path, row, f"must have no control characters, got {shown(text)}")
        key, sign, value = (part.strip() for part in text.partition("="))
        if key == "data" and sign:
            columns = _columns(path, row, value)
            rest = [(number, text) for number, text in enumerate(lines[row:], start=row + 1) if text.strip()]
            for number, text in rest:
                if not text.strip().isprintable():
                    raise _error(path, number, f"must have no control characters, got {shown(text)}")
            return _checked_header(path, header), columns, rest
        if text and not (sign and key):
            raise _error(path, row, f"must be 'key=value' above the line 'data=', got {shown(text)}")
        if key in header:
            raise _error(path, row, f"has '{key}=' a second time")
        if text:
            header[key] = value
            _check_type(path, row, key, value)
    raise CohortError(f"{_WHAT} '{path}' has no line 'data=' that names the columns, such as 'data={ID},{LABEL}'.")


def _check_type(path: Path, row: int, key: str, value: str) -> None:
    if key != "type" or value == "image":
        return
    if value in _VIDEO:
        raise _error(path, row, f"type={value} is not supported; save the frames as images and write type=image")
    raise _error(path, row, f"type must be image, got {shown(value)}.{suggest(value, ('image', *_VIDEO))}")


def _checked_header(path: Path, header: dict[str, str]) -> dict[str, str]:
    for key, example in (("type", "image"), ("path", "the folder of the images")):
        if not header.get(key):
            raise CohortError(f"{_WHAT} '{path}' must have a line '{key}={example}' above the line 'data='.")
    return header


def _columns(path: Path, row: int, text: str) -> tuple[str, ...]:
    columns = tuple(column.strip() for column in text.split(","))
    for index, column in enumerate(columns):
        if not column:
            raise _error(path, row, f"column {index + 1} of 'data=' must have a name")
        if column in columns[:index]:
            raise _error(path, row, f"names the column '{column}' twice")
    if ID not in columns:
        raise _error(path, row, f"must name the column '{ID}', got {', '.join(columns)}.{suggest(ID, columns)}")
    return columns


def _folder(path: Path, header: dict[str, str]) -> Path:
    named = Path(header["path"])
    for base in (path.parent, Path.cwd()):
        if (base / named).is_dir():
            return base / named
    raise CohortError(f"{_WHAT} '{path}': there is no folder {shown(header['path'])} as its line 'path=' says.")


def _error_of(path: Path, row: int, problem: str) -> CohortError:
    return _error(path, row, f"{ID} {problem}")


def _stimulus(path: Path, row: int, cells: dict[str, str], image: Path) -> Stimulus:
    values = {}
    for column, text in cells.items():
        if column not in (ID, LABEL, CONDITION):
            if (value := parse_number(text)) is None:
                raise _error(path, row, f"column '{column}' must be a number, got {shown(text)}")
            values[column] = value
    label = parse_integer(cells[LABEL]) if LABEL in cells else None
    if LABEL in cells and label is None:
        raise _error(path, row, f"label must be an integer, got {shown(cells[LABEL])}")
    condition = cells.get(CONDITION) or None
    place = f"{_WHAT} '{path}', row {row}"
    return Stimulus(cells[ID], image, label, condition, values, place=place, row=row)


def _cannot(text: str, problem: str) -> CohortError:
    return CohortError(f"{shown(text)} cannot stand in a {SUFFIX}: it {problem}.")


def _header_lines(header: Mapping[str, str]) -> list[str]:
    for key, value in header.items():
        if not key or "=" in key or key == "data" or (key, value) != (key.strip(), value.strip()):
            raise _cannot(f"{key}={value}", "is no line 'key=value' of a header")
    return [f"{key}={value}" for key, value in header.items()]


def _common_folder(stimuli: StimulusSet) -> Path:
    folders = set()
    for stimulus in stimuli.stimuli:
        parts = PurePosixPath(stimulus.id).parts
        if stimulus.path.parts[-len(parts) :] != parts:
            raise CohortError(f"Stimulus {shown(stimulus.id)} must be the end of the image's path '{stimulus.path}'.")
        folders.add(Path(*stimulus.path.parts[: -len(parts)]))
    if len(folders) != 1:
        names = ", ".join(f"'{folder}'" for folder in sorted(folders)[:2])
        raise CohortError(f"The images of a {SUFFIX} must lie below one folder, got {len(folders)}: {names}, …")
    return folders.pop()


def _columns_to_write(stimuli: StimulusSet) -> Sequence[str]:
    columns = dict.fromkeys((ID, *stimuli.columns, *(name for s in stimuli.stimuli for name in s.values)))
    if any(stimulus.label is not None for stimulus in stimuli.stimuli):
        columns.setdefault(LABEL)
    else:
        columns.pop(LABEL, None)
    if any(stimulus.condition for stimulus in stimuli.stimuli):
        columns.setdefault(CONDITION)
    for column in columns:
        if not column or column != column.strip() or "," in column:
            raise _cannot(column, "is no name of a column")
    ordered = list(columns)
    return [column for column in stimuli.columns if column in columns] + [
        column for column in ordered if column not in stimuli.columns
    ]


def _path_to_write(stimuli: StimulusSet, path: Path, folder: Path) -> str:
    known = stimuli.header.get("path", "")
    if known and (path.parent / known).resolve() == folder.resolve():
        return known
    return os.path.relpath(folder.resolve(), path.parent.resolve()).replace(os.sep, "/")


def _cell(stimulus: Stimulus, column: str) -> str:
    if column == ID:
        text = stimulus.id
    elif column == LABEL:
        if stimulus.label is None:
            raise CohortError(f"Stimulus {shown(stimulus.id)} must have a label like the others.")
        text = str(stimulus.label)
    elif column == CONDITION:
        text = stimulus.condition or ""
    else:
        text = number_text(stimulus.values.get(column, float("nan")))
    if "," in text or text != text.strip():
        raise _cannot(text, "has a comma, or blanks around it")
    return text
