"""Regions: sets of labels that may overlap, each with an output of its own (nnU-Net: region-based training)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dmx.cohort.labels import parse_integer
from dmx.cohort.text import shown
from dmx.errors import CohortError

IGNORED: Final = -1
"""Class index of voxels that count nowhere: nobody annotated them, or they lie outside of the volume."""


@dataclass(frozen=True)
class Regions:
    """What a network with one sigmoid per region predicts; without any member, classes that exclude each other.

    Attributes:
        members: Region → labels that it consists of.
        order: For each region the label that stands for it in a label map; where regions overlap, the later one counts
            (nnU-Net: ``regions_class_order``).
    """

    members: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    order: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.members)

    @property
    def highest(self) -> int:
        """The highest label that is named, 0 without regions."""
        return max((*self.order, *(label for members in self.members.values() for label in members)), default=0)

    def mapped(self, labels: Mapping[int, int]) -> "Regions":
        """Return the regions of label maps in which some labels became others."""
        members = {
            name: tuple(dict.fromkeys(labels.get(label, label) for label in chosen))
            for name, chosen in self.members.items()
        }
        return Regions(members, tuple(labels.get(label, label) for label in self.order))

    def paint(self, inside: Iterable[Any], labels: Any) -> Any:
        """Write the label of each region where it is found, in their order, and return the label map.

        Args:
            inside: One boolean array or tensor [I, J, K] per region.
            labels: Array or tensor [I, J, K] of zeros, written in place.
        """
        for mask, label in zip(inside, self.order, strict=True):
            labels[mask] = label
        return labels

    def merged(self) -> list[str]:
        """Return what label maps cannot tell apart: one phrase per label of which another one is written."""
        where = {
            label: frozenset(name for name, members in self.members.items() if label in members)
            for label in sorted({label for members in self.members.values() for label in members})
        }
        found = []
        for label, names in where.items():
            # As paint does: the last of the regions that hold the label counts.
            written = [order for (name, order) in zip(self.members, self.order, strict=True) if name in names][-1]
            if where.get(written) != names:
                found.append(f"{label} ({' and '.join(sorted(names))}) is written as {written}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"members": {name: list(labels) for name, labels in self.members.items()}, "order": list(self.order)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Regions":
        """Return the regions that :meth:`as_dict` described."""
        members = {str(name): tuple(int(label) for label in labels) for name, labels in values["members"].items()}
        return cls(members, tuple(int(label) for label in values["order"]))


def checked_regions(members: Mapping[str, Sequence[int]], order: Sequence[int], owner: str) -> Regions:
    """Return regions that can be learned and written.

    Args:
        members: Region → labels.
        order: Label of each region in a label map.
        owner: What the error calls the place that names them.

    Raises:
        CohortError: A region is empty or holds the background, or the order does not name one label per region.
    """
    for name, labels in members.items():
        if not labels or min(labels) < 1:
            raise CohortError(
                f"{owner}: region '{name}' must be one or more labels from 1 (0 is the background), got {[*labels]}."
            )
    if len(order) != len(members):
        raise CohortError(
            f"{owner}: regions_class_order must name one label for each of the {len(members)} regions "
            f"({', '.join(members) or 'none'}), got {[*order]}. A label map gets this label where the region is found; "
            "where regions overlap, the later one counts."
        )
    for (name, labels), label in zip(members.items(), order, strict=True):
        if label not in labels:
            raise CohortError(
                f"{owner}: regions_class_order writes label {label} for region '{name}', which consists of "
                f"{[*labels]}. Name one of these."
            )
    return Regions({name: tuple(labels) for name, labels in members.items()}, tuple(order))


def region_notes(regions: Regions, ignore: int | None) -> list[str]:
    """Return the notes of a manifest that say the same, as :func:`read_regions` and :func:`read_ignore` read them."""
    notes = []
    if regions:
        members = "; ".join(f"{name} = {' '.join(map(str, labels))}" for name, labels in regions.members.items())
        notes += [f"regions: {members}", f"regions_class_order: {', '.join(map(str, regions.order))}"]
    return notes if ignore is None else [*notes, f"ignore: {ignore}"]


def read_regions(notes: Mapping[str, str], owner: str, problem_of: Callable[[str], str]) -> Regions:
    """Return the regions that a manifest's notes name.

    Args:
        notes: Notes by name: ``regions`` is ``whole = 1 2 3; core = 2 3``, ``regions_class_order`` is ``1, 2``.
        owner: What the error calls the manifest.
        problem_of: Returns what is wrong with a name, or an empty text.

    Raises:
        CohortError: They cannot be read, or do not fit each other.
    """
    members: dict[str, tuple[int, ...]] = {}
    for text in filter(str.strip, notes.get("regions", "").split(";")):
        name, equals, labels = (part.strip() for part in text.partition("="))
        if not equals:
            raise CohortError(
                f"{owner}: '# regions:' must be 'name = labels; name = labels', got {shown(text.strip())}."
            )
        if problem := problem_of(name):
            raise CohortError(f"{owner} has a region name that {problem}.")
        if name in members:
            raise CohortError(f"{owner} has the region '{name}' twice.")
        members[name] = _integers(labels, "regions", owner)
    order = _integers(notes.get("regions_class_order", ""), "regions_class_order", owner)
    return checked_regions(members, order, owner) if members or order else Regions()


def read_ignore(notes: Mapping[str, str], owner: str) -> int | None:
    """Return the label that a manifest's note names; ``None`` without one.

    Raises:
        CohortError: It is not one whole number.
    """
    if "ignore" not in notes:
        return None
    found = _integers(notes["ignore"], "ignore", owner)
    if len(found) != 1:
        raise CohortError(f"{owner}: '# ignore:' must name one whole number, got {shown(notes['ignore'])}.")
    return found[0]


def _integers(text: str, note: str, owner: str) -> tuple[int, ...]:
    """Return the whole numbers of a note, separated by commas or blanks."""
    values = [parse_integer(word) for word in text.replace(",", " ").split()]
    if None in values:
        raise CohortError(f"{owner}: '# {note}:' must name whole numbers, got {shown(text)}.")
    return tuple(value for value in values if value is not None)
