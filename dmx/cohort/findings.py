"""What is wrong with the files of a case, judged from their facts. Pure functions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dmx.cohort.case import Case
from dmx.cohort.facts import FileFacts
from dmx.cohort.grid import Affine, voxel_sizes

# Voxel sizes in mm beyond which a scan is odd, or its header wrong.
_ODD_MM = (0.05, 20.0)
_WRONG_MM = (0.001, 1000.0)
# Parts of a voxel by which two grids of a case may lie apart.
_APART_ERROR = 0.5
_APART_WARNING = 0.01
_SIZE_TOLERANCE = 0.01
# Name and millimeters of units of space.
_UNITS = {1: ("meters", 1000.0), 3: ("micrometers", 0.001)}
# Parts of a voxel by which sform and qform may lie apart: quaternions are float32.
_FORMS_APART = 0.1
_SHEAR_DEGREES = 0.5
_SIDES = (({"L", "R"}, "left and right"), ({"A", "P"}, "front and back"), ({"S", "I"}, "top and bottom"))
_SHOWN_VALUES = 6
_OTHER_LABELS = "must hold"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: ``error`` keeps a training from starting, ``warning`` does not.
        case: Name of the case; empty where the whole cohort is meant.
        column: Column of the manifest; empty where the whole case is meant.
        message: One sentence, with what to do where it is not plain.
    """

    severity: Literal["error", "warning"]
    case: str
    column: str
    message: str


@dataclass(frozen=True)
class Expected:
    """What the experiment takes for granted.

    Attributes:
        channels: Channels that are used.
        fill: Channels that a case may lack.
        num_classes: Number of classes; None where nobody said.
        labels: Class of each label in the file.
        ignore: Label of voxels that nobody annotated; None where all are.
        complete: No other label is allowed; otherwise labels that are not named stay as they are.
    """

    channels: tuple[str, ...]
    fill: frozenset[str]
    num_classes: int | None
    labels: Mapping[int, int]
    ignore: int | None = None
    complete: bool = False


def labels_hint(findings: Iterable[Finding]) -> str:
    """Return what to do where a label map has values that are no class; empty where none has."""
    if not any(one.column == "label_map" and one.message.startswith(_OTHER_LABELS) for one in findings):
        return ""
    return (
        "Say which class each value is: '--labels VALUE=CLASS,…' of 'dmx cohort import' writes it into the manifest, "
        "cohort.labels is for one experiment."
    )


def case_findings(case: Case, facts: Mapping[str, FileFacts], expected: Expected) -> Iterator[Finding]:
    """Yield what is wrong with a case; ``facts`` are those of its files by column."""
    yield from _missing(case, expected)
    reference: str | None = None
    for column, fact in facts.items():
        if fact.error:
            yield Finding("error", case.name, column, fact.error)
            continue
        yield from _header(case, column, fact)
        if reference is None:
            reference = column
        else:
            yield from _same_grid(case, column, fact, reference=reference, other=facts[reference])
        yield from _values(case, column, fact, expected)


def _missing(case: Case, expected: Expected) -> Iterator[Finding]:
    for channel in expected.channels:
        if case.channels.get(channel) is None and channel not in expected.fill:
            yield Finding(
                "error",
                case.name,
                f"channel_{channel}",
                "is missing; say with which value the experiment fills it (cohort.fill), or leave the case out.",
            )
    if case.label_map is None and case.split:
        severity: Literal["error", "warning"] = "warning" if case.split == "evaluation" else "error"
        yield Finding(severity, case.name, "label_map", f"is missing, and the case is in the split '{case.split}'.")


