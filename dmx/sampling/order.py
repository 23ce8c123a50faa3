"""Which images or volumes a training sees when, as a pure function of (seed, epoch, step, part)."""

import math
from collections.abc import Sequence

from torch import Tensor

from dmx import seeding
from dmx.errors import CohortError, ConfigError
from dmx.sampling.centers import permuted

Key = tuple[int, int, int]
"""Epoch, step, part."""


class DrawnOrder:
    """One endless stream of all cases: a random order of all, another random order of all, and so on.

    An epoch is the next part of it: exactly one order of all cases where no number of steps is given, else as many as
    its steps take, so that all cases come equally often whatever the length of an epoch. Where a last step would have
    fewer cases than batches, there is none: these cases come first in the next epoch. A balanced stream gives each
    class in turn, in random order within each round, and goes through the cases of each class in the same way; it
    repeats those of small classes.

    Args:
        target: Class of each case, int64 [cases], or its numbers, float32 [cases, targets]; each case must have one.
        ids: Names of the cases, for sentences.
        classes: Names of the classes.
        batch_size: Cases per batch, at most.
        accumulate: Batches per step. Those of a smaller last step share its cases evenly.
        steps_per_epoch: Steps per epoch; ``None``: as many as one pass over the cases takes, the last one smaller
            where the numbers do not fit.
        balanced: Whether each class comes equally often.
        seed: Seed of the experiment.
        purpose: What the cases are for; another purpose draws others.

    Attributes:
        key: What all draws are derived from.
        left_over: Cases that an epoch without a number of steps leaves for the next one.

    Raises:
        CohortError: There are no cases, or one has no target, or a class has none to balance with.
        ConfigError: Settings that do not fit each other or the number of cases.
    """

    def __init__(  # noqa: PLR0913  # keyword-only settings that three sections of the experiment hold
        self,
        target: Tensor,
        ids: Sequence[str],
        classes: Sequence[str],
        *,
        batch_size: int,
        accumulate: int = 1,
        steps_per_epoch: int | None = None,
        balanced: bool = False,
        seed: int,
        purpose: str = "training",
    ) -> None:
        _require_targets(target, ids)
        self.key = seeding.derive(seed, purpose)
        self._count = len(ids)
        self._accumulate = accumulate
        self._per_step = batch_size * accumulate
        self._members = _members(target, classes) if balanced else None
        self.left_over = 0 if steps_per_epoch is not None else self._unshared()
        self._drawn = len(ids) - self.left_over if steps_per_epoch is None else steps_per_epoch * self._per_step

    def _unshared(self) -> int:
        """Return how many cases of a pass are too few for the batches of a last step.

        Raises:
            ConfigError: No step of the epoch has enough.
        """
        steps, rest = divmod(self._count, self._per_step)
        if rest >= self._accumulate:
            return 0
        if not steps:
            raise ConfigError(
                f"training.accumulate must be at most the number of training cases, {self._count}, got "
                f"{self._accumulate}. Lower it, or set training.steps_per_epoch to draw cases more than once."
            )
        return rest

    def __len__(self) -> int:
        """Return the number of cases."""
        return self._count

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return math.ceil(self._drawn / self._per_step)

    def places(self, epoch: int, step: int, part: int) -> range:
        """Return the places in the stream that a batch takes.

        Args:
            epoch: Epoch, from 0.
            step: Step in the epoch, from 0.
            part: Batch in the step, from 0, below ``accumulate``.

        Raises:
            ValueError: A step or part that the epoch does not have.
        """
        if not (0 <= step < self.steps_per_epoch and 0 <= part < self._accumulate):
            raise ValueError(
                f"step and part must be below {self.steps_per_epoch} and {self._accumulate} (from 0), got {step} and "
                f"{part}"
            )
        first = step * self._per_step
        count = min(self._per_step, self._drawn - first)
        start, end = (epoch * self._drawn + first + count * p // self._accumulate for p in (part, part + 1))
        return range(start, end)

    def following(self, key: Key) -> Key:
        """Return which (epoch, step, part) comes after one, for whoever prepares batches ahead."""
        epoch, step, part = key
        if part + 1 < self._accumulate:
            return (epoch, step, part + 1)
        return (epoch, step + 1, 0) if step + 1 < self.steps_per_epoch else (epoch + 1, 0, 0)

    def indices(self, epoch: int, step: int, part: int = 0) -> list[int]:
        """Return which cases are in a batch; see :meth:`places`."""
        return [self.index(place) for place in self.places(epoch, step, part)]

    def index(self, position: int) -> int:
        """Return which case comes at a place of the stream."""
        if self._members is None:
            turn, place = divmod(position, self._count)
            return permuted(place, self._count, seeding.derive(self.key, "order", turn))
        turn, place = divmod(position, len(self._members))
        members = self._members[permuted(place, len(self._members), seeding.derive(self.key, "classes", turn))]
        turn, place = divmod(turn, len(members))
        # The first member stands for its class.
        return members[permuted(place, len(members), seeding.derive(self.key, "class", members[0], turn))]


def _require_targets(target: Tensor, ids: Sequence[str]) -> None:
    if not ids:
        raise CohortError("There is nothing to train with.")
    known = ~target.isnan().any(dim=1) if target.is_floating_point() else target >= 0
    if not bool(known.all()):
        missing = ids[int((~known).nonzero()[0])]
        what = "number to predict" if target.is_floating_point() else "label"
        raise CohortError(f"'{missing}' has no {what}, so it cannot be trained with.")


def _members(target: Tensor, classes: Sequence[str]) -> list[list[int]]:
    """Return the cases of each class."""
    if target.is_floating_point():
        raise ConfigError("Cases can be balanced by class only, and a regression has no classes.")
    members: list[list[int]] = [[] for _ in range(max(len(classes), int(target.max()) + 1))]
    for index, label in enumerate(target.tolist()):
        members[label].append(index)
    for label, found in enumerate(members):
        if not found:
            name = classes[label] if label < len(classes) else str(label)
            raise CohortError(f"Class '{name}' has no cases to train with, so classes cannot come equally often.")
    return members
