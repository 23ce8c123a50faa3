"""Whether the checkpoints of a training will fit on the disk, known before the first step."""

import shutil
from pathlib import Path

from torch import nn

from dmx.errors import TrainingError
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState
from dmx.transfer.freeze import NEVER

_GB = 1e9
# Logs, figures and the store take as much: a disk without this room is full already.
_SMALL = 100_000_000


def require_space(folder: Path, state: TrainState, settings: FitSettings) -> None:
    """Require that a disk has room for all checkpoints that a training keeps at a time.

    A new training keeps ``initial``, ``best``, the last ones and the listed epochs, and writes the next one before the
    oldest goes; one that goes on has most of them already. Small ones are not worth a refusal.

    Args:
        folder: Where the run's files are written.
        state: The training at its beginning.
        settings: Settings.

    Raises:
        TrainingError: There is too little room.
    """
    keep = settings.checkpoints
    count = 2 if state.position.global_step else 3 + keep.keep_last + len(keep.keep_epochs)
    each = checkpoint_bytes(state, settings)
    if count * each < _SMALL:
        return
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        # A file system that does not tell is no reason not to train.
        return
    # What never trains is on the disk once.
    if free < count * each - (count - 1) * frozen_bytes(state, settings):
        raise TrainingError(
            f"Up to {count} checkpoints of {each / _GB:.2g} GB are on the disk at a time, and '{folder}' has "
            f"{free / _GB:.2g} GB left. Free some space, or keep fewer (checkpoints.keep_last: {keep.keep_last}"
            + (f", keep_epochs: {len(keep.keep_epochs)} of them" if keep.keep_epochs else "")
            + ")."
        )


def frozen_bytes(state: TrainState, settings: FitSettings) -> int:
    """Return what the weights take that never train, which all checkpoints of a run share."""
    model: nn.Module = state.model
    freeze = settings.freeze
    until = {**freeze.parameters, **freeze.buffers}
    return sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in model.state_dict().items()
        if until.get(name, 0) == NEVER
    )


def checkpoint_bytes(state: TrainState, settings: FitSettings) -> int:
    """Return about what a checkpoint takes: weights, their moving average, and what the optimizer keeps of each."""
    model: nn.Module = state.model
    weights: int = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    held = settings.freeze.parameters
    trained: int = sum(
        parameter.numel() * parameter.element_size()
        for name, parameter in model.named_parameters()
        if held.get(name, 0) < NEVER
    )
    # Adam keeps two moments, RMSProp a mean square and a velocity, SGD a velocity.
    slots = 1 if settings.optimizer.name == "sgd" else 2
    return weights * (2 if state.average is not None else 1) + slots * trained
