"""The manifest: a CSV file with one row per case."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmx.cohort.case import SPLITS, Case, Cohort
from dmx.cohort.files import atomic_file
from dmx.cohort.label_values import noted_values, values_text
from dmx.cohort.labels import name_labels, number_text, parse_number
from dmx.cohort.regions import read_ignore, read_regions, region_notes
from dmx.cohort.text import csv_rows, note_text, read_text, shown
from dmx.errors import CohortError, suggest

MISSING = "-"
_PLAIN_COLUMNS = ("case", "subject", "label_map", "roi", "label", "split")
_NAMED_COLUMNS = ("channel", "weight", "target")
_FILES = ("channel_", "label_map", "roi", "weight_")
_NOTES = ("cohort", "classes", "labels", "label_values", "regions", "regions_class_order", "ignore")
_NAME = re.compile(r"[\w.\-]([\w.\- ]*[\w.\-])?")
_MAX_NAME = 120


def read_manifest(path: str | Path) -> Cohort:
    """Read a manifest; the files it names are not opened.

    Raises:
        CohortError: The manifest cannot be used; the message names file, row and column.
    """
    path = Path(path).absolute()
    notes, lines, first = _split_notes(path, read_text(path, "Manifest"))
    rows = csv_rows(lines, first, lambda row, problem: _error(path, row, None, problem))
    row, header = next(rows, (first, []))
    columns = _columns(path, row, header)
    channels = _suffixes(columns, "channel_")
    table: list[tuple[int, dict[str, str]]] = []
    for row, cells in rows:
        if len(cells) != len(columns):
            raise _error(path, row, None, f"must have {len(columns)} cells like the header, got {len(cells)}")
        table.append((row, dict(zip(columns, cells, strict=True))))
    owner = f"Manifest '{path}'"
    named = _check_labels([name.strip() for name in notes["labels"].split(",")], owner) if "labels" in notes else ()
    label_classes, labels = name_labels((text for _, texts in table if (text := _said(texts, "label"))), named)
    _check_labels(label_classes, owner)
    cases: dict[str, Case] = {}
    for row, texts in table:
        case = _case(path, row, texts, labels)
        if case.name in cases:
            raise _error(path, row, "case", f"must be unique, got '{case.name}' a second time")
        cases[case.name] = case
    if not cases:
        raise CohortError(f"Manifest '{path}' has no cases below its header.")
    classes = check_classes(notes["classes"].split(","), owner) if "classes" in notes else ()
    return Cohort(
        notes.get("cohort") or path.stem,
        classes,
        channels,
        tuple(cases.values()),
        manifest=path,
        label_classes=label_classes,
        regions=read_regions(notes, owner, name_problem),
        ignore=read_ignore(notes, owner),
        label_values=noted_values(notes.get("label_values", ""), classes, owner),
    )


def manifest_text(cohort: Cohort, path: str | Path) -> str:
    """Return a manifest as text, its paths relative to the folder of the file that it is meant for.

    Raises:
        CohortError: A name cannot stand in a manifest.
    """
    path = Path(path).absolute()
    if not cohort.cases:
        raise CohortError(f"Cohort '{cohort.name}' has no cases to write to '{path}'.")
    weights = tuple(dict.fromkeys(name for case in cohort.cases for name in case.weight_maps))
    columns = [
        *("case", "subject"),
        *(f"channel_{name}" for name in cohort.channels),
        *("label_map", "roi"),
        *(f"weight_{name}" for name in weights),
        *(("label",) if any(case.label is not None for case in cohort.cases) else ()),
        *(f"target_{name}" for name in dict.fromkeys(name for case in cohort.cases for name in case.targets)),
        "split",
    ]
    text = io.StringIO()
    text.write(f"# cohort: {_one_line(cohort.name)}\n")
    if cohort.classes:
        classes = check_classes(cohort.classes, f"Cohort '{cohort.name}'")
        text.write(f"# classes: {', '.join(classes)}\n")
    if cohort.label_values:
        text.write(f"# label_values: {values_text(cohort.label_values, cohort.classes)}\n")
    if cohort.label_classes:
        labels = _check_labels(cohort.label_classes, f"Cohort '{cohort.name}'")
        text.write(f"# labels: {', '.join(labels)}\n")
    text.writelines(f"# {note}\n" for note in region_notes(cohort.regions, cohort.ignore))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for case in cohort.cases:
        writer.writerow(_cells(path, case, cohort.label_classes))
    return text.getvalue()


def write_manifest(cohort: Cohort, path: str | Path) -> None:
    """Write a manifest, complete or not at all, its paths relative to its folder.

    Raises:
        CohortError: A name cannot stand in a manifest, or the file cannot be written.
    """
    path = Path(path).absolute()
    text = manifest_text(cohort, path)
    try:
        with atomic_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise CohortError(f"Manifest '{path}' cannot be written: {error.strerror or error}.") from error


def check_classes(names: Sequence[str], owner: str) -> tuple[str, ...]:
    """Return class names without blanks around them.

    Raises:
        CohortError: There are fewer than two, one comes twice, or one has characters that names must not have.
    """
    classes = tuple(name.strip() for name in names)
    if len(classes) < 2:
        raise CohortError(f"{owner} must name at least two classes, background first, got {list(classes)}.")
    for index, name in enumerate(classes):
        if problem := name_problem(name):
            raise CohortError(f"{owner} has a class name that {problem}.")
        if name in classes[:index]:
            raise CohortError(f"{owner} has the class '{name}' twice.")
    return classes


def name_problem(name: str) -> str:
    """Return what is wrong with the name of a channel, class or weight map, or an empty string.

    These names become parts of file names and of metric keys.
    """
    if not name:
        return "must not be empty"
    if len(name) > _MAX_NAME:
        return f"must have at most {_MAX_NAME} characters, got {len(name)}"
    if not _NAME.fullmatch(name) or name.startswith("."):
        return f"must consist of letters, digits, '_', '-', '.' and blanks inside, got {name!r}"
    return ""


def case_problem(name: str) -> str:
    """Return what is wrong with the name of a case or subject, or an empty string: files are named after it."""
    if not name.strip():
        return "must not be empty"
    if len(name) > _MAX_NAME:
        return f"must have at most {_MAX_NAME} characters, got {len(name)}"
    if name[0] in ".#" or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
        return (
            f"must be fit for a file name (no '/', '\\\\', ':', '*', '?', quotes; not '.' or '#' first), got {name!r}"
        )
    return ""


def _error(path: Path, row: int, column: str | None, problem: str) -> CohortError:
    where = f", column '{column}'" if column else ""
    end = "" if problem.endswith((".", "?")) else "."
    return CohortError(f"Manifest '{path}', row {row}{where}: {problem}{end}")


def _split_notes(path: Path, text: str) -> tuple[dict[str, str], list[str], int]:
    """Return the leading ``# key: value`` notes, the other lines, and the row of the first of these."""
    lines = list(io.StringIO(text, newline=""))
    notes: dict[str, str] = {}
    for row, written in enumerate(lines, start=1):
        line = note_text(written)
        if line.strip(",; ") and not line.startswith("#"):
            return notes, lines[row - 1 :], row
        key, colon, value = line.strip("# \t\r\n").partition(":")
        key = key.strip().lower()
        if not colon or " " in key:
            continue
        if key in notes:
            raise _error(path, row, None, f"has '# {key}:' a second time")
        if key in _NOTES:
            notes[key] = value.strip()
        elif near := suggest(key, _NOTES):
            raise CohortError(f"Manifest '{path}', row {row}: there is no note '# {key}:'.{near}")
    raise CohortError(f"Manifest '{path}' has no header: it must start with 'case,subject,channel_<name>,…'.")