def _header(case: Case, column: str, fact: FileFacts) -> Iterator[Finding]:
    spacing = voxel_sizes(np.array(fact.affine))
    shown = " x ".join(f"{size:g}" for size in spacing)
    if min(spacing) < _WRONG_MM[0] or max(spacing) > _WRONG_MM[1]:
        yield Finding("error", case.name, column, f"has a voxel size of {shown} mm, which no scan has.")
    elif min(spacing) < _ODD_MM[0] or max(spacing) > _ODD_MM[1]:
        yield Finding("warning", case.name, column, f"has an unusual voxel size of {shown} mm.")
    if not np.allclose(fact.zooms, spacing, rtol=_SIZE_TOLERANCE):
        zooms = " x ".join(f"{size:g}" for size in fact.zooms)
        yield Finding(
            "warning",
            case.name,
            column,
            f"says {zooms} in its header's pixdim and {shown} in its affine, which counts.",
        )
    if fact.units in _UNITS:
        unit, millimeters = _UNITS[fact.units]
        other = " x ".join(f"{size * millimeters:g}" for size in spacing)
        message = f"is in {unit} by its header: {shown} is taken as mm, and would be {other} mm."
        yield Finding("warning", case.name, column, message)
    yield from (Finding("warning", case.name, column, message) for message in _placement(fact))


def _placement(fact: FileFacts) -> Iterator[str]:
    """Yield what is doubtful about where a file's voxels lie: which field counts, and what the other one would mean."""
    affine = np.array(fact.affine)
    if not fact.affine_of:
        yield (
            "has neither sform nor qform (both codes are 0), so nothing says which side is left: it is taken as "
            f"{fact.orientation}, and would be mirrored where that is wrong."
        )
    if fact.qform:
        qform = np.array(fact.qform)
        apart = _apart(affine, qform, fact.shape)
        if fact.qform_orientation != fact.orientation:
            yield (
                f"has an sform and a qform that disagree. The sform counts: {fact.orientation}; by the qform it would "
                f"be {fact.qform_orientation}{_swapped(fact.orientation, fact.qform_orientation)}."
            )
        elif apart > _FORMS_APART * min(voxel_sizes(affine)):
            yield (
                "has an sform and a qform that disagree. The sform counts; by the qform its voxels would lie up to "
                f"{apart:.3g} mm elsewhere."
            )
    shear = _shear(affine)
    if shear > _SHEAR_DEGREES:
        yield (
            f"has axes that are {shear:.3g} degrees off right angles (shear): they are taken as if at right angles, so "
            "that distances, and what is resampled, are distorted."
        )


def _swapped(orientation: str, other: str) -> str:
    """Say which sides change places between two orientations.

    >>> _swapped("RAS", "LAS"), _swapped("RAS", "ARS")
    (', with left and right swapped', ', with other axes')
    """
    pairs = [{one, two} for one, two in zip(orientation, other, strict=True) if one != two]
    named = [words for sides, words in _SIDES if sides in pairs]
    return f", with {' and '.join(named)} swapped" if len(named) == len(pairs) else ", with other axes"


def _shear(affine: Affine) -> float:
    """Return by how many degrees the voxel axes are off right angles at most."""
    axes = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    cosines = np.abs((axes.T @ axes)[np.triu_indices(3, 1)])
    return float(np.degrees(np.arcsin(min(1.0, float(cosines.max())))))


def _same_grid(case: Case, column: str, fact: FileFacts, *, reference: str, other: FileFacts) -> Iterator[Finding]:
    """Yield the most telling difference between a file's grid and that of the case's first file."""
    mine, first = np.array(fact.affine), np.array(other.affine)
    sizes, first_sizes = voxel_sizes(mine), voxel_sizes(first)
    if fact.shape != other.shape:
        problem = f"has shape {_by(fact.shape)}, {reference} has {_by(other.shape)}."
    elif fact.orientation != other.orientation:
        problem = f"is oriented {fact.orientation}, {reference} is {other.orientation}.{_would_agree(fact, other)}"
    elif not np.allclose(sizes, first_sizes, rtol=_SIZE_TOLERANCE):
        problem = f"has a voxel size of {_by(sizes)} mm, {reference} has {_by(first_sizes)} mm."
    else:
        apart = _apart(mine, first, fact.shape)
        if apart > _APART_WARNING * min(sizes):
            severity: Literal["error", "warning"] = "error" if apart > _APART_ERROR * min(sizes) else "warning"
            message = f"lies up to {apart:.3g} mm beside {reference}: their affines differ.{_would_agree(fact, other)}"
            yield Finding(severity, case.name, column, message)
        return
    yield Finding("error", case.name, column, problem)


