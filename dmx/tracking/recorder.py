"""Turn the events of a training into params, metrics, tables, pictures and checkpoints of its run."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dmx.config.sections import CheckpointSection
from dmx.tracking.history import History, write_table
from dmx.tracking.names import metric_key
from dmx.tracking.session import ActiveRun
from dmx.tracking.summary import training_note
from dmx.training.events import (
    CheckpointDue,
    EpochEnded,
    Event,
    Notice,
    StepEnded,
    TrainingEnded,
    TrainingStarted,
    ValidationEnded,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 10_000
_UPLOAD_SECONDS = 60.0
_IN_LOG = ("train/mean_loss", "val/loss", "val/dice", "val_volume/dice", "val/balanced_accuracy", "val/r2", "lr")

Save = Callable[[CheckpointDue, Path], object]


class Recorder:
    """A listener of a training's events that keeps them in its run.

    Steps that the run already has, because they were done before an interruption and are done again, are not logged
    a second time. Nothing that goes wrong in logging reaches the training; a checkpoint that cannot be written does.

    Args:
        run: Where everything goes.
        total_steps: Steps of the whole training; beyond 10,000 points the per-step loss is thinned in the store
            (``history/steps.csv`` has them all).
        save: Writes a checkpoint into the folder that it is given, complete or not at all.
        keep: Which checkpoints stay.
    """

    def __init__(self, run: ActiveRun, *, total_steps: int, save: Save, keep: CheckpointSection) -> None:
        self._run = run
        self._stride = max(1, math.ceil(total_steps / _MOST_POINTS))
        self._total_steps = total_steps
        self._save = save
        self._keep = keep
        self._steps = History(run.files / "history" / "steps.csv")
        self._epochs = History(run.files / "history" / "epochs.csv")
        self._seconds = sum(float(row.get("time/epoch") or 0.0) for row in self._epochs.rows())
        self._metrics = dict(run.info.metrics)
        self._uploaded = time.monotonic()
        self._at_end: dict[str, tuple[Callable[[], object], int]] = {}
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            TrainingStarted: self._started,
            StepEnded: self._step,
            ValidationEnded: self._validation,
            EpochEnded: self._epoch,
            Notice: self._notice,
            TrainingEnded: self._ended,
        }

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, CheckpointDue):
            self._checkpoint(event)
            return
        with self._run.guarded(type(event).__name__):
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)

    def _started(self, event: TrainingStarted) -> None:
        where = f"epoch {event.position.epoch}, step {event.position.step + 1}"
        verb = "goes on with" if event.resumed else "begins with"
        self._run.log_line(f"Training {verb} {where} of {event.epochs} epochs of {event.steps_per_epoch} steps.")
        self._run.log_line(f"{event.num_parameters} parameters are trained on {event.device}.")

    def _step(self, event: StepEnded) -> None:
        row = {
            "epoch": event.epoch,
            "loss": event.loss,
            **{f"loss/{name}": value for name, value in event.terms.items()},
            "lr": event.lr,
            "gradient_norm": event.gradient_norm,
            "segments": event.num_segments,
            "seconds": round(event.seconds, 6),
            "sampling_seconds": round(event.sampling_seconds, 6),
            "skipped": int(event.skipped),
        }
        self._steps.add(event.global_step, row)
        if event.global_step % self._stride == 0 or event.global_step in (1, self._total_steps):
            self._run.log_metrics({"train/loss": event.loss}, event.global_step)

    def _validation(self, event: ValidationEnded) -> None:
        self._run.log_metrics(event.metrics, event.global_step)
        if event.rows:
            path = f"validation/epoch_{event.epoch:04d}.csv"
            write_table(self._run.files / path, [self._hidden(row) for row in event.rows])
            self._run.log_file(path)
        last = event.global_step >= self._total_steps
        for name, figure in event.figures.items():
            # What is to be drawn only when the training ends comes as a function: before the last step nobody knows
            # when that is. After it a process that is killed would not draw it, and one that goes on has nothing to.
            if callable(figure) and not last:
                self._at_end[name] = (figure, event.global_step)
            else:
                self._at_end.pop(name, None)
                self._draw(name, figure() if callable(figure) else figure, event.global_step)

    def _draw(self, name: str, figure: object, step: int) -> None:
        self._run.log_image(metric_key(self._run.hide(name)), cast("Figure", figure), step)

    def _hidden(self, row: Mapping[str, object]) -> dict[str, object]:
        return {key: self._run.hide(value) if isinstance(value, str) else value for key, value in row.items()}

    def _epoch(self, event: EpochEnded) -> None:
        if self._epochs.add(event.global_step, {"epoch": event.epoch, **event.metrics}):
            self._seconds += event.seconds
        values = {**event.metrics, "epoch": float(event.epoch), "time/total": self._seconds}
        self._run.log_metrics(values, event.global_step)
        shown = [f"{key} {event.metrics[key]:.4f}" for key in _IN_LOG if key in event.metrics]
        self._run.log_line(f"Epoch {event.epoch}, step {event.global_step}: {', '.join(shown)}.")
        self._metrics.update(event.metrics)
        self._note(f"epoch {event.epoch}, step {event.global_step} of {self._total_steps}, {_span(self._seconds)}")
        if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self._upload()

    def _notice(self, event: Notice) -> None:
        if event.warning:
            self._run.summary.warn(event.message)
        else:
            self._run.log_line(event.message)

    def _ended(self, event: TrainingEnded) -> None:
        for name, (draw, step) in self._at_end.items():
            self._draw(name, draw(), step)
        how = event.reason.replace("_", " ")
        position = event.position
        self._run.log_line(f"Training {how}: {position.epoch} epochs, {position.global_step} steps.")
        self._note(f"{how} after {position.epoch} epochs, {position.global_step} steps, {_span(self._seconds)}")
        self._upload()

    def _checkpoint(self, event: CheckpointDue) -> None:
        checkpoints = self._run.checkpoints
        folder = checkpoints.folder(event.position.global_step, event.position.epoch)
        if not folder.exists():
            self._save(event, folder)
        event.state.last_checkpoint = f"{folder.name} of run {self._run.info.experiment}/{self._run.info.name}"
        with self._run.guarded("CheckpointDue"):
            self._upload()
            self._run.sync()
            checkpoints.publish(folder, event.names, keep_last=self._keep.keep_last, keep_epochs=self._keep.keep_epochs)
            self._run.log_line(f"Checkpoint {folder.name} is {', '.join(event.names)}.")

    def _upload(self) -> None:
        """Bring the tables and the log to the store, at least with every checkpoint that a resume may begin from."""
        self._uploaded = time.monotonic()
        for path in ("history", "log.txt"):
            if (self._run.files / path).exists():
                self._run.log_file(path)

    def _note(self, progress: str) -> None:
        text = training_note(self._run.info, progress, self._metrics, self._run.checkpoints.names)
        self._run.summary.set(text)


def _span(seconds: float) -> str:
    """Return a duration as a person reads it."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
