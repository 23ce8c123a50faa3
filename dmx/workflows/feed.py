"""Batches that somebody else makes, as the training core takes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dmx import seeding
from dmx.cohort.regions import IGNORED
from dmx.errors import CohortError, ModelError, TrainingError
from dmx.model.lifted import LiftedNetwork, lift
from dmx.model.meta import mode
from dmx.model.module import first_sentence
from dmx.model.network import Network
from dmx.sampling.batch import Batch
from dmx.training.device import seed_generators

_PAIR = "Batches must be pairs of inputs and labels"


@dataclass(frozen=True)
class Item:
    """A batch as it came.

    Attributes:
        inputs: One tensor ``[N, C, …]`` per patch that the network reads.
        labels: Whole numbers ``[N, …]``.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Scores:
    """What the scores of a network look like.

    Attributes:
        classes: Their number.
        axes: Axes of space: none for one label per image or scan.
    """

    classes: int
    axes: int


def read_item(item: object, *, device: torch.device) -> Item:
    """Check a batch and bring it to the device.

    Raises:
        CohortError: It is no pair of tensors, or its labels are no whole numbers.
    """
    if not isinstance(item, list | tuple) or len(item) != 2:
        kind = f"{type(item).__name__} of {len(item)}" if isinstance(item, list | tuple | dict) else type(item).__name__
        raise CohortError(f"{_PAIR}, (inputs [N, C, …], labels [N, …]), got {kind}.")
    given, labels = item
    inputs = tuple(given) if isinstance(given, list | tuple) else (given,)
    wrong = next((type(part).__name__ for part in (*inputs, labels) if not isinstance(part, Tensor)), None)
    if wrong is not None:
        raise CohortError(f"{_PAIR} as tensors, got {wrong}.")
    if labels.is_floating_point() and not bool((labels == labels.round()).all()):
        raise CohortError(f"Labels must be whole numbers, the class of each voxel or image, got {labels.dtype}.")
    if not labels.ndim or any(len(part) != len(labels) for part in inputs):
        sizes = " and ".join(str([*part.shape]) for part in (*inputs, labels))
        raise CohortError(f"{_PAIR} of the same N, got the shapes {sizes}.")
    moved = tuple(part.to(device, torch.float32, non_blocking=True) for part in inputs)
    return Item(moved, labels.to(device, torch.int64, non_blocking=True))


def as_batch(item: Item, scores: Scores) -> Batch:
    """Return a batch of the training core.

    Raises:
        CohortError: The labels do not have the axes of the scores, or name classes that there are not.
    """
    labels = item.labels
    if labels.ndim == scores.axes + 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != scores.axes + 1:
        raise CohortError(
            f"The network scores {scores.classes} classes with {scores.axes} axes of space, so labels must have "
            f"{scores.axes + 1} axes, got the shape {[*item.labels.shape]}."
        )
    low, high = (int(value) for value in labels.aminmax())
    if low < IGNORED or high >= scores.classes:
        raise CohortError(
            f"Labels must be from 0 to {scores.classes - 1} (or {IGNORED}: not counted), got {low} to {high}."
        )
    return Batch(item.inputs, lift(labels, axes_before=1), tuple(f"item {n}" for n in range(1, len(labels) + 1)))


@torch.no_grad()
def probe(network: Network, item: Item) -> Scores:
    """Look once, in inference mode, at what a network gives for a batch; nothing of it changes.

    Raises:
        ModelError: The network cannot take the inputs, or gives something else than scores of the labels.
    """
    shapes = " and ".join(str([*part.shape]) for part in item.inputs)
    devices = [item.labels.device] if item.labels.device.type == "cuda" else []
    try:
        with mode(network, training=False), torch.random.fork_rng(devices):
            if isinstance(network, LiftedNetwork) and len(item.inputs) == 1:
                scores = network.plain_scores(item.inputs[0])
            else:
                scores = network(item.inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"The network cannot take inputs of the shape {shapes}: {first_sentence(error)}.") from error
    if not 2 <= scores.ndim <= 5 or scores.shape[1] < 2:
        raise ModelError(
            f"The network must give scores [N, classes, …] of at least 2 classes, got the shape {[*scores.shape]} for "
            f"inputs {shapes}."
        )
    found = Scores(int(scores.shape[1]), scores.ndim - 2)
    target = as_batch(item, found).target
    wanted = lift(scores, axes_before=2)[:, 0].shape
    if target.shape != wanted:
        raise ModelError(
            f"The network's scores {[*scores.shape]} must have the size of the labels, got {[*item.labels.shape]}. Cut "
            "the labels to what the network scores, or let it keep the size of its input."
        )
    return found


class Feed:
    """Gives the batches of each epoch in their order.

    Args:
        data: What is gone through once per epoch, e.g. a DataLoader or a list.
        device: Where batches go.
        seed: Seed of what it shuffles with torch's generator.
        what: What messages call it.

    Raises:
        CohortError: It can be gone through only once.
    """

    def __init__(self, data: Iterable[object], *, device: torch.device, seed: int, what: str = "The data") -> None:
        if not isinstance(data, Iterable):
            raise CohortError(f"{what} must be batches to iterate over, e.g. a list, got {type(data).__name__}.")
        if isinstance(data, Iterator):
            raise CohortError(f"{what} can be gone through only once; give a list or a DataLoader.")
        self._data = data
        self._device = device
        self._seed = seed
        self._what = what
        self._epoch = -1
        self._running: Iterator[object] = iter(())

    def __len__(self) -> int:
        """Return the number of batches; what does not know it is gone through once to count."""
        known = getattr(self._data, "__len__", None)
        return int(known()) if known is not None else sum(1 for _ in self._data)

    def first(self) -> Item:
        """Return the first batch.

        Raises:
            CohortError: There is none, or it cannot be used.
        """
        for item in self.items():
            return item
        raise CohortError(f"{self._what} must have at least one batch, got none.")

    def items(self) -> Iterator[Item]:
        """Go through all batches once."""
        for item in self._data:
            yield read_item(item, device=self._device)

    def batches(self, scores: Scores) -> Iterator[Batch]:
        """Go through all batches once, as the training core takes them."""
        for item in self.items():
            yield as_batch(item, scores)

    def next(self, epoch: int, scores: Scores) -> Batch:
        """Return the next batch of an epoch, from the first one on when the epoch is new.

        Raises:
            TrainingError: There are fewer batches than there were.
        """
        if epoch != self._epoch:
            # The order of a DataLoader comes from torch's generator; so it depends on seed and epoch alone.
            seed_generators(seeding.derive(self._seed, "data", epoch), self._device)
            self._epoch, self._running = epoch, iter(self._data)
        try:
            item = next(self._running)
        except StopIteration:
            raise TrainingError(f"{self._what} ended within epoch {epoch}: it has fewer batches than it had.") from None
        return as_batch(read_item(item, device=self._device), scores)
