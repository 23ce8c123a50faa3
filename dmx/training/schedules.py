"""How the learning rate goes on: a function of the epoch and the step, both counted from 0.

Only ``plateau`` has a state, which :meth:`Schedule.epoch_ended` moves on. With t the epochs done (a fraction within an
epoch), E all epochs, w ``wait_epochs``, x = t - w within [0, X] and X = E - w:

- polynomial: ``lr · (1 - x/X) ** power``
- exponential: ``lr · (final/lr) ** (x/X)``
- cosine: ``final + (lr - final) · (1 + cos(π·x/X)) / 2`` (Loshchilov and Hutter 2017)
- steps: ``lr / divide_by ** n``, n the number of ``at_epochs`` with t at or beyond them
- plateau: divided by ``divide_by`` after ``patience`` epochs without improvement

A warm-up takes its epochs off the front: the curve begins behind it, in what remains of the epochs. With
``begin_epoch`` the epochs before it do not count, and with ``span_epochs`` E is that number instead of all epochs.

With ``compatibility: deepmedic`` the rate changes once per epoch, w is a third of the epochs unless given, ``steps``
counts epochs strictly beyond the named ones, and ``exponential`` adds 1e-8 to the final rate. Three defects of
DeepMedic are left out: its exponential default rises to 1/256 instead of falling and raises the momentum above 1, and
its automatic schedule ends with an error.
"""

import math
from collections.abc import Mapping
from typing import Any

from dmx.config.optimization import ScheduleSection
from dmx.training.settings import Compatibility


class Schedule:
    """The learning rate of each step.

    Args:
        section: Settings.
        lr: Learning rate of the optimizer's section, where the curve starts.
        epochs: Epochs of the training.
        steps_per_epoch: Steps of each.
        compatibility: Whose formulas hold.

    Attributes:
        divisions: ``plateau``: how often the rate was divided.
        best: ``plateau``: best value so far, larger is better.
        best_epoch: ``plateau``: epochs done when it was measured.
        lowered_epoch: ``plateau``: epochs done when the rate was last divided.
    """

    def __init__(
        self,
        section: ScheduleSection,
        *,
        lr: float,
        epochs: int,
        steps_per_epoch: int,
        compatibility: Compatibility = "none",
    ) -> None:
        self.section = section
        self.base = lr
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.compatible = compatibility == "deepmedic"
        self.divisions = 0
        self.best: float | None = None
        self.best_epoch = 0
        self.lowered_epoch = 0

    def lr(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step; `epoch` and `step` within it count from 0."""
        warmup = self.section.warmup or 0.0
        epoch = max(0, epoch - self.section.begin_epoch)
        exact = epoch + step / self.steps_per_epoch
        if exact < warmup:
            return self.base * (exact + 1.0 / self.steps_per_epoch) / (warmup + 1.0 / self.steps_per_epoch)
        time = float(epoch) if self.compatible else exact
        if self.section.name == "constant":
            return self.base
        if self.section.name == "plateau":
            return self.base / self.section.divide_by**self.divisions
        if self.section.name == "steps":
            passed = (time > mark if self.compatible else time >= mark for mark in self.section.at_epochs)
            return self.base / self.section.divide_by ** sum(passed)
        epochs = self.section.span_epochs or self.epochs - self.section.begin_epoch
        return self._curve(self._progress(max(0.0, time - warmup), epochs - warmup))

    def _progress(self, time: float, epochs: float) -> float:
        """Return how far the curve is, from 0 to 1."""
        wait = self.section.wait_epochs
        if wait is None:
            wait = epochs / 3.0 if self.compatible else 0.0
        if self.section.name == "cosine":
            wait = 0.0
        if epochs <= wait:
            return 0.0
        return min(max(time - wait, 0.0), epochs - wait) / (epochs - wait)

    def _curve(self, progress: float) -> float:
        final = self.section.final_lr
        if self.section.name == "polynomial":
            return self.base * float((1.0 - progress) ** self.section.power)
        if self.section.name == "cosine":
            low = final or 0.0
            return low + (self.base - low) * (1.0 + math.cos(math.pi * progress)) / 2.0
        low = self.base / 100.0 if final is None else final
        if self.compatible:
            low += 1e-8
        return self.base * float((low / self.base) ** progress)

    def epoch_ended(self, epoch: int, value: float | None) -> bool:
        """Let ``plateau`` look at a value that was measured after `epoch` epochs; larger is better.

        Args:
            epoch: Epochs done.
            value: The value; None when it was not measured, which changes nothing.

        Returns:
            Whether the rate was divided.
        """
        if self.section.name != "plateau" or value is None:
            return False
        if self.best is None or value > self.best + self.section.min_increase:
            self.best, self.best_epoch = value, epoch
        if epoch - max(self.best_epoch, self.lowered_epoch) < self.section.patience:
            return False
        self.divisions += 1
        self.lowered_epoch = epoch
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what ``plateau`` remembers."""
        return {
            "divisions": self.divisions,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "lowered_epoch": self.lowered_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``plateau`` remembers."""
        self.divisions = state["divisions"]
        self.best = state["best"]
        self.best_epoch = state["best_epoch"]
        self.lowered_epoch = state["lowered_epoch"]


def preview(
    section: ScheduleSection,
    *,
    lr: float,
    epochs: int,
    steps_per_epoch: int,
    compatibility: Compatibility = "none",
) -> list[float]:
    """Return the learning rate of every step of a training, for a figure; ``plateau`` as if it were never lowered."""
    schedule = Schedule(section, lr=lr, epochs=epochs, steps_per_epoch=steps_per_epoch, compatibility=compatibility)
    return [schedule.lr(epoch, step) for epoch in range(epochs) for step in range(steps_per_epoch)]