def _columns(path: Path, row: int, header: Sequence[str]) -> tuple[str, ...]:
    if len(header) <= 1:
        mark = next((name for char, name in ((";", "semicolons"), ("\t", "tabs")) if char in "".join(header)), "")
        got = f", got {mark}" if mark else f", got {list(header)}"
        raise _error(path, row, None, f"must be a header of columns separated by commas{got}")
    for index, column in enumerate(header):
        if not column or column in header[:index]:
            problem = "must be there only once" if column else f"column {index + 1} has no name: name it, or remove it"
            raise _error(path, row, column or None, problem)
        kind, underscore, name = column.partition("_")
        if underscore and kind in _NAMED_COLUMNS:
            if problem := name_problem(name):
                raise _error(path, row, column, f"the name after '{kind}_' {problem}")
        elif column not in _PLAIN_COLUMNS:
            raise _unknown_column(path, row, column)
    for column in ("case", "subject"):
        if column not in header:
            raise _error(path, row, None, f"must have a column '{column}', got {', '.join(header)}")
    if not _suffixes(header, "channel_"):
        raise _error(path, row, None, "must have at least one column 'channel_<name>'")
    return tuple(header)


def _unknown_column(path: Path, row: int, column: str) -> CohortError:
    near = suggest(column, _PLAIN_COLUMNS) or f" A channel's column is 'channel_{column}'."
    return _error(
        path,
        row,
        column,
        f"is not a column of manifests ({', '.join(_PLAIN_COLUMNS)}, channel_…, weight_…, target_…).{near}",
    )


