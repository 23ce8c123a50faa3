"""The training: epochs of steps, validations and checkpoints. It tells its listeners, and knows nobody else."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dmx.sampling.batch import Batch
from dmx.training.device import memory_metrics, prepared
from dmx.training.events import (
    CheckpointDue,
    EpochEnded,
    EpochStarted,
    Event,
    Listener,
    Reason,
    StepEnded,
    TrainingEnded,
    TrainingStarted,
    ValidationEnded,
)
from dmx.training.freezing import begin, end, enter_epoch
from dmx.training.losses import Loss
from dmx.training.position import Position
from dmx.training.progress import ended_early, judge, out_of_patience, require_metric
from dmx.training.samples import ValidationResult
from dmx.training.settings import FitSettings
from dmx.training.state import Best, TrainState
from dmx.training.step import Helpers, own_parts, train_step

Batches = Callable[[int, int, int], Batch]
Validate = Callable[[TrainState, int], ValidationResult]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a training ended.

    Attributes:
        reason: ``finished``, ``stopped`` or ``early_stopping``.
        position: How far it came.
        best: Best value of the metric that names the best checkpoint.
    """

    reason: Reason
    position: Position
    best: Best


def fit(  # noqa: PLR0913  # a training is made of these
    state: TrainState,
    batches: Batches,
    settings: FitSettings,
    *,
    validate: Validate | None = None,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] = lambda: False,
    helpers: Helpers | None = None,
) -> FitResult:
    """Train from where the state is to the last epoch.

    Args:
        state: The training, fresh or loaded; it moves on in place.
        batches: Gives the segments of (epoch, step within it, part of the step), all counted from 0.
        settings: Settings.
        validate: Scores the network after an epoch, given the state and the number of epochs done. The network is in
            inference mode then and has the averaged weights, if there are any. It may return no metrics.
        listeners: Called with each event, in this order.
        stop: Asked after each step; True saves and ends the training.
        helpers: Processes that do their share of the passes of each step; ``None``: this one does all.

    Raises:
        ConfigError: The metric that names the best checkpoint cannot exist.
        TrainingError: The training cannot go on: loss or gradient not finite, memory too small; or a frozen tensor was
            changed.
    """
    require_metric(settings.checkpoints, validated=validate is not None)

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    loss = Loss.of(settings)
    reason: Reason = "early_stopping" if ended_early(state, epochs=settings.training.epochs) else "finished"
    with prepared(settings.training, state.device):
        begin(state, settings, emit)
        emit(_started(state, settings))
        if state.position == Position():
            emit(CheckpointDue(state=state, position=state.position, names=("initial",)))
        while state.position.epoch < settings.training.epochs and reason == "finished":
            enter_epoch(state, settings, emit)
            emit(_epoch_started(state))
            for event in _steps(state, batches, settings, loss=loss, helpers=helpers):
                emit(event)
                if stop():
                    reason = "stopped"
                    break
                if _save_within_epoch(state.position, settings):
                    emit(CheckpointDue(state=state, position=state.position, names=("last",)))
            if reason == "stopped":
                emit(CheckpointDue(state=state, position=state.position, names=("last",)))
            else:
                reason = _end_epoch(state, settings, validate=validate, emit=emit)
        end(state, settings, emit)
        emit(TrainingEnded(reason=reason, position=state.position))
    return FitResult(reason=reason, position=state.position, best=state.best)


def _started(state: TrainState, settings: FitSettings) -> TrainingStarted:
    return TrainingStarted(
        position=state.position,
        epochs=settings.training.epochs,
        steps_per_epoch=settings.training.steps_per_epoch,
        num_parameters=sum(parameter.numel() for parameter in state.model.parameters() if parameter.requires_grad),
        device=str(state.device),
        resumed=state.position != Position(),
        unit=settings.unit,
    )


def _epoch_started(state: TrainState) -> EpochStarted:
    position = state.position
    lr = state.schedule.lr(position.epoch, position.step)
    return EpochStarted(epoch=position.epoch, step=position.step, global_step=position.global_step, lr=lr)


