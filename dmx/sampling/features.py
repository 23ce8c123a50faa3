"""Batches of features that were computed before, in place of the images or volumes that they belong to."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dmx.sampling.batch import Batch
from dmx.sampling.order import DrawnOrder, Key


class FeatureSampler:
    """Gives the features of the cases that a training would see, in the same order.

    Args:
        features: Features of each case, [cases, ...], on the device that trains.
        target: Class of each case [cases], or its numbers [cases, targets].
        ids: Names of the cases.
        order: Which case comes when.
    """

    def __init__(self, features: Tensor, target: Tensor, ids: Sequence[str], order: DrawnOrder) -> None:
        self._features = features
        self._target = target.to(features.device)
        self._ids = ids
        self._order = order

    def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
        """Return one batch: inputs [N, ...] as the features are, and their targets."""
        indices = self._order.indices(epoch, step, part)
        chosen = torch.tensor(indices, device=self._features.device)
        return Batch((self._features[chosen],), self._target[chosen], tuple(self._ids[index] for index in indices))

    def following(self, key: Key) -> Key:
        """Return which (epoch, step, part) comes after one."""
        return self._order.following(key)


class FeaturesInOrder:
    """Gives all features in their order, in batches; may be gone through again and again.

    Args:
        features: Features of each case, [cases, ...].
        target: Class of each case [cases], or its numbers [cases, targets].
        ids: Names of the cases.
        batch_size: Cases per batch.
    """

    def __init__(self, features: Tensor, target: Tensor, ids: Sequence[str], *, batch_size: int) -> None:
        self._features = features
        self._target = target.to(features.device)
        self._ids = tuple(ids)
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._ids), self._batch_size):
            chosen = slice(first, first + self._batch_size)
            yield Batch((self._features[chosen],), self._target[chosen], self._ids[chosen])
