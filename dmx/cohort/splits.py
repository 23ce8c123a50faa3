"""Splits by subject: a function of the seed and the subjects' names, whatever the order of the rows."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from dmx.cohort.case import SPLITS
from dmx.errors import CohortError, suggest


class Member(Protocol):
    """A case or an image: what belongs to a subject."""

    @property
    def subject(self) -> str:
        """The person, or whatever else must not lie in two splits."""
        ...


class Divisible(Protocol):
    """A cohort, or a set of stimuli."""

    @property
    def name(self) -> str:
        """What sentences call it."""
        ...

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects, each once."""
        ...

    def in_split(self, split: str) -> Sequence[Member]:
        """Return the members of a split."""
        ...

    def with_splits(self: "D", split_of: Mapping[str, str]) -> "D":
        """Return the same with the split that each subject gets."""
        ...


D = TypeVar("D", bound=Divisible)


def split_by_subject(cohort: D, *, fractions: Mapping[str, float], seed: int) -> D:
    """Return the cohort with new splits; all cases of a subject get the same one.

    Args:
        cohort: A cohort, or a set of stimuli; its present splits do not matter.
        fractions: Share of the subjects per split; they add up to 1. Each split above 0 gets at least one subject.
        seed: Another seed is another split.

    Raises:
        CohortError: The fractions cannot be used, or there are fewer subjects than splits.
    """
    _check_fractions(fractions)
    wanted = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    subjects = _shuffled(cohort.subjects, seed)
    if len(subjects) < len(wanted):
        raise CohortError(
            f"Cohort '{cohort.name}' must have at least {len(wanted)} subjects for the splits {', '.join(wanted)}, "
            f"got {len(subjects)}."
        )
    order = [split for split, count in _counts(wanted, len(subjects)).items() for _ in range(count)]
    return cohort.with_splits(dict(zip(subjects, order, strict=True)))


def k_fold(cohort: D, *, fold: int, folds: int, seed: int) -> D:
    """Return the cohort with one fold of subjects for validation and the others for training.

    Subjects with a case in the split ``evaluation`` stay there: what is held out is in no fold.

    Raises:
        CohortError: There are fewer subjects than folds, or no such fold.
    """
    held_out = {case.subject for case in cohort.in_split("evaluation")}
    subjects = _shuffled((subject for subject in cohort.subjects if subject not in held_out), seed)
    if not 2 <= folds <= len(subjects):
        raise CohortError(
            f"Cohort '{cohort.name}' has {len(subjects)} subjects that are not held out for evaluation: folds must be "
            f"between 2 and that, got {folds}."
        )
    if not 0 <= fold < folds:
        raise CohortError(f"The fold must be between 0 and {folds - 1}, got {fold}.")
    splits = {name: "validation" if index % folds == fold else "training" for index, name in enumerate(subjects)}
    return cohort.with_splits(splits | dict.fromkeys(held_out, "evaluation"))


def _check_fractions(fractions: Mapping[str, float]) -> None:
    for split, fraction in fractions.items():
        if not split or split not in SPLITS:
            allowed = ", ".join(name for name in SPLITS if name)
            raise CohortError(f"A split must be one of {allowed}, got '{split}'.{suggest(split, SPLITS)}")
        if not 0 <= fraction <= 1:
            raise CohortError(f"The fraction of '{split}' must be between 0 and 1, got {fraction}.")
    if not math.isclose(math.fsum(fractions.values()), 1.0, abs_tol=1e-6):
        got = ", ".join(f"{split} {fraction:g}" for split, fraction in fractions.items())
        raise CohortError(f"The fractions of the splits must add up to 1, got {got or 'none'}.")


def _shuffled(subjects: Iterable[str], seed: int) -> list[str]:
    """Sort by a hash of seed and name."""
    return sorted(subjects, key=lambda name: hashlib.sha256(f"{seed}\x1f{name}".encode()).digest())


def _counts(fractions: Mapping[str, float], total: int) -> dict[str, int]:
    """Return how many subjects each split gets: rounded down, at least one, the rest by the largest remainder."""
    counts = {split: max(1, math.floor(fraction * total + 1e-9)) for split, fraction in fractions.items()}
    while (missing := total - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        gap = {split: step * (fractions[split] * total - count) for split, count in counts.items()}
        possible = [split for split in gap if step > 0 or counts[split] > 1]
        counts[max(possible, key=gap.__getitem__)] += step
    return counts
