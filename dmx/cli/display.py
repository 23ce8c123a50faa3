"""What a person sees of a training: one live display in a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from dmx.cli.console import out
from dmx.training.events import EpochEnded, EpochStarted, Event, Notice, StepEnded, TrainingEnded, TrainingStarted

_SECONDS_BETWEEN_LINES = 30.0
_ROWS_SHOWN = 12
_RECENT_STEPS = 50
_SMALL = 0.01
_COLUMNS = {
    "train/mean_loss": "train loss",
    "val/loss": "val loss",
    "val/dice": "val Dice",
    "val_volume/dice": "volume Dice",
    "score_train/accuracy": "train accuracy",
    "val/accuracy": "val accuracy",
    "val/balanced_accuracy": "val balanced",
    "val/auc": "val AUC",
    "score_train/r2": "train R²",
    "val/r2": "val R²",
}
# Of whole images and volumes: what is told of an epoch in one line, and what follows as far as the line has room.
_PAIRS = {
    "loss": ("train/mean_loss", "val/loss"),
    "accuracy": ("score_train/accuracy", "val/accuracy"),
    "R²": ("score_train/r2", "val/r2"),
}
_MORE = {"balanced": "val/balanced_accuracy", "AUC": "val/auc"}


def duration(seconds: float) -> str:
    """Return minutes and seconds, or hours, as a person reads them.

    >>> duration(75), duration(7500)
    ('1:15', '2:05 h')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _columns(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return what is shown of metrics; the accuracy of voxels says little, so it is left out."""
    voxels = "val/accuracy" in metrics and "val/balanced_accuracy" not in metrics
    return {key: title for key, title in _COLUMNS.items() if key in metrics and not (voxels and key == "val/accuracy")}


def epoch_line(epoch: int, metrics: Mapping[str, float], seconds: float, *, unit: str, width: int) -> str:
    """Return what came out of an epoch as a sentence; that of images or volumes is kept within a width.

    >>> metrics = {"train/mean_loss": 0.6371, "val/loss": 0.7, "val/accuracy": 0.5, "val/auc": 0.61234}
    >>> epoch_line(3, metrics, 75, unit="images", width=80)
    'Epoch 3: loss 0.637, val 0.700; val accuracy 0.500; AUC 0.612 (1:15).'
    >>> epoch_line(3, metrics, 75, unit="images", width=60)
    'Epoch 3: loss 0.637, val 0.700; val accuracy 0.500 (1:15).'
    """
    if unit == "segments":
        values = [f"{title} {metrics[key]:.4f}" for key, title in _columns(metrics).items()]
        return f"Epoch {epoch} ended: {', '.join(values)} ({duration(seconds)})."
    groups = [text for name, pair in _PAIRS.items() if (text := _pair(name, pair, metrics))]
    for name, key in _MORE.items():
        longer = [*groups, f"{name} {_short(metrics[key])}"] if key in metrics else groups
        if len(_line(epoch, longer, seconds)) <= width:
            groups = longer
    return _line(epoch, groups, seconds)


def _pair(name: str, keys: tuple[str, str], metrics: Mapping[str, float]) -> str:
    """Return the value of the training with that of the validation behind it."""
    train, val = (_short(metrics[key]) if key in metrics else "" for key in keys)
    if not (train and val):
        return f"{name} {train}" if train else f"val {name} {val}" if val else ""
    return f"{name} {train}, val {val}"


def _short(value: float) -> str:
    """Return a loss or a score with three digits.

    >>> _short(0.98765), _short(0.000412)
    ('0.988', '4.1e-04')
    """
    return f"{value:.3f}" if value == 0 or abs(value) >= _SMALL else f"{value:.1e}"


def _line(epoch: int, groups: Sequence[str], seconds: float) -> str:
    return f"Epoch {epoch}: {'; '.join(groups)} ({duration(seconds)})."


class TrainingDisplay:
    """A listener of training events that shows them.

    The live part begins with the training, so that what is shown before it is not disturbed.

    Args:
        console: Where to show them.
        before: Called when the training begins, to remove other bars.
    """

    def __init__(self, console: Console = out, *, before: Callable[[], None] = lambda: None) -> None:
        self.console = console
        self._before = before
        self._recent: deque[StepEnded] = deque(maxlen=_RECENT_STEPS)
        self._rows: list[tuple[str, Mapping[str, float], float]] = []
        self._started: TrainingStarted | None = None
        self._epoch_seconds: deque[float] = deque(maxlen=5)
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[words]}")
        )
        self._task = self._bar.add_task("", total=1, words="")
        self._live: Live | None = None
        self._noticed: set[str] = set()

    def __enter__(self) -> Self:
        """Be ready; the live display begins with the training."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live display and leave the table of epochs."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            if self._rows:
                self.console.print(self._table(len(self._rows)))

    def __rich__(self) -> RenderableType:
        """Draw the table of the last epochs above the bar."""
        return Group(self._table(_ROWS_SHOWN), self._bar) if self._rows else self._bar

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case TrainingStarted():
                self._start(event)
            case EpochStarted():
                self._recent.clear()
                self._bar.update(self._task, completed=event.step)
            case StepEnded():
                self._step(event)
            case EpochEnded():
                self._epoch(event)
            case Notice():
                self._notice(event)
            case TrainingEnded():
                self._say(f"Training {_REASONS[event.reason]} after {event.position.global_step:,} steps.")

    def _notice(self, event: Notice) -> None:
        line = f"{'Warning' if event.warning else 'Note'}: {event.message}"
        # A warning of each epoch is shown once.
        if line not in self._noticed or not event.warning:
            self._noticed.add(line)
            self._say(line)

    def _start(self, event: TrainingStarted) -> None:
        self._started = event
        self._before()
        go_on = f", going on after step {event.position.global_step:,}" if event.resumed else ""
        self._say(f"Training on {event.device}: {event.num_parameters:,} parameters{go_on}.")
        if self.console.is_terminal:
            self._live = Live(self, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def _step(self, event: StepEnded) -> None:
        self._recent.append(event)
        if self._started is None:
            return
        words = self._words(event)
        name = f"Epoch {event.epoch}/{self._started.epochs - 1}"
        self._bar.update(
            self._task, description=name, total=self._started.steps_per_epoch, completed=event.step, words=words
        )
        if self._live is None and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._say(f"{name} step {event.step}/{self._started.steps_per_epoch}: {words}")

    def _words(self, event: StepEnded) -> str:
        seconds = sum(step.seconds for step in self._recent)
        rate = sum(step.num_segments for step in self._recent) / max(seconds, 1e-9)
        loss = sum(step.loss for step in self._recent) / len(self._recent)
        return (
            f"{event.step}/{self._steps} · loss {loss:.4f} · lr {event.lr:.2g} · {rate:.1f} {self._unit}/s · "
            f"{duration(self._seconds_left(event, seconds / len(self._recent)))} left"
        )

    @property
    def _unit(self) -> str:
        return self._started.unit if self._started else "segments"

    @property
    def _steps(self) -> int:
        return self._started.steps_per_epoch if self._started else 0

    def _seconds_left(self, event: StepEnded, per_step: float) -> float:
        """Count steps at the recent speed; once an epoch is complete its duration, validation included, counts."""
        epochs = self._started.epochs - event.epoch - 1 if self._started else 0
        per_epoch = (
            sum(self._epoch_seconds) / len(self._epoch_seconds) if self._epoch_seconds else per_step * self._steps
        )
        return (self._steps - event.step) * per_step + epochs * per_epoch

    def _epoch(self, event: EpochEnded) -> None:
        self._epoch_seconds.append(event.seconds)
        self._rows.append((str(event.epoch), event.metrics, event.seconds))
        if self._live is None:
            unit, width = self._unit, self.console.width
            self._say(epoch_line(event.epoch, event.metrics, event.seconds, unit=unit, width=width))
            self._last_line = time.monotonic()

    def _table(self, count: int) -> Table:
        rows = self._rows[-count:]
        shown = {key: title for _, metrics, _ in rows for key, title in _columns(metrics).items()}
        shown = {key: title for key, title in _COLUMNS.items() if key in shown}
        classes = {
            key: key.rsplit("/", 1)[-1]
            for _, metrics, _ in rows
            for key in metrics
            if key.startswith("val/dice/") and self.console.width >= 100
        }
        table = Table(box=None, pad_edge=False)
        for title in ("epoch", *shown.values(), *classes.values(), "time"):
            table.add_column(title, justify="right")
        for name, metrics, seconds in rows:
            cells = [f"{metrics[key]:.4f}" if key in metrics else "" for key in (*shown, *classes)]
            table.add_row(name, *cells, duration(seconds))
        return table

    def _say(self, words: str) -> None:
        self.console.print(Text(words))


_REASONS = {
    "finished": "finished",
    "stopped": "stopped on request",
    "early_stopping": "ended early (no improvement)",
}
