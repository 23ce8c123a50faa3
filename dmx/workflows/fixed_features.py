"""Features that are computed once per image or volume where nothing but the head is trained."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmx.config.sections import Experiment
from dmx.sampling.batch import Batch
from dmx.sampling.features import FeatureSampler, FeaturesInOrder
from dmx.sampling.order import DrawnOrder
from dmx.training.device import prepared
from dmx.training.fixed import fixed_head, head_inputs
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState
from dmx.training.step import DTYPES
from dmx.workflows.score_validation import ScoreValidation

_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class FixedFeatures:
    """Finds out whether only the head is trained and nothing changes from one epoch to the next, and computes features.

    Attributes:
        experiment: Settings.
        settings: Settings of the training core.
        order: Which case comes when.
        training: Training cases as in prediction.
        held_out: Validation cases; None without any.
        say: Told what is done.
    """

    experiment: Experiment
    settings: FitSettings
    order: DrawnOrder
    training: Iterable[Batch]
    held_out: Iterable[Batch] | None
    say: Callable[[str], None]

    def computed(self, state: TrainState, scores: ScoreValidation) -> FeatureSampler | None:
        """Compute the features, and let training and validation read them in the place of images.

        Args:
            state: The training, with the weights that it begins with; from now on its steps run the head alone.
            scores: The validation.

        Returns:
            What gives the features to the training; ``None`` where everything is computed in each epoch.
        """
        head = self._head(state)
        if head is None:
            return None
        with prepared(self.settings.training, state.device):
            features, target, ids = self._all(state, head, self.training)
            others = None if self.held_out is None else self._all(state, head, self.held_out)
        size = self.settings.training.batch_size
        scores.read(
            head,
            held_out=None if others is None else FeaturesInOrder(*others, batch_size=size),
            training=FeaturesInOrder(features, target, ids, batch_size=size),
        )
        state.forward = lambda inputs: (head(inputs[0]),)
        self.say(
            f"Only the head is trained: the {features[0].numel():,} features that it reads were computed once for each "
            f"of {len(ids)} training cases and serve in all epochs."
        )
        return FeatureSampler(features, target, ids, self.order)

    def _head(self, state: TrainState) -> nn.Module | None:
        """Return the head where its inputs are the same in all epochs and have room in memory."""
        experiment, section, training = self.experiment, self.experiment.sampling, self.settings.training
        changes = experiment.image_augmentation.changes or experiment.augmentation.changes
        if not section.reuse_features or changes or training.compile:
            return None
        first = next(iter(self.training))
        head = fixed_head(state.model, self.settings.freeze, first)
        if head is None:
            return None
        found = next(head_inputs(state.model, head, [first], dtype=DTYPES[training.precision]))
        needed = found[0].numel() * found.element_size() * len(self.order) / _GB
        if needed > section.memory_gb:
            self.say(
                f"Only the head is trained, but what it reads takes {needed:.1f} GB for all training cases, more than "
                f"sampling.memory_gb ({section.memory_gb:g}), so it is computed in each epoch."
            )
            return None
        return head

    def _all(self, state: TrainState, head: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, list[str]]:
        """Return the features of all cases, their targets and names."""
        targets: list[Tensor] = []
        ids: list[str] = []

        def noted() -> Iterator[Batch]:
            for batch in batches:
                targets.append(batch.target)
                ids.extend(batch.cases)
                yield batch

        found = list(head_inputs(state.model, head, noted(), dtype=DTYPES[self.settings.training.precision]))
        return torch.cat(found), torch.cat(targets), ids
