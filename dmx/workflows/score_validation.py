"""Validation of a classification or regression: all cases in inference mode, after each epoch."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dmx.config.sections import Experiment
from dmx.evaluation.figures import confusion_figure
from dmx.evaluation.scores import Forward, collect_scores, confusion, measure
from dmx.sampling.batch import Batch
from dmx.training.losses import Loss
from dmx.training.samples import ValidationResult
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState
from dmx.training.step import DTYPES

_MEASURES = {"classification": ("accuracy", "balanced_accuracy", "auc"), "regression": ("r2", "mse")}
_FIRST = {"classification": "accuracy", "regression": "r2"}
_MOST_CLASSES = 30


class ScoreValidation:
    """Scores the network of a training; the callable that :func:`dmx.training.loop.fit` asks after each epoch.

    Args:
        experiment: Settings.
        settings: Settings of the training core.
        outputs: Names of the classes or targets.
        held_out: Validation cases; None without any.
        training: Training cases as in prediction, which are scored with ``validation.score_train``.

    Attributes:
        head: The part of the network that reads the batches; None: the whole network.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: FitSettings,
        outputs: Sequence[str],
        *,
        held_out: Iterable[Batch] | None,
        training: Iterable[Batch],
    ) -> None:
        self.head: nn.Module | None = None
        self._experiment = experiment
        self._settings = settings
        self._outputs = tuple(outputs)
        self._held_out = held_out
        self._training = training

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        section = self._experiment.validation
        return section.every_epochs > 0 and (self._held_out is not None or section.score_train)

    def read(self, head: nn.Module, *, held_out: Iterable[Batch] | None, training: Iterable[Batch]) -> None:
        """Score by the head from now on, which reads features in the place of images."""
        self.head, self._held_out, self._training = head, held_out, training

    def __call__(self, state: TrainState, epoch: int) -> ValidationResult:
        """Return what is due after this many epochs."""
        section = self._experiment.validation
        last = epoch == self._settings.training.epochs
        if not section.every_epochs or (epoch % section.every_epochs and not last):
            return ValidationResult(metrics={})
        metrics: dict[str, float] = {}
        figures: dict[str, object] = {}
        if self._held_out is not None:
            scores, target = self._scores(state, self._held_out)
            metrics |= self._measured(scores, target, epoch)
            if self._settings.task == "classification" and len(self._outputs) <= _MOST_CLASSES:
                counts = confusion(target, scores, num_classes=len(self._outputs))
                figures["validation/confusion"] = partial(confusion_figure, counts, self._outputs, unit="cases")
        if section.score_train:
            scores, target = self._scores(state, self._training)
            first = _FIRST[self._settings.task]
            value = measure(self._settings.task, scores, target, outputs=self._outputs)[first]
            if isinstance(value, float):
                metrics[f"score_train/{first}"] = value
        return ValidationResult(metrics=metrics, figures=figures)

    def _scores(self, state: TrainState, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        head = self.head
        forward: Forward = state.model if head is None else lambda inputs: head(inputs[0])
        state.model.eval()
        return collect_scores(forward, batches, dtype=DTYPES[self._settings.training.precision])

    @torch.no_grad()
    def _measured(self, scores: Tensor, target: Tensor, epoch: int) -> dict[str, float]:
        settings = self._settings
        loss = Loss.of(settings)
        row = measure(settings.task, scores, target, outputs=self._outputs)
        found = {f"val/{name}": row[name] for name in _MEASURES[settings.task]}
        metrics = {name: value for name, value in found.items() if isinstance(value, float)}
        return {"val/loss": float(loss(scores, target, epoch=float(epoch)).total), **metrics}
