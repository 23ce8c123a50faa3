"""Batches of images as a pure function of (seed, epoch, step, part), and in order for prediction."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dmx import seeding
from dmx.config.images import ImageAugmentationSection
from dmx.preprocess.image_contract import ImageContract
from dmx.sampling.batch import Batch
from dmx.sampling.image_augment import ImageAugmenter
from dmx.sampling.image_source import ImageSource
from dmx.sampling.order import DrawnOrder


class ImageSampler:
    """Draws training images and makes the network's input from them, on the device that trains.

    They come in the order of :class:`~dmx.sampling.order.DrawnOrder`. What is drawn for an image depends on (seed,
    purpose, place in the stream) alone, not on the size of batches.

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
        self._source = source
        self._device = torch.device(device)
        self._augmenter = ImageAugmenter(augmentation, contract, device=device)
        self.order = DrawnOrder(
            source.target,
            source.ids,
            contract.classes,
            batch_size=batch_size,
            accumulate=accumulate,
            steps_per_epoch=steps_per_epoch,
            balanced=balanced,
            seed=seed,
            purpose=purpose,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return self.order.steps_per_epoch

    def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
        """Return one batch: inputs float32 [N, 3, H, W], target int64 [N] or float32 [N, targets].

        Args:
            epoch: Epoch, from 0.
            step: Step in the epoch, from 0.
            part: Batch in the step, from 0, below ``accumulate``.

        Raises:
            ValueError: A step or part that the epoch does not have.
        """
        places = self.order.places(epoch, step, part)
        indices = [self.order.index(place) for place in places]
        images = [
            self._augmenter.input(self._source[index], seeding.derive(self.order.key, "image", place))
            for place, index in zip(places, indices, strict=True)
        ]
        return _batch(self._source, images, indices, self._device)

    def following(self, key: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return which (epoch, step, part) comes after one, for whoever prepares batches ahead."""
        return self.order.following(key)


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
