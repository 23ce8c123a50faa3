"""The course of a classification or regression: three figures, as in DNNBrain's document on transfer learning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from dmx.evaluation.figures import new_figure, over_epochs, quiet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = {"train": "#0072B2", "validation": "#D55E00"}
_FEW = 15


@dataclass(frozen=True, kw_only=True)
class History:
    """What a training measured, under the names of the document.

    Attributes:
        epoch_loss: Mean loss of each epoch.
        step_loss: Loss of every step, one list per epoch.
        score_train: Score over the training data at the end of each epoch; empty where it was not asked for.
        score_validation: The same over the validation data. None where an epoch has no score.
    """

    epoch_loss: Sequence[float]
    step_loss: Sequence[Sequence[float]]
    score_train: Sequence[float | None] = ()
    score_validation: Sequence[float | None] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the four lists by name."""
        return {
            "epoch_loss": list(self.epoch_loss),
            "step_loss": [list(steps) for steps in self.step_loss],
            "score_train": list(self.score_train),
            "score_validation": list(self.score_validation),
        }


def course_figures(history: History, *, label: str) -> "dict[str, Figure]":
    """Return all three by name; that of the scores only where something was scored.

    Args:
        history: Course of the training.
        label: What the score is.
    """
    figures = {"epoch_loss": epoch_loss_figure(history), "step_loss": step_loss_figure(history)}
    if any(value is not None for value in (*history.score_train, *history.score_validation)):
        figures["scores"] = scores_figure(history, label=label)
    return figures


def epoch_loss_figure(history: History) -> "Figure":
    """Show the mean loss of each epoch; epochs count from 0."""
    return _figure({"": history.epoch_loss}, label="loss")


def step_loss_figure(history: History) -> "Figure":
    """Show the loss of every step, unthinned; dotted lines separate the epochs where these are few."""
    figure = new_figure((5.6, 3.6))
    panel = figure.subplots()
    losses = list(chain.from_iterable(history.step_loss))
    panel.plot(range(1, len(losses) + 1), losses, color=_COLORS["train"], linewidth=0.9)
    if len(history.step_loss) <= _FEW:
        done = 0
        for steps in history.step_loss[:-1]:
            done += len(steps)
            panel.axvline(done + 0.5, color="#bbbbbb", linewidth=0.7, linestyle=":")
    panel.set_xlabel("step")
    panel.set_ylabel("loss")
    quiet(panel)
    return figure


def scores_figure(history: History, *, label: str = "accuracy") -> "Figure":
    """Show the scores over the training and the validation data at the end of each epoch.

    Args:
        history: Course of the training.
        label: What the score is.
    """
    lines = {"train": history.score_train, "validation": history.score_validation}
    return _figure({name: values for name, values in lines.items() if len(values)}, label=label)


def _figure(lines: Mapping[str, Sequence[float | None]], *, label: str) -> "Figure":
    """Return a figure of values over epochs."""
    figure = new_figure((5.6, 3.6))
    panel = figure.subplots()
    for name, values in lines.items():
        points = [(epoch, value) for epoch, value in enumerate(values) if value is not None]
        # A line of one point would be invisible.
        marker = "o" if len(points) < _FEW else ""
        panel.plot(
            [epoch for epoch, _ in points],
            [value for _, value in points],
            color=_COLORS.get(name, _COLORS["train"]),
            linewidth=1.6,
            marker=marker,
            markersize=3.5,
            label=name,
        )
    if any(lines):
        panel.legend(frameon=False, fontsize=8)
    over_epochs(panel)
    panel.set_ylabel(label)
    return figure
