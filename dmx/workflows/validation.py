"""Validation while a network trains: on sampled segments and on whole volumes, as prepared for the network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmx.cohort.regions import Regions
from dmx.config.sections import AugmentationSection, Experiment
from dmx.errors import CohortError
from dmx.evaluation.metrics import Overlap, confusion_counts, label_sets
from dmx.evaluation.overlay import overlay_figure
from dmx.evaluation.tiling import Predictor
from dmx.geometry import triple
from dmx.model.network import Network
from dmx.preprocess.cache import CachedCase
from dmx.sampling.sampler import SegmentSampler
from dmx.sampling.source import CaseSource
from dmx.training.losses import Loss
from dmx.training.samples import ValidationResult, validate_samples
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Scores the network of a training; the callable that :func:`dmx.training.loop.fit` asks after each epoch.

    Attributes:
        experiment: Settings.
        settings: Settings of the training core.
        network: The network that trains.
        cases: Prepared validation cases.
        source: The same for the sampler.
        channels: Names of the channels.
        device: Device that trains.
        hide: Applied to the names of cases in figures.
    """

    experiment: Experiment
    settings: FitSettings
    network: Network
    cases: Sequence[CachedCase]
    source: CaseSource
    channels: tuple[str, ...]
    device: torch.device
    hide: Callable[[str], str] = str

    def __call__(self, state: TrainState, epoch: int) -> ValidationResult:
        """Return what is due after this many epochs."""
        section = self.experiment.validation
        last = epoch == self.settings.training.epochs
        samples = ValidationResult(metrics={})
        if section.every_epochs and (epoch % section.every_epochs == 0 or last):
            samples = self._on_samples(epoch)
        if section.volumes_every_epochs and (epoch % section.volumes_every_epochs == 0 or last):
            volumes = self._on_volumes()
            return replace(volumes, metrics={**samples.metrics, **volumes.metrics})
        return samples

    def _on_samples(self, epoch: int) -> ValidationResult:
        """Score the same segments each time."""
        section = self.experiment.validation
        size = triple(section.segment or self.experiment.sampling.segment)
        batch_size = min(self.experiment.training.batch_size, section.segments)
        steps = -(-section.segments // batch_size)
        sampler = SegmentSampler(
            self.source,
            self.network.segment_plan(size),
            replace(
                self.experiment.sampling, categories="uniform", proportions=None, weight_maps=(), cases_per_epoch=None
            ),
            AugmentationSection(),
            batch_size=batch_size,
            steps_per_epoch=steps,
            num_classes=1 + len(self._sets),
            seed=self.experiment.seed,
            device=self.device,
            purpose="validation",
            compatibility=self.experiment.compatibility,
        )
        loss = Loss.of(self.settings)
        return validate_samples(
            self.network,
            (sampler.batch(0, step) for step in range(steps)),
            loss=loss,
            classes=self.settings.classes,
            epoch=float(epoch),
            dtype=_DTYPES[self.experiment.training.precision],
        )

    def _on_volumes(self) -> ValidationResult:
        """Predict whole cases; Dice per class is the mean over the cases whose truth or prediction has it."""
        section = self.experiment.validation
        classes = self.settings.classes
        predictor = make_predictor(self.experiment, self.network, self.device, regions=self.settings.regions)
        rows: list[dict[str, object]] = []
        figures: dict[str, object] = {}
        for case in self.cases[: section.max_volumes]:
            truth, predicted, channels = self._predicted(case, predictor)
            overlaps = _overlaps(confusion_counts(truth, predicted, num_classes=len(classes)), self._sets)
            dice = [overlap.dice for overlap in overlaps]
            row: dict[str, object] = {"case": case.name, "subject": case.subject}
            row |= {f"dice/{name}": value for name, value in zip(self._sets, dice, strict=True)}
            row |= {f"status/{name}": overlap.status for name, overlap in zip(self._sets, overlaps, strict=True)}
            rows.append(row)
            if len(figures) < section.overlays:
                found = [value for value in dice if value is not None]
                name = self.hide(case.name)
                figures[f"validation/{name}"] = overlay_figure(
                    dict(zip(self.channels, channels, strict=True)),
                    predicted,
                    truth=truth,
                    classes=self.settings.regions.members or classes,
                    spacing=case.geometry.spacing,
                    title=f"{name}, Dice {sum(found) / len(found):.3f}" if found else name,
                )
        return ValidationResult(metrics=_means(rows, [*self._sets]), rows=rows, figures=figures)

    @property
    def _sets(self) -> dict[str, Sequence[int]]:
        return label_sets(self.settings.regions.members or self.settings.classes)

    def _predicted(self, case: CachedCase, predictor: Predictor) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return truth, prediction and channels without the padding of the compatibility mode."""
        roi = None if case.roi is None else torch.from_numpy(case.roi)
        predicted = predictor.labels(torch.from_numpy(case.channels), roi=roi).cpu().numpy()
        geometry = case.geometry
        inner = tuple(
            slice(before, before + length)
            for before, length in zip(geometry.pad_before, geometry.crop_shape, strict=True)
        )
        labels = case.labels
        if labels is None:
            raise CohortError(f"Case '{case.name}' has no label map, so it cannot validate.")
        return labels[inner], predicted[inner], case.channels[(slice(None), *inner)]


def make_predictor(experiment: Experiment, network: Network, device: torch.device, *, regions: Regions) -> Predictor:
    """Return the predictor of an experiment, in the precision of its training unless it names another."""
    section = experiment.prediction
    precision = section.precision or experiment.training.precision
    return Predictor(network=network, section=replace(section, precision=precision), device=device, regions=regions)


def _overlaps(counts: NDArray[np.int64], sets: Mapping[str, Sequence[int]]) -> list[Overlap]:
    """Return what truth and prediction share of each class or region."""
    found = []
    for labels in sets.values():
        chosen = [*labels]
        sizes = int(counts[chosen].sum()), int(counts[:, chosen].sum())
        both = int(counts[np.ix_(chosen, chosen)].sum())
        found.append(Overlap(both=both, truth=sizes[0], prediction=sizes[1], total=int(counts.sum())))
    return found


def _means(rows: Sequence[dict[str, object]], names: Sequence[str]) -> dict[str, float]:
    """Return the mean Dice of each class and of all, and how often a class was missed or only predicted."""
    metrics: dict[str, float] = {}
    for name in names:
        values = [float(value) for row in rows if isinstance(value := row[f"dice/{name}"], float)]
        if values:
            metrics[f"val_volume/dice/{name}"] = sum(values) / len(values)
    if metrics:
        metrics["val_volume/dice"] = sum(metrics.values()) / len(metrics)
    found = [row[f"status/{name}"] for row in rows for name in names]
    counts = {f"val_volume/{status}": float(found.count(status)) for status in ("missed", "false_positive")}
    return {**metrics, **counts, "val_volume/cases": float(len(rows))}
