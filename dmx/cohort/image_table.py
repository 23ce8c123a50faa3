"""A CSV table of images: a column ``path`` and what is known about each image, read as stimuli.

``label`` is the name of a class or an integer, ``condition`` a text, ``subject`` (or ``group``) what must not lie in
two splits, ``split`` one of training, validation, evaluation; every other column is a number, empty where it is
missing.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmx.cohort.case import SPLITS
from dmx.cohort.labels import name_labels, parse_number
from dmx.cohort.manifest import name_problem
from dmx.cohort.stimuli import CONDITION, ID, LABEL, Stimulus, StimulusSet
from dmx.cohort.text import csv_rows, read_text, shown
from dmx.errors import CohortError, suggest

_WHAT = "Table"
PATH = "path"
"""Column of a table of images that no other table has."""
_GROUPS, _SPLIT = ("subject", "group"), "split"
_TEXTS = (PATH, LABEL, CONDITION, *_GROUPS, _SPLIT)


def read_image_table(path: str | Path, *, classes: Sequence[str] = (), require_files: bool = True) -> StimulusSet:
    """Read a table of images, which are not opened. Relative paths start at the table's folder.

    Args:
        path: The table.
        classes: Names of the classes in the order of the labels; empty: integers stand for themselves, names become
            classes in natural order.
        require_files: Whether the images must be there.

    Raises:
        CohortError: The table cannot be used; the message names file and row.
    """
    path = Path(path).absolute()
    lines = list(io.StringIO(read_text(path, _WHAT), newline=""))
    rows = csv_rows(lines, 1, lambda row, problem: _error(path, row, problem))
    first, columns = next(rows, (1, []))
    _check_columns(path, first, columns)
    table = []
    for row, cells in rows:
        if len(cells) != len(columns):
            raise _error(path, row, f"must have {len(columns)} cells like the header, got {len(cells)}")
        table.append((row, dict(zip(columns, cells, strict=True))))
    if not table:
        raise CohortError(f"{_WHAT} '{path}' has no images below its header.")
    if require_files:
        for row, known in table:
            _require_file(path, row, known[PATH])
    names, labels = name_labels((text for _, cells in table if (text := cells.get(LABEL, ""))), classes)
    for name in names:
        if problem := name_problem(name):
            raise CohortError(f"{_WHAT} '{path}': the name of a class {problem}.")
    stimuli = tuple(_stimulus(path, row, cells, labels, names) for row, cells in table)
    values = tuple(range(len(names))) if names else tuple(sorted(set(labels.values())))
    numbers = tuple(column for column in columns if column not in _TEXTS)
    texts = [column for column in (LABEL, CONDITION) if column in columns or (column == CONDITION and names)]
    return StimulusSet(
        name=path.stem,
        stimuli=stimuli,
        classes=names or tuple(str(value) for value in values),
        columns=(ID, *texts, *numbers),
        file=path,
        labels=values,
    )


def _error(path: Path, row: int, problem: str) -> CohortError:
    end = "" if problem.endswith((".", "?")) else "."
    return CohortError(f"{_WHAT} '{path}', row {row}: {problem}{end}")


def _check_columns(path: Path, row: int, columns: Sequence[str]) -> None:
    for index, column in enumerate(columns):
        if not column or not column.isprintable():
            raise _error(path, row, f"column {index + 1} must have a name, got {shown(column)}")
        if column in columns[:index]:
            raise _error(path, row, f"names the column '{column}' twice")
    if PATH not in columns:
        got = shown(",".join(columns))
        raise _error(path, row, f"must be a header with a column '{PATH}', got {got}.{suggest(PATH, columns)}")
    if set(_GROUPS) <= set(columns):
        raise _error(path, row, f"must have one of the columns {' and '.join(_GROUPS)}, got both")


def _stimulus(
    path: Path, row: int, cells: Mapping[str, str], labels: Mapping[str, int], names: Sequence[str]
) -> Stimulus:
    text = cells.get(LABEL, "")
    if text and text not in labels:
        raise _error(path, row, f"label must be a class ({', '.join(names)}) or its index, got {shown(text)}")
    label = labels[text] if text else None
    split = cells.get(_SPLIT, "")
    if split not in SPLITS:
        allowed = ", ".join(name for name in SPLITS if name)
        raise _error(path, row, f"split must be one of {allowed} or empty, got {shown(split)}.{suggest(split, SPLITS)}")
    condition = cells.get(CONDITION) or (names[label] if names and label is not None else None)
    return Stimulus(
        id=Path(cells[PATH]).as_posix(),
        path=_image(path, row, cells[PATH]),
        label=label,
        condition=condition,
        values=_values(path, row, cells),
        group=next((cells[column] for column in _GROUPS if column in cells), ""),
        split=split,
        place=f"{_WHAT} '{path}', row {row}",
        row=row,
    )


def _image(path: Path, row: int, text: str) -> Path:
    if not text or not text.isprintable():
        raise _error(path, row, f"path must be that of an image, got {shown(text)}")
    return path.parent / text


def _require_file(path: Path, row: int, text: str) -> None:
    image = _image(path, row, text)
    try:
        there = image.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        raise _error(path, row, f"there is no image '{image}'")


def _values(path: Path, row: int, cells: Mapping[str, str]) -> dict[str, float]:
    values = {}
    for column, text in cells.items():
        if column not in _TEXTS and text:
            if (value := parse_number(text)) is None:
                raise _error(path, row, f"column '{column}' must be a number, got {shown(text)}")
            values[column] = value
    return values