def _steps(
    state: TrainState, batches: Batches, settings: FitSettings, *, loss: Loss, helpers: Helpers | None
) -> Iterator[StepEnded]:
    """Do the remaining steps of the epoch."""
    state.model.train()
    parts = range(settings.training.accumulate) if helpers is None else own_parts(settings.training, 0)
    while state.position.step < settings.training.steps_per_epoch:
        epoch, step = state.position.epoch, state.position.step
        start = time.perf_counter()
        timed = _TimedParts(batches, epoch, step, parts)
        lr = state.schedule.lr(epoch, step)
        result = train_step(state, timed, settings, loss=loss, lr=lr, helpers=helpers)
        state.position = state.position.after_step()
        event = StepEnded(
            epoch=epoch,
            step=step + 1,
            global_step=state.position.global_step,
            loss=result.loss,
            terms=result.terms,
            lr=lr,
            gradient_norm=result.gradient_norm,
            num_segments=result.num_segments,
            seconds=time.perf_counter() - start,
            sampling_seconds=timed.seconds,
            skipped=result.skipped,
        )
        state.record.add_step(
            event.loss,
            event.terms,
            segments=event.num_segments,
            seconds=event.seconds,
            sampling_seconds=event.sampling_seconds,
        )
        yield event


class _TimedParts:
    """The batches of one step, fetched when they are asked for; measures the time that this takes."""

    def __init__(self, batches: Batches, epoch: int, step: int, parts: range) -> None:
        self.seconds = 0.0
        self._batches = batches
        self._keys = [(epoch, step, part) for part in parts]

    def __iter__(self) -> Iterator[Batch]:
        for key in self._keys:
            start = time.perf_counter()
            batch = self._batches(*key)
            self.seconds += time.perf_counter() - start
            yield batch


def _save_within_epoch(position: Position, settings: FitSettings) -> bool:
    every = settings.checkpoints.every_steps
    return every is not None and position.step % every == 0 and position.step < settings.training.steps_per_epoch


def _end_epoch(
    state: TrainState, settings: FitSettings, *, validate: Validate | None, emit: Callable[[Event], None]
) -> Reason:
    """Validate, measure, save; return ``finished`` when the training may go on."""
    start = time.perf_counter()
    epoch = state.position.epoch
    metrics = state.record.metrics()
    metrics["lr"] = state.schedule.lr(state.position.epoch, settings.training.steps_per_epoch - 1)
    if validate is not None:
        with state.evaluation_weights():
            result = validate(state, epoch + 1)
        seconds = time.perf_counter() - start
        metrics.update(result.metrics)
        metrics["time/validation"] = seconds
        emit(
            ValidationEnded(
                epoch=epoch,
                global_step=state.position.global_step,
                metrics=result.metrics,
                rows=result.rows,
                figures=result.figures,
                seconds=seconds,
            )
        )
    metrics.update(memory_metrics(state.device))
    metrics["time/epoch"] = metrics["time/training"] + time.perf_counter() - start
    state.position = state.position.after_epoch()
    state.record.clear()
    verdict = judge(state, settings.checkpoints, metrics)
    for notice in verdict.notices:
        emit(notice)
    emit(
        EpochEnded(epoch=epoch, global_step=state.position.global_step, metrics=metrics, seconds=metrics["time/epoch"])
    )
    over = out_of_patience(state, settings.checkpoints, epochs=settings.training.epochs, measured=verdict.measured)
    names = _names(epoch, settings, best=verdict.improved, over=over)
    if names:
        emit(CheckpointDue(state=state, position=state.position, names=names, metrics=metrics))
    return "early_stopping" if over else "finished"


def _names(epoch: int, settings: FitSettings, *, best: bool, over: bool) -> tuple[str, ...]:
    """Return what points to the checkpoint after an epoch; nothing when none is due."""
    section = settings.checkpoints
    wanted = epoch in section.keep_epochs
    done = epoch + 1
    if not (best or over or wanted or done % section.every_epochs == 0 or done == settings.training.epochs):
        return ()
    return ("last", "best", f"epoch={epoch}") if best else ("last", f"epoch={epoch}")
