"""Freezing while a training runs: begun, undone by epochs, and proven by hashes of what was to stay as it is."""

from collections.abc import Callable
from typing import Literal

from dmx.errors import ConfigError, TrainingError
from dmx.training.events import Event, FrozenChecked, Notice
from dmx.training.scales import resolve_scales
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState
from dmx.transfer.freeze import owners
from dmx.transfer.freeze_apply import digests, hold
from dmx.transfer.freeze_parts import network_parts, outermost

_SHOWN = 6

Emit = Callable[[Event], None]


def begin(state: TrainState, settings: FitSettings, emit: Emit) -> None:
    """Get a training ready that is fresh or was loaded: freeze, hash, and give each parameter its learning rate.

    Raises:
        ConfigError: A setting needs a source and there is none, or names what the network lacks.
        TrainingError: A frozen tensor is not what it was at the beginning.
    """
    if settings.optimizer.lr_scale:
        parts = network_parts(state.model)
        state.optimizer.scales = resolve_scales(settings.optimizer.lr_scale, parts, state.origin.received)
    if settings.regularization.l2_to_source and not state.origin.sources:
        raise ConfigError(
            "regularization.l2_to_source needs weights to pull to, but no tensor came whole from a source. Leave it "
            "out, or start from another run."
        )
    plan, epoch = settings.freeze, state.position.epoch
    if not plan:
        return
    hold(state.model, plan, epoch)
    # Moments that were kept from a source would take memory for nothing.
    state.optimizer.forget(plan.frozen_parameters(epoch))
    if not state.origin.digests:
        names = plan.frozen_tensors(epoch)
        state.origin.digests = digests(state.model, names)
        emit(_record(state, "start", names, changed=()))
    else:
        _check(state, "resume", plan.frozen_tensors(epoch), emit=emit)


def enter_epoch(state: TrainState, settings: FitSettings, emit: Emit) -> None:
    """Check what is about to be unfrozen before the first step of the epoch, and tell what trains from now on.

    Raises:
        TrainingError: A tensor did not stay as it was while it was frozen.
    """
    epoch = state.position.epoch
    released = settings.freeze.released(epoch) if state.position.step == 0 else ()
    if not released:
        return
    _check(state, "unfreeze", released, emit=emit)
    hold(state.model, settings.freeze, epoch)
    learned = [name for name in released if name in settings.freeze.sizes]
    count = sum(settings.freeze.sizes[name] for name in learned)
    modules = [name for name, until in settings.freeze.modules.items() if until == epoch] or list(owners(learned))
    listed = _listed(outermost(modules))
    emit(Notice(message=f"From epoch {epoch} on {count:,} parameters more are trained: {listed}."))


def end(state: TrainState, settings: FitSettings, emit: Emit) -> None:
    """Check what is still frozen after the last step.

    Raises:
        TrainingError: A tensor did not stay as it was.
    """
    # The epoch that has just ended, not the one that would come next, in which more may be unfrozen.
    epoch = state.position.epoch - (1 if state.position.step == 0 and state.position.epoch > 0 else 0)
    names = settings.freeze.frozen_tensors(epoch)
    if names:
        _check(state, "end", names, emit=emit)


def _check(
    state: TrainState, occasion: Literal["resume", "unfreeze", "end"], names: tuple[str, ...], *, emit: Emit
) -> None:
    now = digests(state.model, names)
    changed = tuple(name for name in names if state.origin.digests.get(name, now[name]) != now[name])
    emit(_record(state, occasion, names, changed=changed))
    if changed:
        raise TrainingError(
            f"Frozen tensors were changed by something else than the training: {_listed(changed)}. Last checkpoint: "
            f"{state.last_checkpoint or 'none yet'}. Look for a layer that changes itself outside of training mode."
        )


def _record(
    state: TrainState,
    occasion: Literal["start", "resume", "unfreeze", "end"],
    names: tuple[str, ...],
    *,
    changed: tuple[str, ...],
) -> FrozenChecked:
    position = state.position
    state.origin.checks.append(
        {
            "occasion": occasion,
            "epoch": position.epoch,
            "global_step": position.global_step,
            "tensors": len(names),
            "changed": list(changed),
        }
    )
    return FrozenChecked(
        occasion=occasion,
        epoch=position.epoch,
        digests=dict(state.origin.digests),
        changed=changed,
        checks=tuple(state.origin.checks),
    )


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