def _suffixes(columns: Sequence[str], prefix: str) -> tuple[str, ...]:
    return tuple(column.removeprefix(prefix) for column in columns if column.startswith(prefix))


def _case(path: Path, row: int, cells: Mapping[str, str], labels: Mapping[str, int]) -> Case:
    for column in ("case", "subject"):
        if problem := case_problem(cells[column]):
            raise _error(path, row, column, problem)
    split = cells.get("split", "")
    if split not in SPLITS:
        allowed = ", ".join(name for name in SPLITS if name)
        raise _error(path, row, "split", f"must be one of {allowed} or empty, got '{split}'.{suggest(split, SPLITS)}")
    files = {
        column: path.parent / text if (text := _said(cells, column)) else None
        for column in cells
        if column.startswith(_FILES)
    }
    channels = {
        column.removeprefix("channel_"): file for column, file in files.items() if column.startswith("channel_")
    }
    if not any(channels.values()):
        raise _error(path, row, "channel_…", f"case '{cells['case']}' must have at least one channel")
    label = _said(cells, "label")
    if label and label not in labels:
        raise _error(path, row, "label", f"must be a name or an index of '# labels:', got {shown(label)}")
    return Case(
        name=cells["case"],
        subject=cells["subject"],
        channels=channels,
        label_map=files.get("label_map"),
        roi=files.get("roi"),
        weight_maps=_without_prefix(files, "weight_"),
        split=split,
        label=labels[label] if label else None,
        targets=_targets(path, row, cells),
    )


def _without_prefix(files: Mapping[str, Path | None], prefix: str) -> dict[str, Path]:
    return {
        column.removeprefix(prefix): file
        for column, file in files.items()
        if column.startswith(prefix) and file is not None
    }


def _targets(path: Path, row: int, cells: Mapping[str, str]) -> dict[str, float]:
    targets = {}
    for column in cells:
        if column.startswith("target_") and (text := _said(cells, column)):
            if (value := parse_number(text)) is None:
                raise _error(path, row, column, f"must be a number, got {shown(text)}")
            targets[column.removeprefix("target_")] = value
    return targets


def _said(cells: Mapping[str, str], column: str) -> str:
    """Return a cell, empty where the column is absent or says that there is nothing."""
    text = cells.get(column, "")
    return "" if text == MISSING else text


def _check_labels(names: Sequence[str], owner: str) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if problem := name_problem(name):
            raise CohortError(f"{owner} has the label of a case that {problem}.")
        if name in names[:index]:
            raise CohortError(f"{owner} has '{name}' twice in '# labels:'.")
    return tuple(names)


def _cells(path: Path, case: Case, label_classes: Sequence[str]) -> dict[str, str]:
    for column, name in (("case", case.name), ("subject", case.subject)):
        if problem := case_problem(name):
            raise CohortError(f"Manifest '{path}', case '{case.name}': its {column} {problem}.")
    files = {column: _relative(file, path.parent) for column, file in case.files().items()}
    missing = {f"channel_{name}": MISSING for name, file in case.channels.items() if file is None}
    said = {f"target_{name}": number_text(value) for name, value in case.targets.items()}
    if case.label is not None:
        said["label"] = label_classes[case.label] if label_classes else str(case.label)
    return {"case": case.name, "subject": case.subject, **missing, **files, **said, "split": case.split}


def _relative(file: Path, folder: Path) -> str:
    """Return the path from the folder; links to folders are followed, a link to the file itself is kept."""
    try:
        text = os.path.relpath(file.parent.resolve() / file.name, folder.resolve())
    except ValueError:  # another drive
        text = str(file.absolute())
    if text != text.strip() or "\n" in text:
        raise CohortError(
            f"'{file}' cannot stand in a manifest: its name begins or ends with blanks or has a line end."
        )
    return text.replace(os.sep, "/")


def _one_line(text: str) -> str:
    return " ".join(text.split())
