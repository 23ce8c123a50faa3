"""Labels: of whole cases and images, read from text; of voxels, values that are named; classes paired by name."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_DIGITS = re.compile(r"([0-9]+)")


def parse_integer(text: str) -> int | None:
    """Return the integer that a text is, or None.

    >>> parse_integer("-3"), parse_integer("3.0"), parse_integer("3_0")
    (-3, None, None)
    """
    return int(text) if _INTEGER.fullmatch(text) else None


def parse_number(text: str) -> float | None:
    """Return the number that a text is, ``nan`` (missing) included, or None for anything else.

    >>> parse_number("1e3"), parse_number("inf"), parse_number("1_0")
    (1000.0, None, None)
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isinf(value) or "_" in text else value


def number_text(value: float) -> str:
    """Return the shortest text that reads as the same number.

    >>> number_text(2.0), number_text(0.1)
    ('2', '0.1')
    """
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 and str(value) != "-0.0" else repr(value)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts numbers inside of names by their value.

    >>> sorted(["10", "9", "b2", "b10", "a"], key=natural)
    ['9', '10', 'a', 'b2', 'b10']
    """
    parts = [part for part in _DIGITS.split(name) if part]
    return (*((0, int(p), p) if p.isascii() and p.isdigit() else (1, 0, p) for p in parts),)


def name_labels(texts: Iterable[str], classes: Sequence[str] = ()) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the classes and the label that each text stands for.

    Where classes are given, a text is the name of one, else an index of one. Otherwise integers stand for themselves,
    and other names become classes in natural order.

    Args:
        texts: The labels in the file, empty ones left out.
        classes: Names of the classes, where someone gave them.

    Returns:
        Names (empty where integers stand for themselves) and text → label; texts that mean nothing are left out.
    """
    unique = dict.fromkeys(texts)
    integers = {text: parse_integer(text) for text in unique}
    if not classes and all(value is not None for value in integers.values()):
        return (), {text: value for text, value in integers.items() if value is not None}
    names = tuple(classes) or tuple(sorted(unique, key=natural))
    labels = {name: index for index, name in enumerate(names)}
    for text, value in integers.items():
        if text not in labels and value is not None and 0 <= value < len(names):
            labels[text] = value
    return names, {text: labels[text] for text in unique if text in labels}


@dataclass(frozen=True)
class ClassPairing:
    """Which class of a network each class of a cohort is.

    Attributes:
        index: For each of the cohort's classes its position among the network's; ``None``: the network has none such.
        by: ``names``: each class has its name's partner. ``position``: no name contradicts that the first is the first,
            and so on. Empty: neither can be said, and only classes of the same name have a partner.
    """

    index: tuple[int | None, ...]
    by: Literal["names", "position", ""]


def pair_classes(theirs: Sequence[str], ours: Sequence[str], *, background: bool = True) -> ClassPairing:
    """Pair the classes of a cohort with those of a network: by name, or by position where no name contradicts.

    Names that differ only in case, blanks and punctuation are the same.

    Args:
        theirs: Classes of the cohort.
        ours: Classes of the network.
        background: Whether the first class of both is the background, which may have any name.

    >>> pair_classes(["bg", "posterior", "Anterior"], ["background", "Anterior", "Posterior"])
    ClassPairing(index=(0, 2, 1), by='names')
    >>> pair_classes(["background", "a", "b"], ["background", "Anterior", "Posterior"]).by
    'position'
    >>> pair_classes(["background", "Posterior", "b"], ["background", "Anterior", "Posterior"])
    ClassPairing(index=(0, 2, None), by='')
    """
    if sorted(theirs) == sorted(ours):
        return ClassPairing(tuple(ours.index(name) for name in theirs), "names")
    start = int(background)
    index = [*range(start), *(position(name, ours, start) for name in theirs[start:])]
    known = [place for place in index if place is not None]
    # A background that is a structure elsewhere says that one of the lists has no background.
    lost = background and (position(theirs[0], ours, 1) is not None or position(ours[0], theirs, 1) is not None)
    if len(known) == len(index) == len(set(known)) and not lost:
        return ClassPairing(tuple(index), "names")
    if len(theirs) == len(ours) and not lost and all(place in (None, k) for k, place in enumerate(index)):
        return ClassPairing(tuple(range(len(ours))), "position")
    return ClassPairing(tuple(index), "")


def position(name: str, names: Sequence[str], start: int = 0) -> int | None:
    """Return where a name stands: as it is written, else however it is written, where that is one place only."""
    for spelled in (str, _spelling):
        places = [k for k, other in enumerate(names) if k >= start and spelled(other) == spelled(name)]
        if len(places) == 1:
            return places[0]
    return None


def _spelling(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
