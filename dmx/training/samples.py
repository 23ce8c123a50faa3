"""Metrics on the voxels of sampled segments: counts per class, added up over many batches.

Class 0 in DeepMedic's reports is the whole foreground; here it is called ``foreground``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dmx.cohort.regions import Regions
from dmx.errors import ConfigError
from dmx.sampling.batch import Batch
from dmx.training.losses import Loss
from dmx.training.monai_losses import region_truth

FOREGROUND = "foreground"
"""All classes but the background, or all regions, together."""


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What a validation has measured.

    Attributes:
        metrics: Values by name, e.g. ``val/dice``; values that do not exist (N/A) are left out.
        rows: One mapping per case, for a table.
        figures: Figures by name.
    """

    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, object]] = ()
    figures: Mapping[str, object] = field(default_factory=dict)


class SampleCounts:
    """Voxel counts, one class against all others, of everything seen so far.

    Args:
        classes: Names of the classes, background first; without any, as in a regression, nothing is counted.
        device: Where the counts are kept, so that adding to them waits for nothing.
        regions: Regions of the classes, which are counted instead where there are any.

    Attributes:
        names: What is counted: the whole foreground, then each class but the background, or each region.
        counts: int64 ``[names, 3]``: true positives, predicted and actual voxels; row 0 is the whole foreground.
        totals: int64 ``[2]``: voxels with a label, and those among them that were predicted right, in all regions.

    Raises:
        ConfigError: One of several foreground classes is called ``foreground``.
    """

    def __init__(
        self, classes: Sequence[str], device: torch.device | str = "cpu", *, regions: Regions | None = None
    ) -> None:
        counted = (*regions.members,) if regions else tuple(classes[1:])
        if FOREGROUND in counted and len(counted) > 1:
            raise ConfigError(f"A class cannot be called '{FOREGROUND}' beside others: it stands for all. Rename it.")
        self.names = (FOREGROUND, *counted) if classes else ()
        self._members = (*regions.members.values(),) if regions else ()
        self.counts = torch.zeros((len(self.names), 3), dtype=torch.int64, device=device)
        self.totals = torch.zeros(2, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, target: Tensor) -> None:
        """Count the voxels of a batch.

        Args:
            logits: ``[N, C, I, J, K]``, or ``[N, C]`` of whole images and volumes.
            target: ``[N, I, J, K]`` or ``[N]`` int64, -1 where there is no label.
        """
        if not self.names:
            return
        if self._members:
            self._add_regions(logits > 0, region_truth(target, self._members), target >= 0)
            return
        predicted = logits.argmax(dim=1)
        valid = target >= 0
        right = predicted == target
        predicted = torch.where(valid, predicted, -1)
        rows = [torch.stack([((predicted > 0) & (target > 0)).sum(), (predicted > 0).sum(), (target > 0).sum()])]
        for index in range(1, len(self.names)):
            actual = target == index
            rows.append(torch.stack([(actual & right).sum(), (predicted == index).sum(), actual.sum()]))
        self.counts += torch.stack(rows)
        self.totals += torch.stack([valid.sum(), right.sum()])

    def _add_regions(self, inside: Tensor, truth: Tensor, valid: Tensor) -> None:
        """Count voxels inside of regions: where the sigmoid is above a half."""
        right = (inside == truth).all(dim=1) & valid
        inside = inside & valid.unsqueeze(1)
        pairs = [(inside.any(dim=1), truth.any(dim=1)), *zip(inside.unbind(1), truth.unbind(1), strict=True)]
        rows = [torch.stack([(found & actual).sum(), found.sum(), actual.sum()]) for found, actual in pairs]
        self.counts += torch.stack(rows)
        self.totals += torch.stack([valid.sum(), right.sum()])

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return ``<prefix>/<measure>/<class>`` for each foreground class and the whole foreground.

        Measures: accuracy, sensitivity, precision, specificity, dice; ``<prefix>/accuracy`` is the share of voxels that
        are right, ``<prefix>/dice`` the mean over the foreground classes. A value is left out (N/A) when it does not
        exist: sensitivity and Dice of a class that does not occur, precision of one that is never predicted.
        """
        total, right = (int(number) for number in self.totals.tolist())
        if total == 0:
            return {}
        metrics = {f"{prefix}/accuracy": right / total}
        dice = []
        for index, row in enumerate(self.counts.tolist()):
            name = self.names[index]
            values = _measures(*row, total=total)
            metrics.update({f"{prefix}/{measure}/{name}": value for measure, value in values.items()})
            if index and "dice" in values:
                dice.append(values["dice"])
        if dice:
            metrics[f"{prefix}/dice"] = sum(dice) / len(dice)
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts."""
        return {"counts": self.counts, "totals": self.totals}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over counts."""
        self.counts.copy_(state["counts"])
        self.totals.copy_(state["totals"])


def _measures(both: int, predicted: int, actual: int, *, total: int) -> dict[str, float]:
    """Return the measures that exist, from true positives, positives and voxels."""
    negatives = total - actual
    true_negatives = negatives - (predicted - both)
    measures = {"accuracy": (both + true_negatives) / total}
    if actual:
        measures["sensitivity"] = both / actual
        measures["dice"] = 2.0 * both / (predicted + actual)
    if predicted:
        measures["precision"] = both / predicted
    if negatives:
        measures["specificity"] = true_negatives / negatives
    return measures


@torch.no_grad()
def validate_samples(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss: Loss,
    classes: Sequence[str],
    epoch: float = 0.0,
    dtype: torch.dtype | None = None,
) -> ValidationResult:
    """Score a network in inference mode on sampled segments.

    Args:
        model: The network; its training mode is restored.
        batches: Segments with their labels, on the network's device.
        loss: The loss, without penalties on kernels, averaged over the segments as ``val/loss``.
        classes: Names of the classes, background first.
        epoch: Epochs done, for class weights that change.
        dtype: bfloat16 or float16 for mixed precision; None: float32.

    Returns:
        ``val/loss``, ``val/accuracy``, ``val/dice``, ``val/dice/<class>``, …
    """
    training = model.training
    model.eval()
    counts: SampleCounts | None = None
    total = 0.0
    segments = 0
    try:
        for batch in batches:
            device = batch.target.device
            counts = counts or SampleCounts(classes, device, regions=loss.regions)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = model(batch.inputs)
            total += float(loss(logits, batch.target, epoch=epoch).total) * len(batch.cases)
            segments += len(batch.cases)
            counts.add(logits, batch.target)
    finally:
        model.train(training)
    if counts is None:
        return ValidationResult(metrics={})
    return ValidationResult(metrics={"val/loss": total / segments, **counts.metrics("val")})
