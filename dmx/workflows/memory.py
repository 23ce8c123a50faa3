"""What to train with when the memory of a device is too small for what the settings say."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dmx.errors import ModelError, TrainingError
from dmx.evaluation.memory import free_bytes
from dmx.geometry import Triple, triple
from dmx.model.memory import peak_bytes
from dmx.model.spec import size_text
from dmx.training.step import MemoryTooSmallError
from dmx.workflows.assemble import CheckedSegments
from dmx.workflows.checked import Checked

# What libraries take for their own work comes on top of the tensors.
_USABLE = 0.7
_SHRINK = 0.9


@contextmanager
def advised(checked: Checked) -> Iterator[None]:
    """Add to an error of too little memory which segments would fit.

    Raises:
        TrainingError: The error with the advice.
    """
    try:
        yield
    except MemoryTooSmallError as error:
        if not isinstance(checked, CheckedSegments):
            raise
        raise TrainingError(f"{error} {_advice(checked)}") from error


def _advice(checked: CheckedSegments) -> str:
    """Return the largest number of segments per pass that fits by estimate, or the largest segment."""
    training, segment = checked.experiment.training, triple(checked.experiment.sampling.segment)
    room = _USABLE * _room(checked.device)
    batch_size = training.batch_size // 2
    while batch_size >= 1:
        if _need(checked, segment, batch_size) <= room:
            accumulate = -(-training.batch_size * training.accumulate // batch_size)
            return f"By estimate training.batch_size {batch_size} with training.accumulate {accumulate} fits."
        batch_size //= 2
    while (smaller := _smaller(checked, segment)) is not None:
        segment = smaller
        if _need(checked, segment, 1) <= room:
            return f"By estimate training.batch_size 1 with sampling.segment {size_text(segment)} fits."
    return "By estimate not even one segment of the smallest size fits."


def _room(device: torch.device) -> float:
    """Return the bytes that a training may take; what failed is given back."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return free_bytes(device)


def _need(checked: CheckedSegments, segment: Triple, batch_size: int) -> int:
    return peak_bytes(checked.network, segment, batch_size=batch_size, training=True)


def _smaller(checked: CheckedSegments, segment: Triple) -> Triple | None:
    """Return the next smaller segment that the network takes."""
    size = segment
    while min(size) > 1:
        size = triple([min(int(_SHRINK * n), n - 1) for n in size])
        try:
            checked.network.segment_plan(size)
        except ModelError:
            continue
        return size
    return None
