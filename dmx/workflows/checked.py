"""A training before it begins: checked, then with its data prepared; the same shape for every task."""

from collections.abc import Container, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from dmx.cohort.case import Case, Cohort
from dmx.cohort.check import CheckReport
from dmx.cohort.digest import cohort_digest
from dmx.cohort.manifest import manifest_text
from dmx.config.sections import Experiment
from dmx.model.network import TrainableNetwork
from dmx.preprocess.contract import Contract
from dmx.preprocess.image_contract import ImageContract
from dmx.preprocess.kept import KeptVolume
from dmx.sampling.batch import Batch
from dmx.sampling.order import Key
from dmx.sampling.prefetch import Prefetcher
from dmx.training.loop import Validate
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState
from dmx.training.step import own_parts

AnyContract = Contract | ImageContract


def has_regions(contract: AnyContract) -> bool:
    """Return whether the outputs are regions that may overlap, each with a sigmoid, instead of classes."""
    return isinstance(contract, Contract) and bool(contract.regions)


"""What a network sees, and what its outputs are."""


@dataclass(frozen=True)
class SplitCases:
    """What a training learns from; images are cases of one channel.

    Attributes:
        cohort: All cases.
        training: Those that it learns from.
        validation: Those that score it.
        contract: What the network sees of them.
    """

    cohort: Cohort
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    contract: AnyContract

    def digest(self) -> str:
        """Return a hash of what the cases hold."""
        return cohort_digest(self.cohort)

    def table(self, place: Path) -> tuple[str, str]:
        """Return name and text of a table of the cases; its paths are relative to the folder of a file."""
        return "manifest.csv", manifest_text(self.cohort, place)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A training that can begin: all that could be checked has been checked.

    Attributes:
        experiment: Settings.
        data: Cases.
        contract: What the network sees.
        network: The network, with fresh weights.
        settings: Settings of the training core.
        device: Device that trains.
        findings: What the check of the cohort found.
        optimizer: An optimizer that was made in Python, to be used as it is; None: that of the experiment.
    """

    experiment: Experiment
    data: SplitCases
    contract: AnyContract
    network: TrainableNetwork
    settings: FitSettings
    device: torch.device
    findings: CheckReport
    optimizer: torch.optim.Optimizer | None = None


class Sampler(Protocol):
    """Whatever gives the batches of a training."""

    def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
        """Return a batch, a pure function of its key."""
        ...

    def following(self, key: Key) -> Key:
        """Return the key that comes after one."""
        ...


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A training whose cases are prepared.

    Attributes:
        checked: What it was made from.
        state: The training before its first step.
        sampler: Gives batches.
        validate: Scores the network; None where nothing is scored.
        kept: What resampling and cropping left of each class.
    """

    checked: Checked
    state: TrainState
    sampler: Sampler
    validate: Validate | None
    kept: Sequence[KeptVolume] = ()

    def batches(self) -> AbstractContextManager[Prefetcher[Key, Batch]]:
        """Return the batches by (epoch, step, part), prepared ahead by the experiment's workers.

        The state must have the weights that it begins with by then.
        """
        return self.share(0)

    def share(self, process: int) -> AbstractContextManager[Prefetcher[Key, Batch]]:
        """Return the batches of which those for the parts of one process are prepared ahead."""
        parts = own_parts(self.checked.settings.training, process)
        return prefetched(self.sampler, workers=self.checked.experiment.sampling.workers, parts=parts)


def prefetched(sampler: Sampler, *, workers: int, parts: Container[int] | None = None) -> Prefetcher[Key, Batch]:
    """Return a sampler's batches, prepared ahead by threads; with `parts` only those parts of each step."""

    def following(key: Key) -> Key:
        key = sampler.following(key)
        while parts is not None and key[2] not in parts:
            key = sampler.following(key)
        return key

    return Prefetcher(lambda key: sampler.batch(*key), following=following, workers=workers, depth=max(2, workers))
