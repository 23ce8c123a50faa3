"""Batches of whole prepared volumes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dmx.sampling.batch import Batch
from dmx.sampling.order import DrawnOrder, Key
from dmx.sampling.source import CaseSource


class VolumeSampler:
    """Gives the whole volumes that a training sees.

    Volumes of different sizes in one batch get the size of the largest along each axis; their nearest voxel stands for
    those that they lack.

    Args:
        source: Prepared cases.
        target: Class of each case [cases], or its numbers [cases, targets].
        order: Which case comes when.
        device: Where batches go.
    """

    def __init__(self, source: CaseSource, target: Tensor, order: DrawnOrder, *, device: torch.device) -> None:
        self._source = source
        self._target = target
        self._order = order
        self._device = device

    def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
        """Return one batch: inputs float32 [N, C, I, J, K] and their targets."""
        return _batch(self._source, self._target, self._order.indices(epoch, step, part), self._device)

    def following(self, key: Key) -> Key:
        """Return which (epoch, step, part) comes after one."""
        return self._order.following(key)


class VolumesInOrder:
    """Gives all volumes in their order; may be gone through again and again.

    Args:
        source: Prepared cases.
        target: Class of each case [cases], or its numbers [cases, targets].
        batch_size: Volumes per batch; with more than one, volumes of different sizes are widened as in training.
        device: Where batches go.
    """

    def __init__(self, source: CaseSource, target: Tensor, *, batch_size: int, device: torch.device) -> None:
        self._source = source
        self._target = target
        self._batch_size = batch_size
        self._device = device

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._source), self._batch_size):
            indices = range(first, min(first + self._batch_size, len(self._source)))
            yield _batch(self._source, self._target, indices, self._device)


def _batch(source: CaseSource, target: Tensor, indices: Sequence[int], device: torch.device) -> Batch:
    cases = [source[index] for index in indices]
    volumes = [case.channels_CIJK.to(device) for case in cases]
    size = [max(volume.shape[axis] for volume in volumes) for axis in (1, 2, 3)]
    chosen = target[torch.tensor(list(indices))].to(device)
    return Batch((torch.stack([_widened(v, size) for v in volumes]),), chosen, tuple(case.name for case in cases))


def _widened(volume_CIJK: Tensor, size: Sequence[int]) -> Tensor:
    """Return a volume of a size, the old one in its middle."""
    sides: list[int] = []
    for length, wanted in zip(volume_CIJK.shape[1:], size, strict=True):
        before = (wanted - length) // 2
        # Torch's order of axes is the reverse.
        sides = [before, wanted - length - before, *sides]
    return functional.pad(volume_CIJK[None], sides, mode="replicate")[0] if any(sides) else volume_CIJK
