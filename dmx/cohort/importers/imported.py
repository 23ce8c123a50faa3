"""What an importer gives back, and what all of them need."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmx.cohort.case import Case, Cohort
from dmx.errors import CohortError


@dataclass(frozen=True)
class Imported:
    """A cohort and what the user should know about how it was read.

    Attributes:
        cohort: The cohort; its manifest is not written yet.
        notes: One sentence each.
    """

    cohort: Cohort
    notes: tuple[str, ...] = ()


def counted(number: int, what: str) -> str:
    """Return ``1 case``, ``2 cases``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def is_companion(path: Path) -> bool:
    """Return whether macOS wrote this beside a file of nearly the same name; it is no scan."""
    return path.name.startswith("._")


def is_broken_link(path: Path) -> bool:
    """Return whether this is a link to what is not there, such as a file that datalad has not fetched."""
    return path.is_symlink() and not path.exists()


def companion_notes(files: Collection[Path]) -> list[str]:
    """Say that macOS's companion files are left out."""
    return [f"{counted(len(files), 'file')} of macOS ('._…'): left out."] if files else []


def broken_notes(files: Collection[Path], cases: int) -> list[str]:
    """Say that cases are left out because files of theirs are links to what is not there."""
    if not files:
        return []
    return [
        f"{counted(cases, 'case')} with a link to a file that is not there, such as '{min(files)}': left out. "
        "Fetch the files first ('datalad get')."
    ]


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        CohortError: The file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise CohortError(f"'{path}' cannot be read: {reason}.") from error
    except UnicodeDecodeError as error:
        raise CohortError(f"'{path}' must be UTF-8 text.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        CohortError: The file cannot be read or is not a JSON object.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CohortError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CohortError(f"'{path}' must be a JSON object, got {type(value).__name__}.")
    return value


def clean_name(text: str) -> str:
    """Return the text as a name that manifests and metric keys allow.

    >>> clean_name("T1+C (gd)")
    'T1_C_gd'
    """
    return re.sub(r"[^\w.\-]+", "_", text).strip("_. ")


def clean_names(names: Iterable[str], what: str) -> tuple[str, ...]:
    """Return names that manifests allow, each once.

    Raises:
        CohortError: A name is empty, or two become the same.
    """
    before = tuple(names)
    after = tuple(clean_name(name) for name in before)
    if not all(after) or len(set(after)) != len(after):
        raise CohortError(f"The {what} must have different names, got {list(before)}.")
    return after


def numbered_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of which those that come more than once have a number.

    >>> numbered_names(["CT", "PET", "CT"])
    ('CT_0', 'PET', 'CT_1')
    """
    before = tuple(names)
    cleaned = [clean_name(name) for name in before]
    seen: Counter[str] = Counter()
    numbered = []
    for name, clean in zip(before, cleaned, strict=True):
        numbered.append(f"{name}_{seen[clean]}" if cleaned.count(clean) > 1 else name)
        seen[clean] += 1
    return tuple(numbered)


def with_subjects(cohort: Cohort, pattern: str) -> Cohort:
    """Return the cohort with the subject that a regular expression finds in each case's name.

    Args:
        cohort: The cohort.
        pattern: Its first group, or all of it where it has none, is the subject.

    Raises:
        CohortError: The pattern is not a regular expression, or finds nothing in a name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise CohortError(f"The subject pattern '{pattern}' is not a regular expression: {error}.") from error
    return replace(cohort, cases=tuple(_with_subject(case, expression) for case in cohort.cases))


def _with_subject(case: Case, expression: re.Pattern[str]) -> Case:
    found = expression.search(case.name)
    subject = found[min(1, expression.groups)] if found else None
    if not subject:
        raise CohortError(
            f"The subject pattern '{expression.pattern}' finds no subject in the case name '{case.name}'."
        )
    return replace(case, subject=subject)