def _would_agree(fact: FileFacts, other: FileFacts) -> str:
    """Say which field of the headers puts two files in the same place, where one does."""
    tolerated = _FORMS_APART * min(voxel_sizes(np.array(fact.affine)))
    tries = (
        (fact.qform, other.qform, "By their qforms they agree."),
        (fact.qform, other.affine, "By its qform it agrees."),
        (fact.affine, other.qform, "By the other's qform they agree."),
    )
    for mine, first, words in tries:
        if mine and first and _apart(np.array(mine), np.array(first), fact.shape) <= tolerated:
            return f" {words} Copy the right header from one to the other."
    missing = [one for one in (fact, other) if not one.affine_of]
    return " One of them has neither sform nor qform." if len(missing) == 1 else ""


def _apart(affine: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """Return how far apart in mm two affines put a corner of the volume at most."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    difference = (affine - other)[:3, :3] @ corners + (affine - other)[:3, 3:]
    return float(np.sqrt((difference**2).sum(axis=0)).max())


def _values(case: Case, column: str, fact: FileFacts, expected: Expected) -> Iterator[Finding]:
    for count, what in ((fact.nan, "not a number"), (fact.infinite, "infinite")):
        if count:
            yield Finding("error", case.name, column, f"has {count} voxels that are {what}.")
    if column == "label_map":
        yield from _labels(case, fact, expected)
    elif column == "roi":
        yield from _roi(case, fact)
    elif column.startswith("weight_"):
        if fact.low < 0:
            yield Finding("error", case.name, column, f"must have no weight below 0, got {fact.low:g}.")
        elif fact.high <= 0:
            yield Finding("error", case.name, column, "must have a weight above 0 somewhere.")
    elif fact.low == fact.high:
        message = f"is {fact.low:g} in every voxel: write '-' in its place and fill it (cohort.fill)."
        yield Finding("error", case.name, column, message)


def _labels(case: Case, fact: FileFacts, expected: Expected) -> Iterator[Finding]:
    if not fact.whole:
        message = f"must hold whole numbers, got values such as {_some(fact, lambda value: value % 1 != 0)}."
        yield Finding("error", case.name, "label_map", message)
        return
    classes = {
        value: expected.labels.get(int(value), -1 if expected.complete else int(value))
        for value, _ in fact.counts
        if value != expected.ignore
    }
    highest = float("inf") if expected.num_classes is None else expected.num_classes - 1
    wrong = {value for value, label in classes.items() if not 0 <= label <= highest}
    if wrong:
        allowed = "whole numbers from 0" if expected.num_classes is None else f"the labels 0 to {highest}"
        if expected.complete:
            allowed = f"the labels {', '.join(map(str, sorted(expected.labels)))}"
        found = _some(fact, wrong.__contains__)
        mapped = " after cohort.labels was applied" if wrong & expected.labels.keys() else ""
        yield Finding("error", case.name, "label_map", f"{_OTHER_LABELS} {allowed}{mapped}, got {found}.")
    elif fact.counts and not classes:
        message = f"holds only {expected.ignore}, the label of voxels that nobody annotated (ignore)."
        yield Finding("error", case.name, "label_map", message)
    elif fact.counts and not any(classes.values()):
        yield Finding("warning", case.name, "label_map", "holds background only.")


def _roi(case: Case, fact: FileFacts) -> Iterator[Finding]:
    values = {value for value, _ in fact.counts}
    if not fact.whole or not values <= {0.0, 1.0}:
        found = _some(fact, lambda value: value not in (0, 1))
        yield Finding("error", case.name, "roi", f"must hold only 0 and 1, got {found}.")
    elif 1.0 not in values:
        yield Finding("error", case.name, "roi", "is empty: no voxel is 1.")


def _some(fact: FileFacts, chosen: Callable[[float], bool]) -> str:
    """Return some of the chosen values with their voxels, e.g. ``3 (20 voxels), 4 (1 voxel)``."""
    pairs = [(value, count) for value, count in fact.counts if chosen(value)]
    shown = [f"{value:g} ({count} voxel{'' if count == 1 else 's'})" for value, count in pairs[:_SHOWN_VALUES]]
    more = [f"{len(pairs) - _SHOWN_VALUES} more values"] if len(pairs) > _SHOWN_VALUES else []
    return ", ".join(shown + more) or "none"


def _by(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)
