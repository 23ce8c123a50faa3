"""What a training tells whoever listens. Epochs count from 0; steps from 1: they are the ones that have been done.

A listener is any callable of one event. It runs within the training, between two steps, and an exception that it raises
ends the training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dmx.training.position import Position

if TYPE_CHECKING:
    from dmx.training.state import TrainState

Reason = Literal["finished", "stopped", "early_stopping"]


@dataclass(frozen=True, kw_only=True)
class TrainingStarted:
    """The training begins or goes on.

    Attributes:
        position: How far it was; all zero unless it is resumed.
        epochs: Epochs in all.
        steps_per_epoch: Steps of each.
        num_parameters: Numbers of the network that are learned.
        device: Where it trains, e.g. ``cuda:0``.
        resumed: Whether steps have been done before.
        unit: What its batches hold: ``segments``, ``images`` or ``volumes``.
    """

    position: Position
    epochs: int
    steps_per_epoch: int
    num_parameters: int
    device: str
    resumed: bool
    unit: str = "segments"


@dataclass(frozen=True, kw_only=True)
class EpochStarted:
    """An epoch begins, or goes on after a resume.

    Attributes:
        epoch: Its number, from 0.
        step: Steps of it that have been done.
        global_step: Steps that have been done in all.
        lr: Learning rate of its next step.
    """

    epoch: int
    step: int
    global_step: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class StepEnded:
    """The network was updated once.

    Attributes:
        epoch: Number of the epoch, from 0.
        step: Number of the step within the epoch, from 1.
        global_step: Number of the step since the beginning, from 1.
        loss: What was minimized: the weighted sum of the terms, penalties included.
        terms: Value of each term before its weight, e.g. ``cross_entropy``, ``soft_dice``, ``l1``, ``l2``.
        lr: Learning rate of the step.
        gradient_norm: Euclidean norm of the gradient, penalties included, before clipping.
        num_segments: Segments that the step has seen.
        seconds: Duration of the step, waiting for its segments included.
        sampling_seconds: Part of it that was waiting for segments.
        skipped: Whether the update was left out because the gradient exceeded the range of fp16; the loss scaler lowers
            its factor then.
    """

    epoch: int
    step: int
    global_step: int
    loss: float
    terms: Mapping[str, float]
    lr: float
    gradient_norm: float
    num_segments: int
    seconds: float
    sampling_seconds: float
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class ValidationEnded:
    """The network was validated.

    Attributes:
        epoch: Number of the epoch after which it was, from 0.
        global_step: Steps done.
        metrics: Measured values, e.g. ``val/dice``; a value that does not exist (N/A) is left out.
        rows: One mapping per case for a table, as the validation gave them.
        figures: Figures by name, as the validation gave them; the core does not look at them. What gives a figure when
            it is called is drawn at the end of the training, as the last validation left it.
        seconds: Duration.
    """

    epoch: int
    global_step: int
    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, object]] = ()
    figures: Mapping[str, object] = field(default_factory=dict)
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EpochEnded:
    """An epoch is complete, its validation included.

    Attributes:
        epoch: Its number, from 0.
        global_step: Steps done.
        metrics: Everything measured in the epoch, the values of the validation included: ``train/mean_loss``,
            ``train/dice/<class>``, ``val/dice``, ``lr``, ``system/segments_per_second``, ``time/epoch``, …
        seconds: Duration in seconds of training and validation, time before a resume included.
    """

    epoch: int
    global_step: int
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class CheckpointDue:
    """The state should be saved now; it changes as soon as the listener returns.

    Attributes:
        state: The state; a listener that has saved it sets ``state.last_checkpoint`` to what the user knows it by.
        position: How far the training is.
        names: What should point to the checkpoint: ``initial``, ``last``, ``best``, ``epoch=N``.
        metrics: Values of the epoch that has just ended; empty within an epoch.
    """

    state: "TrainState" = field(repr=False)
    position: Position
    names: tuple[str, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FrozenChecked:
    """Frozen tensors were hashed, and compared with what they were at the beginning.

    Attributes:
        occasion: ``start``: the hashes were taken; ``resume``; ``unfreeze``: some of them train from now on; ``end``.
        epoch: The epoch that is to begin, or the number of epochs done.
        digests: SHA-256 of each frozen tensor at the beginning.
        changed: Tensors that differ; the training ends with an error then.
        checks: All comparisons so far, this one included: occasion, epoch, global_step, tensors, changed.
    """

    occasion: Literal["start", "resume", "unfreeze", "end"]
    epoch: int
    digests: Mapping[str, str]
    changed: tuple[str, ...]
    checks: tuple[Mapping[str, object], ...]


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that the user should know and that does not stop the training.

    Attributes:
        message: One sentence.
        warning: Whether something is probably not as it was meant.
    """

    message: str
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingEnded:
    """The training is over. An error is raised instead.

    Attributes:
        reason: ``finished``; ``stopped`` on request; ``early_stopping``: no improvement for too long.
        position: How far it came.
    """

    reason: Reason
    position: Position


Event = (
    TrainingStarted
    | EpochStarted
    | StepEnded
    | ValidationEnded
    | EpochEnded
    | CheckpointDue
    | FrozenChecked
    | Notice
    | TrainingEnded
)
Listener = Callable[[Event], None]
