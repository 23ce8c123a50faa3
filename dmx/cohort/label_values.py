"""Values in label maps: which class each of them is, as a manifest, a command or an experiment says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.case import Cohort
from dmx.cohort.labels import parse_integer, position
from dmx.cohort.regions import IGNORED
from dmx.errors import CohortError, suggest


def class_index(name: str | int, classes: Sequence[str], owner: str) -> int:
    """Return the index of a class that is named, or given by its index.

    Raises:
        CohortError: There is no such class.
    """
    found = position(str(name), classes)
    if found is None and (number := parse_integer(str(name))) is not None and 0 <= number < len(classes):
        found = number
    if found is None:
        raise CohortError(
            f"{owner} names the class '{name}', allowed are {', '.join(classes) or 'none, as no class is named'}."
            f"{suggest(str(name), classes)}"
        )
    return found


def parse_label_values(words: Iterable[str], owner: str) -> dict[int, str]:
    """Read ``17=Anterior`` and the like: the value in the label maps and the class that it is.

    Raises:
        CohortError: A word is not of that form, or a value comes twice.

    >>> parse_label_values(["17=Anterior", " 53 = Posterior"], "--labels")
    {17: 'Anterior', 53: 'Posterior'}
    """
    values: dict[int, str] = {}
    for word in words:
        text, equals, name = (part.strip() for part in word.partition("="))
        value = parse_integer(text)
        if value is None or not equals or not name:
            raise CohortError(f"{owner} must be VALUE=CLASS, e.g. 17=Anterior, got '{word.strip()}'.")
        if value in values:
            raise CohortError(f"{owner} names the value {value} twice.")
        values[value] = name
    return values


def named_values(base: Mapping[int, int], stated: Mapping[int, int]) -> dict[int, int]:
    """Return which class each value is where some are stated; every other value of a class that is stated is dropped.

    >>> named_values({0: 0, 1: 1, 2: 2, 3: 3}, {4: 3})
    {0: 0, 1: 1, 2: 2, 4: 3}
    """
    named = set(stated.values())
    kept = {value: index for value, index in base.items() if index not in named and value not in stated}
    if 0 not in stated and base.get(0, 0) == 0:
        kept[0] = 0
    return dict(sorted({**kept, **stated}.items()))


def values_text(values: Mapping[int, int], classes: Sequence[str]) -> str:
    """Return ``17=Anterior, 53=Posterior``.

    >>> values_text({17: 1, 0: 0}, ["background", "Anterior"])
    '0=background, 17=Anterior'
    """
    return ", ".join(f"{value}={classes[index]}" for value, index in sorted(values.items()))


def noted_values(text: str, classes: Sequence[str], owner: str) -> dict[int, int]:
    """Read the note ``# label_values: 17=Anterior, 53=Posterior``; 0 is background where nothing else is said."""
    if not text:
        return {}
    if not classes:
        raise CohortError(f"{owner} has '# label_values:', which takes '# classes: background, …' as well.")
    stated = parse_label_values(text.split(","), f"'# label_values:' of {owner}")
    values = {value: class_index(name, classes, f"'# label_values:' of {owner}") for value, name in stated.items()}
    return {0: 0} | values


def with_label_values(cohort: Cohort, words: Sequence[str], *, owner: str) -> Cohort:
    """Return a cohort with what a user says of the values in its label maps.

    Args:
        cohort: The cohort. Where it names no classes, they are those of the words, by value.
        words: ``VALUE=CLASS``, the class by name or index. Classes that are not among them keep their values.
        owner: What error sentences call the words.

    Raises:
        CohortError: A word is not of that form, or names a class that there is not.
    """
    stated = parse_label_values(words, owner)
    classes = cohort.classes
    if not classes:
        names = {0: "background"} | stated
        classes = tuple(dict.fromkeys(names[value] for value in sorted(names)))
    base = cohort.label_values or {index: index for index in range(len(classes))}
    values = named_values(base, {value: class_index(name, classes, owner) for value, name in stated.items()})
    return replace(cohort, classes=classes, label_values=values)


def as_class_indices(labels: NDArray[Any], cohort: Cohort, *, case: str) -> NDArray[np.int64]:
    """Return the class index of each voxel of a label map as its manifest says; -1 where nobody annotated.

    Args:
        labels: Integers as in the file.
        cohort: The cohort.
        case: Name of the case, for the error.

    Raises:
        CohortError: A value is no class of the manifest's note ``# label_values:``.
    """
    values = dict(cohort.label_values)
    if cohort.ignore is not None:
        values.setdefault(cohort.ignore, IGNORED)
    found, where = np.unique(labels, return_inverse=True)
    strange = [value for value in found.tolist() if value not in values] if cohort.label_values else []
    if strange:
        raise CohortError(
            f"The label map of case '{case}' holds the value {strange[0]}, allowed are {', '.join(map(str, values))} "
            "('# label_values:' of the manifest). 'dmx cohort check' lists all such values."
        )
    indices = np.array([values.get(value, value) for value in found.tolist()], dtype=np.int64)
    return indices[where].reshape(labels.shape)
