"""Batches of images as a pure function of (seed, epoch, step, part), and in order for prediction."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dmx import seeding
from dmx.config.images import ImageAugmentationSection
from dmx.errors import CohortError, ConfigError
from dmx.preprocess.image_contract import ImageContract
from dmx.sampling.batch import Batch
from dmx.sampling.centers import permuted
from dmx.sampling.image_augment import ImageAugmenter
from dmx.sampling.image_source import ImageSource


class ImageSampler:
    """Draws training images and makes the network's input from them, on the device that trains.

    The images form one endless stream: a random order of all, another random order of all, and so on. An epoch is the
    next part of it: exactly one order of all images where no number of steps is given, else as many images as its steps
    take, so that all images come equally often whatever the length of an epoch. A balanced stream gives each class in
    turn, in random order within each round, and goes through the images of each class in the same way; it repeats
    the images of small classes. What is drawn for an image depends on (seed, purpose, place in the stream) alone, not
    on the size of batches.

    Args:
        source: Images; each must have a target.
        contract: What the network sees.
        augmentation: Changes; the default section changes nothing.
        batch_size: Images per batch, at most.
        accumulate: Batches per step. Those of a smaller last step share its images evenly.
        steps_per_epoch: Steps per epoch; ``None``: as many as one pass over the images takes, the last one smaller
            where the numbers do not fit.
        balanced: Whether each class comes equally often.
        seed: Seed of the experiment.
        device: Where batches go.
        purpose: What the images are for; another purpose draws others.

    Raises:
        CohortError: There are no images, or one has no target, or a class has no images to balance with.
        ConfigError: Settings that do not fit each other or the number of images.
    """

    def __init__(  # noqa: PLR0913  # keyword-only settings that three sections of the experiment hold
        self,
        source: ImageSource,
        contract: ImageContract,
        augmentation: ImageAugmentationSection,
        *,
        batch_size: int,
        accumulate: int = 1,
        steps_per_epoch: int | None = None,
        balanced: bool = False,
        seed: int,
        device: torch.device | str,
        purpose: str = "training",
    ) -> None:
        _require_targets(source)
        self._source = source
        self._accumulate = accumulate
        self._per_step = batch_size * accumulate
        self._key = seeding.derive(seed, purpose)
        self._device = torch.device(device)
        self._augmenter = ImageAugmenter(augmentation, contract, device=device)
        self._members = _members(source, contract) if balanced else None
        self._images = len(source) if steps_per_epoch is None else steps_per_epoch * self._per_step
        if (rest := self._images % self._per_step) and rest < accumulate:
            raise ConfigError(
                f"{self._images} training images leave {rest} for the last step of an epoch, which training.accumulate "
                f"divides into {accumulate} batches. Choose another batch_size, or set training.steps_per_epoch."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return math.ceil(self._images / self._per_step)

    def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
        """Return one batch: inputs float32 [N, 3, H, W], target int64 [N] or float32 [N, targets].

        Args:
            epoch: Epoch, from 0.
            step: Step in the epoch, from 0.
            part: Batch in the step, from 0, below ``accumulate``.

        Raises:
            ValueError: A step or part that the epoch does not have.
        """
        if not (0 <= step < self.steps_per_epoch and 0 <= part < self._accumulate):
            raise ValueError(
                f"step and part must be below {self.steps_per_epoch} and {self._accumulate} (from 0), got {step} and "
                f"{part}"
            )
        first = step * self._per_step
        count = min(self._per_step, self._images - first)
        start, end = (epoch * self._images + first + count * p // self._accumulate for p in (part, part + 1))
        indices = [self._index(position) for position in range(start, end)]
        images = [
            self._augmenter.input(self._source[index], seeding.derive(self._key, "image", position))
            for position, index in zip(range(start, end), indices, strict=True)
        ]
        return _batch(self._source, images, indices, self._device)

    def following(self, key: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return which (epoch, step, part) comes after one, for whoever prepares batches ahead."""
        epoch, step, part = key
        if part + 1 < self._accumulate:
            return (epoch, step, part + 1)
        return (epoch, step + 1, 0) if step + 1 < self.steps_per_epoch else (epoch + 1, 0, 0)

    def _index(self, position: int) -> int:
        """Return which image comes at a place of the stream."""
        if self._members is None:
            turn, place = divmod(position, len(self._source))
            return permuted(place, len(self._source), seeding.derive(self._key, "order", turn))
        turn, place = divmod(position, len(self._members))
        members = self._members[permuted(place, len(self._members), seeding.derive(self._key, "classes", turn))]
        turn, place = divmod(turn, len(members))
        # The first member stands for its class.
        return members[permuted(place, len(members), seeding.derive(self._key, "class", members[0], turn))]


class ImagesInOrder:
    """Batches of all images in their order, as in prediction: the middle of each, unchanged.

    Args:
        source: Images, with targets or without.
        contract: What the network sees.
        batch_size: Images per batch; the last one may be smaller.
        device: Where batches go.
    """

    def __init__(
        self, source: ImageSource, contract: ImageContract, *, batch_size: int, device: torch.device | str
    ) -> None:
        self._source = source
        self._batch_size = batch_size
        self._device = torch.device(device)
        self._augmenter = ImageAugmenter(ImageAugmentationSection(), contract, device=device)

    def __len__(self) -> int:
        """Return the number of batches."""
        return math.ceil(len(self._source) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(number) for number in range(len(self)))

    def batch(self, number: int) -> Batch:
        """Return a batch by its number, from 0."""
        if not 0 <= number < len(self):
            raise ValueError(f"number must be below {len(self)} (from 0), got {number}")
        first = number * self._batch_size
        indices = list(range(first, min(first + self._batch_size, len(self._source))))
        return _batch(self._source, [self._augmenter.plain(self._source[i]) for i in indices], indices, self._device)


def _batch(source: ImageSource, images: list[Tensor], indices: list[int], device: torch.device) -> Batch:
    target = source.target[torch.tensor(indices)].to(device)
    return Batch((torch.stack(images),), target, tuple(source.ids[index] for index in indices))


def _require_targets(source: ImageSource) -> None:
    if not len(source):
        raise CohortError("There are no images to train with.")
    target = source.target
    known = ~target.isnan().any(dim=1) if target.is_floating_point() else target >= 0
    if not bool(known.all()):
        missing = source.ids[int((~known).nonzero()[0])]
        what = "number to predict" if target.is_floating_point() else "label"
        raise CohortError(f"Image '{missing}' has no {what}, so it cannot be trained with.")


def _members(source: ImageSource, contract: ImageContract) -> list[list[int]]:
    """Return the images of each class."""
    if source.target.is_floating_point():
        raise ConfigError("Images can be balanced by class only, and a regression has no classes.")
    members: list[list[int]] = [[] for _ in range(max(len(contract.classes), int(source.target.max()) + 1))]
    for index, label in enumerate(source.target.tolist()):
        members[label].append(index)
    for label, found in enumerate(members):
        if not found:
            name = contract.classes[label] if label < len(contract.classes) else str(label)
            raise CohortError(f"Class '{name}' has no images to train with, so classes cannot come equally often.")
    return members
