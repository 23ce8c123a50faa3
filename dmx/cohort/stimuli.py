"""What a set of stimuli is: images, each with what is known about it. Plain values, no files are opened."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dmx.cohort.manifest import name_problem
from dmx.errors import CohortError, suggest

ID, LABEL, CONDITION = "stimID", "label", "condition"
"""Columns of a ``.stim.csv`` that are no numbers."""


@dataclass(frozen=True)
class Stimulus:
    """One presentation of an image; an image may be presented several times.

    Attributes:
        id: The image's path below the set's folder, with ``/``.
        path: The image.
        label: Integer as the file says it; ``StimulusSet.labels`` knows its class.
        condition: Text that goes with it, usually the name of the class.
        values: Numbers by column: targets, behavior, ``onset`` and ``duration`` in seconds; ``nan``: missing.
        group: What must not lie in two splits, such as the person shown; empty: the image itself.
        split: ``training``, ``validation``, ``evaluation`` or empty.
        place: File and row that it came from, for sentences about it.
        row: That row; 0 where there is none.
    """

    id: str
    path: Path
    label: int | None = None
    condition: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    group: str = ""
    split: str = ""
    place: str = field(default="", compare=False)
    row: int = field(default=0, compare=False)

    @property
    def subject(self) -> str:
        """What splits go by: the group, else the image."""
        return self.group or self.id


@dataclass(frozen=True)
class StimulusSet:
    """Images that are learned from or predicted.

    Attributes:
        name: What sentences and runs call it.
        stimuli: The stimuli, in the file's order.
        classes: Names of the classes, in the order of the network's outputs; empty where nothing has a label.
        columns: Columns of the file, or those that a ``.stim.csv`` of it would have.
        header: Header of the ``.stim.csv``; empty for other sources.
        file: File or folder that it was read from, if any.
        labels: Label of each class, in the order of ``classes``.
    """

    name: str
    stimuli: tuple[Stimulus, ...]
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = (ID,)
    header: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    labels: tuple[int, ...] = ()

    def in_split(self, split: str) -> tuple[Stimulus, ...]:
        """Return the stimuli of a split, in the file's order."""
        return tuple(stimulus for stimulus in self.stimuli if stimulus.split == split)

    @property
    def subjects(self) -> tuple[str, ...]:
        """What splits go by, each once, in the order of its first stimulus."""
        return tuple(dict.fromkeys(stimulus.subject for stimulus in self.stimuli))

    def with_splits(self, split_of: Mapping[str, str]) -> "StimulusSet":
        """Return the set with the split that each subject gets."""
        return replace(self, stimuli=tuple(replace(s, split=split_of[s.subject]) for s in self.stimuli))

    @property
    def class_of_label(self) -> dict[int, int]:
        """Label: class index."""
        return {label: index for index, label in enumerate(self.labels)}


def classes_of(stimuli: Iterable[Stimulus]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and labels of the classes that occur, by ascending label.

    The conditions name the classes where each label has one condition, each condition one label, and all are fit for a
    name; otherwise the labels name themselves.
    """
    conditions: dict[int, set[str | None]] = {}
    for stimulus in stimuli:
        if stimulus.label is not None:
            conditions.setdefault(stimulus.label, set()).add(stimulus.condition)
    labels = tuple(sorted(conditions))
    first = [next(iter(conditions[label])) or "" for label in labels]
    one_to_one = all(len(found) == 1 for found in conditions.values()) and len(set(first)) == len(first)
    if one_to_one and not any(name_problem(name) for name in first):
        return tuple(first), labels
    return tuple(str(label) for label in labels), labels


def class_indices(
    stimuli: Sequence[Stimulus], class_of_label: Mapping[int, int], *, required: bool = True
) -> list[int]:
    """Return the class index of each stimulus; -1 where it has no label and none is required.

    Args:
        stimuli: Stimuli.
        class_of_label: Label: class index, as :class:`StimulusSet` or a checkpoint's contract has it.
        required: Whether each must have a label.

    Raises:
        CohortError: A label is missing or has no class.
    """
    indices = []
    for stimulus in stimuli:
        if stimulus.label is None:
            if required:
                raise CohortError(f"{where(stimulus)}has no label, and this needs one.")
            indices.append(-1)
        elif stimulus.label not in class_of_label:
            known = ", ".join(str(label) for label in class_of_label)
            raise CohortError(f"{where(stimulus)}has the label {stimulus.label}, the classes have {known or 'none'}.")
        else:
            indices.append(class_of_label[stimulus.label])
    return indices


def target_values(
    stimuli: Sequence[Stimulus], targets: Sequence[str], *, required: bool = True
) -> list[tuple[float, ...]]:
    """Return the numbers that are to be predicted for each stimulus, in the order of ``targets``.

    Args:
        stimuli: Stimuli.
        targets: Columns.
        required: Whether each must have them; otherwise ``nan`` stands for a missing one.

    Raises:
        CohortError: A target is missing.
    """
    for stimulus in stimuli if required else ():
        for target in targets:
            if math.isnan(stimulus.values.get(target, math.nan)):
                raise CohortError(
                    f"{where(stimulus)}has no number in column '{target}', and this needs one."
                    f"{suggest(target, stimulus.values)}"
                )
    return [tuple(stimulus.values.get(target, math.nan) for target in targets) for stimulus in stimuli]


def where(stimulus: Stimulus) -> str:
    """Return the beginning of a sentence about a stimulus."""
    return f"{stimulus.place}: " if stimulus.place else f"Stimulus '{stimulus.id}' "
