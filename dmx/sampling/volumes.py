"""Batches of whole prepared volumes; changed at random for training."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dmx import seeding
from dmx.config.augmentation import AugmentationSection
from dmx.sampling.batch import Batch
from dmx.sampling.order import DrawnOrder, Key
from dmx.sampling.source import CaseData, CaseSource
from dmx.sampling.volume_augment import VolumeAugmenter


class VolumeSampler:
    """Gives the whole volumes that a training sees, changed at random.

    A volume's changes are a function of its place in the order: neither the batch that it comes in nor the device
    changes what is drawn. Volumes of different sizes in one batch then get the size of the largest along each axis;
    their nearest voxel stands for those that they lack.

    Args:
        source: Prepared cases.
        target: Class of each case [cases], or its numbers [cases, targets].
        order: Which case comes when.
        augmentation: Changes; the default section changes nothing.
        device: Where batches go, and where changes are made.

    Raises:
        ConfigError: Settings of the augmentation that do not fit each other.
    """

    def __init__(
        self,
        source: CaseSource,
        target: Tensor,
        order: DrawnOrder,
        *,
        augmentation: AugmentationSection,
        device: torch.device,
    ) -> None:
        self._source = source
        self._target = target
        self._order = order
        self._augmenter = VolumeAugmenter(augmentation)
        self._device = device

    def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
        """Return one batch: inputs float32 [N, C, I, J, K] and their targets."""
        places = self._order.places(epoch, step, part)
        indices = [self._order.index(place) for place in places]
        cases = [self._source[index] for index in indices]
        volumes = [
            self._augmenter.change(
                case.channels_CIJK.to(self._device), seeding.derive(self._order.key, "volume", place)
            )
            for place, case in zip(places, cases, strict=True)
        ]
        return _batch(cases, volumes, self._target[indices].to(self._device))

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
            cases = [self._source[index] for index in indices]
            volumes = [case.channels_CIJK.to(self._device) for case in cases]
            yield _batch(cases, volumes, self._target[list(indices)].to(self._device))


def _batch(cases: Sequence[CaseData], volumes: Sequence[Tensor], target: Tensor) -> Batch:
    size = [max(volume.shape[axis] for volume in volumes) for axis in (1, 2, 3)]
    return Batch((torch.stack([_widened(v, size) for v in volumes]),), target, tuple(case.name for case in cases))


def _widened(volume_CIJK: Tensor, size: Sequence[int]) -> Tensor:
    """Return a volume of a size, the old one in its middle."""
    sides: list[int] = []
    for length, wanted in zip(volume_CIJK.shape[1:], size, strict=True):
        before = (wanted - length) // 2
        # Torch's order of axes is the reverse.
        sides = [before, wanted - length - before, *sides]
    return functional.pad(volume_CIJK[None], sides, mode="replicate")[0] if any(sides) else volume_CIJK
