"""What a training gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from dmx.evaluation.history import History
from dmx.tracking.course import course
from dmx.tracking.store import RunInfo
from dmx.training.events import EpochEnded, Event, StepEnded

__all__ = ["History", "Keeper", "Training"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """What a training has come to. Print it for a table of its epochs.

    Attributes:
        model: The network in inference mode: the one that was given, with its last weights; of ``finetune`` and
            ``resume`` that of the run, with the weights that predict best.
        history: ``epoch_loss``, ``step_loss`` (a list per epoch), ``score_train`` and ``score_validation``.
        run: The run; ``None`` without a store.
        reason: ``finished``, ``stopped`` or ``early_stopping``.
    """

    model: nn.Module = field(repr=False)
    history: History = field(repr=False)
    run: RunInfo | None
    reason: str

    def __str__(self) -> str:
        """Return a line per epoch."""
        history = self.history
        where = "no run" if self.run is None else f"run {self.run.experiment}/{self.run.name} ({self.run.id[:8]})"
        lines = [f"Training {self.reason.replace('_', ' ')}, {where}.", "epoch      loss     train  validation"]
        for epoch, loss in enumerate(history.epoch_loss):
            train, validation = _at(history.score_train, epoch), _at(history.score_validation, epoch)
            lines.append(f"{epoch:>5}  {loss:>8.4f}  {train:>8}  {validation:>10}")
        return "\n".join(lines)


def _at(scores: Sequence[float | None], epoch: int) -> str:
    value = scores[epoch] if epoch < len(scores) else None
    return "-" if value is None else f"{value:.4f}"


class Keeper:
    """A listener that keeps what a history is made of."""

    def __init__(self) -> None:
        self._steps: list[dict[str, float | None]] = []
        self._epochs: list[dict[str, float | None]] = []

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, StepEnded):
            self._steps.append({"epoch": float(event.epoch), "loss": event.loss})
        elif isinstance(event, EpochEnded):
            self._epochs.append({"epoch": float(event.epoch), **event.metrics})

    def history(self, task: str) -> History:
        """Return the history so far."""
        return History(**course(self._epochs, self._steps, task=task))
