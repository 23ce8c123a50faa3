"""Judge an epoch: is it the best so far, should the rate fall, has it been too long without improvement?"""

from collections.abc import Mapping
from dataclasses import dataclass

from dmx.config.sections import CheckpointSection
from dmx.errors import ConfigError
from dmx.training.events import Notice
from dmx.training.state import Best, Patience, TrainState

AUTOMATIC = ("val_volume/dice", "val/dice", "train/mean_loss")
"""What names the best checkpoint with ``best_metric: auto``: the first of these that has been measured."""

_ALIASES = {"train/loss": "train/mean_loss"}


@dataclass(frozen=True)
class Verdict:
    """What an epoch's metrics mean.

    Attributes:
        measured: Whether the metric that names the best checkpoint was measured.
        improved: Whether it is the best value so far.
        notices: What the user should know.
    """

    measured: bool
    improved: bool
    notices: tuple[Notice, ...] = ()


def require_metric(section: CheckpointSection, *, validated: bool) -> None:
    """Check what can be known about the metric that names the best checkpoint.

    Raises:
        ConfigError: Nothing measures such a metric.
    """
    family = section.best_metric.partition("/")[0]
    allowed = ("train", "val", "val_volume") if validated else ("train",)
    if section.best_metric != "auto" and family not in allowed:
        reason = "" if validated else " in a training without validation"
        raise ConfigError(
            f"checkpoints.best_metric must be 'auto' or begin with {' or '.join(name + '/' for name in allowed)}"
            f"{reason}, got '{section.best_metric}'."
        )


def judge(state: TrainState, section: CheckpointSection, metrics: Mapping[str, float]) -> Verdict:
    """Compare the epoch that has just ended with the best one, and let the schedule look at it.

    With ``auto`` the metric changes to a better one once that is measured for the first time; the old best is
    forgotten then. An epoch in which the metric is not measured changes nothing.
    """
    metric = _metric(state.best, section, metrics)
    if metric not in metrics:
        state.schedule.epoch_ended(state.position.epoch, None)
        return Verdict(measured=False, improved=False, notices=_missing(metric, section, metrics))
    value = metrics[metric]
    if state.best.metric not in ("", metric):
        # Values of different metrics cannot be compared.
        state.schedule.best = None
    sign = 1.0 if larger_is_better(metric, section) else -1.0
    state.schedule.epoch_ended(state.position.epoch, sign * value)
    best = state.best
    improved = best.metric != metric or best.value is None or sign * value > sign * best.value
    if improved:
        state.best = Best(metric, value, state.position.epoch)
    return Verdict(measured=True, improved=improved)


def _metric(best: Best, section: CheckpointSection, metrics: Mapping[str, float]) -> str:
    if section.best_metric != "auto":
        return _ALIASES.get(section.best_metric, section.best_metric)
    known = [name for name in AUTOMATIC if name in metrics or name == best.metric]
    return known[0]


def larger_is_better(metric: str, section: CheckpointSection) -> bool:
    """Return the direction of the metric; ``auto`` takes everything for better when larger but losses and distances."""
    if section.best_mode != "auto":
        return section.best_mode == "max"
    measure = metric.split("/")[1] if "/" in metric else metric
    return not ("loss" in measure or measure.startswith(("hd", "volume_error")))


def _missing(metric: str, section: CheckpointSection, metrics: Mapping[str, float]) -> tuple[Notice, ...]:
    """Tell the user about a named metric that was not among those of its family."""
    family = metric.partition("/")[0] + "/"
    measured = sorted(name for name in metrics if name.startswith(family))
    if section.best_metric == "auto" or not measured:
        return ()
    return (
        Notice(
            message=f"checkpoints.best_metric '{metric}' was not measured in this epoch, so it cannot be the best one. "
            f"Measured: {', '.join(measured)}.",
            warning=True,
        ),
    )


def out_of_patience(state: TrainState, section: CheckpointSection, *, epochs: int, measured: bool) -> bool:
    """Return, and keep in the state, whether too many epochs have passed without a better value.

    Args:
        state: The training after an epoch.
        section: Settings.
        epochs: Epochs that it is to have.
        measured: Whether this epoch has a value; only a new one can tell.
    """
    patience, waiting = section.early_stopping, state.patience
    waited = state.position.epoch - max(state.best.epoch, waiting.since)
    if measured and patience is not None and waited >= patience:
        waiting.over = epochs
    return waiting.over > 0


def ended_early(state: TrainState, *, epochs: int) -> bool:
    """Return whether a training that goes on was ended early before; with more epochs it waits anew instead."""
    waiting = state.patience
    if 0 < waiting.over < epochs:
        state.patience = Patience(since=state.position.epoch)
    return state.patience.over > 0
