"""Cohorts found by file-name patterns: BIDS and any other regular layout.

A pattern is a path below the folder. ``*`` stands for anything inside a name, ``**`` for any folders, ``{subject}``,
``{session}`` and ``{split}`` for what a case is known by. Without ``{subject}``, ``sub-<label>`` and ``ses-<label>`` of
the path are taken, as BIDS writes them.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dmx.cohort.case import Case, Cohort
from dmx.cohort.importers.imported import (
    Imported,
    broken_notes,
    companion_notes,
    counted,
    is_broken_link,
    is_companion,
)
from dmx.cohort.manifest import check_classes
from dmx.errors import CohortError, suggest

_PLACEHOLDERS = ("subject", "session", "split")
_TOKEN = re.compile(r"\{(\w*)\}|(\*\*/)|(\*)|(\?)")
_BIDS = {"subject": re.compile(r"(?:^|[/_])sub-([A-Za-z0-9]+)"), "session": re.compile(r"(?:^|[/_])ses-([A-Za-z0-9]+)")}
_SPLITS = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "evaluation",
    "testing": "evaluation",
    "evaluation": "evaluation",
}

Key = tuple[str, str]


@dataclass(frozen=True)
class Patterns:
    """Where the files of a cohort are, relative to its folder."""

    channels: Mapping[str, str]
    label_map: str | None = None
    roi: str | None = None
    weight_maps: Mapping[str, str] | None = None

    def columns(self) -> dict[str, str]:
        """Return the patterns by manifest column."""
        columns = {f"channel_{name}": pattern for name, pattern in self.channels.items()}
        columns |= {name: p for name, p in (("label_map", self.label_map), ("roi", self.roi)) if p is not None}
        return columns | {f"weight_{name}": pattern for name, pattern in (self.weight_maps or {}).items()}


@dataclass(frozen=True)
class _Match:
    file: Path
    known: Mapping[str, str]


def import_by_pattern(
    folder: str | Path, patterns: Patterns, *, name: str | None = None, classes: tuple[str, ...] = ()
) -> Imported:
    """Find the cases of a folder by patterns.

    Raises:
        CohortError: A pattern cannot be used, finds nothing, or finds two files for one case.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise CohortError(f"'{folder}' must be a folder.")
    if not patterns.channels:
        raise CohortError("At least one channel needs a pattern, e.g. --channel t1='sub-{subject}/anat/*_T1w.nii.gz'.")
    found = {column: _find(folder, column, pattern) for column, pattern in patterns.columns().items()}
    found, notes = _usable(found)
    for column, matches in found.items():
        if not matches:
            said = "".join(f" {note}" for note in notes)
            raise CohortError(
                f"The pattern of {column} finds no file in '{folder}': '{patterns.columns()[column]}'.{said}"
            )
    keys: dict[Key, str] = {}
    for column, matches in found.items():
        if column.startswith("channel_"):
            for match in matches:
                keys.setdefault(_key(match), _split(match))
    cases = tuple(_case(patterns, key, split, found) for key, split in sorted(keys.items()))
    used = {file for case in cases for file in case.files().values()}
    unused = sum(match.file not in used for matches in found.values() for match in matches)
    if unused:
        belong = "belongs" if unused == 1 else "belong"
        notes.append(f"{counted(unused, 'file')} {belong} to no case that has a channel: left out.")
    checked = check_classes(classes, "The option for classes") if classes else ()
    return Imported(Cohort(name or folder.name, checked, tuple(patterns.channels), cases), tuple(notes))


def _usable(found: Mapping[str, list[_Match]]) -> tuple[dict[str, list[_Match]], list[str]]:
    """Return the matches without macOS's companion files and without cases of which a file is not there.

    Returns:
        Matches by column, and a sentence for each kind that is left out.
    """
    companions = {match.file for matches in found.values() for match in matches if is_companion(match.file)}
    broken = {
        match.file: _key(match)
        for matches in found.values()
        for match in matches
        if match.file not in companions and is_broken_link(match.file)
    }
    keys = set(broken.values())
    usable = {
        column: [match for match in matches if match.file not in companions and _key(match) not in keys]
        for column, matches in found.items()
    }
    return usable, [*companion_notes(companions), *broken_notes(broken, len(keys))]


def _find(folder: Path, column: str, pattern: str) -> list[_Match]:
    expression, glob = _compile(column, pattern)
    matches = []
    try:
        files = sorted(file for file in _globbed(folder, glob) if file.is_file() or is_broken_link(file))
    except (ValueError, NotImplementedError, IndexError) as error:
        raise CohortError(f"The pattern of {column} cannot be used: '{pattern}' ({error}).") from error
    for file in files:
        text = file.relative_to(folder).as_posix()
        if found := expression.fullmatch(text):
            marked = found.groupdict()
            matches.append(_Match(file, marked if "subject" in marked else _bids_entities(column, text) | marked))
    return matches


def _globbed(folder: Path, glob: str) -> Iterator[Path]:
    """Yield at least what a glob finds, in folders that are links, too; hidden folders are not searched by ``**``."""
    if "**" not in glob:
        yield from folder.glob(glob)
        return
    opened: set[Path] = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        yield from (Path(at) / name for name in names)
        # A link to a folder above would be followed for ever.
        folders[:] = [name for name in folders if not name.startswith(".") and _first(Path(at) / name, opened)]


def _first(folder: Path, opened: set[Path]) -> bool:
    """Return whether a folder is not one of those that contain it, or, as a link, one that was opened before."""
    real = folder.resolve()
    if folder.is_symlink() and (real in opened or folder.is_relative_to(real)):
        return False
    opened.add(real)
    return True


def _compile(column: str, pattern: str) -> tuple[re.Pattern[str], str]:
    """Return the pattern as a regular expression and as a glob that finds at least the same files."""
    pattern = pattern.removeprefix("./")
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise CohortError(f"The pattern of {column} must stay below the folder, got '{pattern}'.")
    expression, position, seen = "", 0, set()
    for token in _TOKEN.finditer(pattern):
        expression += re.escape(pattern[position : token.start()])
        position = token.end()
        name, folders, star, _ = token.groups()
        if name is not None:
            if name not in _PLACEHOLDERS:
                allowed = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
                near = suggest(name, _PLACEHOLDERS)
                raise CohortError(f"The pattern of {column} may use {allowed}, got '{{{name}}}'.{near}")
            expression += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
        else:
            expression += "(?:[^/]+/)*" if folders else "[^/]*" if star else "[^/]"
    glob = _TOKEN.sub(lambda token: token[0] if token[1] is None else "*", pattern.replace("[", "[[]"))
    return re.compile(expression + re.escape(pattern[position:])), re.sub(r"\*{2,}(?!/)", "*", glob)


def _bids_entities(column: str, text: str) -> dict[str, str]:
    known = {name: found[1] for name, expression in _BIDS.items() if (found := expression.search(text))}
    if "subject" not in known:
        raise CohortError(
            f"The pattern of {column} finds '{text}', which has no 'sub-<label>': mark the subject with {{subject}}."
        )
    return known


def _key(match: _Match) -> Key:
    return match.known.get("subject", ""), match.known.get("session", "")


def _split(match: _Match) -> str:
    name = match.known.get("split", "")
    if name and name.lower() not in _SPLITS:
        raise CohortError(f"'{match.file}' lies in the split '{name}', allowed are {', '.join(_SPLITS)}.")
    return _SPLITS[name.lower()] if name else ""


def _case(patterns: Patterns, key: Key, split: str, found: Mapping[str, list[_Match]]) -> Case:
    subject, session = key
    name = "_".join(part for part in (subject, session) if part)
    files = {column: _one(column, name, key, matches) for column, matches in found.items()}
    weights = {name: files[f"weight_{name}"] for name in patterns.weight_maps or {}}
    return Case(
        name=name,
        subject=subject,
        channels={channel: files[f"channel_{channel}"] for channel in patterns.channels},
        label_map=files.get("label_map"),
        roi=files.get("roi"),
        weight_maps={name: file for name, file in weights.items() if file is not None},
        split=split,
    )


def _one(column: str, name: str, key: Key, matches: list[_Match]) -> Path | None:
    """Return the file of a case; one that knows no session belongs to all sessions of its subject."""
    own = [match.file for match in matches if _key(match) in (key, (key[0], ""))]
    if len(own) > 1:
        raise CohortError(
            f"The pattern of {column} finds {len(own)} files for case '{name}': '{own[0]}' and '{own[1]}'. "
            "Narrow it, or mark the session with {session}."
        )
    return own[0] if own else None
