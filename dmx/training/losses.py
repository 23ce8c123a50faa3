"""What is minimized: a weighted sum of losses, and penalties on the kernels.

Scores of whole images or volumes, [N, C], count as volumes of one voxel.

p is the softmax of the logits, y the one-hot truth, v a voxel with a label, N the number of these in the batch, C the
number of classes. Voxels whose target is -1 are left out of every sum. Everything is computed in float32.

Where the network has an output for each of several regions, which may overlap, p is the sigmoid of its logit, y is 1
inside of the region, and C is the number of regions; the cross-entropy is then the binary one of each region.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dmx.cohort.regions import Regions
from dmx.config.optimization import LossSection, RegularizationSection
from dmx.errors import ConfigError
from dmx.training.monai_losses import MonaiTerm, region_truth
from dmx.training.settings import Compatibility, FitSettings

EPSILON = 1e-5
"""Added to numerator and denominator of the overlap losses, as in DeepMedic."""

_SPACE = (0, 2, 3, 4)
"""Axes of batch and space."""


@dataclass(frozen=True)
class LossValue:
    """A loss with its parts.

    Attributes:
        total: The weighted sum, with its graph.
        terms: Each part before its weight, without graph.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


def with_auxiliary(value: LossValue, auxiliary: Sequence[Tensor], *, weight: float) -> LossValue:
    """Return a loss to which those of auxiliary outputs are added (Szegedy et al. 2015).

    Args:
        value: Loss of the network's scores.
        auxiliary: Losses of the auxiliary outputs.
        weight: Weight of each of them.
    """
    added = torch.stack(list(auxiliary)).sum()
    return LossValue(value.total + weight * added, {**value.terms, "auxiliary": added.detach()})


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    compatibility: Compatibility = "none",
) -> Tensor:
    """Return ``-(1/N) Σ_v w(y_v) · log p(y_v)``.

    DeepMedic takes ``log(p + 1e-6)``, which bounds the loss of a voxel by 13.8 and lets the gradient of a confident
    error vanish; with ``compatibility="deepmedic"`` so does this function. Otherwise the logarithm is that of
    log-softmax, without a constant. The sum is divided by N, not by the sum of the weights.

    Args:
        logits: ``[N, C, I, J, K]``.
        target: ``[N, I, J, K]`` int64, -1 where there is no label.
        weights: One weight per class.
        label_smoothing: Share of the truth that is spread over all classes (Szegedy et al. 2016).
        compatibility: Whose definition holds.
    """
    if compatibility == "deepmedic":
        log_p = torch.log(torch.softmax(logits, dim=1) + 1e-6)
    else:
        log_p = functional.log_softmax(logits, dim=1)
    valid = target >= 0
    # Sums per class instead of torch's nll_loss, which is not deterministic on CUDA for volumes.
    per_class = torch.where(_one_hot(target, logits.shape[1]), log_p, 0.0).sum(_SPACE)
    if label_smoothing:
        everywhere = torch.where(valid.unsqueeze(1), log_p, 0.0).sum(_SPACE)
        per_class = (1.0 - label_smoothing) * per_class + label_smoothing / logits.shape[1] * everywhere
    if weights is not None:
        per_class = per_class * weights
    return -per_class.sum() / valid.sum().clamp(min=1)


def binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    regions: Sequence[Sequence[int]],
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return ``-(1/(N C)) Σ_r Σ_v w_r · (y log p + (1 - y) log(1 - p))`` over regions r and voxels v with a label.

    Args:
        logits: One per region, ``[N, C, I, J, K]``.
        target: ``[N, I, J, K]`` int64, -1 where there is no label.
        regions: Labels of each region.
        weights: One weight per region.
        label_smoothing: Share of the truth that is spread evenly over inside and outside.
    """
    valid = target >= 0
    truth = region_truth(target, regions).to(logits.dtype) * (1.0 - label_smoothing) + label_smoothing / 2.0
    each = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    per_region = torch.where(valid.unsqueeze(1), each, 0.0).sum(_SPACE)
    if weights is not None:
        per_region = per_region * weights
    return per_region.sum() / (valid.sum().clamp(min=1) * len(regions))


def _one_hot(target: Tensor, num_classes: int) -> Tensor:
    """Return bool ``[N, C, I, J, K]``, False for all classes where there is no label."""
    classes = torch.arange(num_classes, device=target.device).view(1, -1, 1, 1, 1)
    return target.unsqueeze(1) == classes


def frequency_weights(target: Tensor, num_classes: int) -> Tensor:
    """Return ``N / C / (count_c + 1e-6)`` per class: DeepMedic's inverse frequency in the batch."""
    counts = _one_hot(target, num_classes).sum(_SPACE).float()
    return counts.sum() / num_classes / (counts + 1e-6)


def _overlap(probabilities: Tensor, target: Tensor, regions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return per class or region Σ p·y, Σ p and Σ y over batch and space."""
    truth = region_truth(target, regions) if regions else _one_hot(target, probabilities.shape[1])
    both = torch.where(truth, probabilities, 0.0).sum(_SPACE)
    predicted = torch.where((target >= 0).unsqueeze(1), probabilities, 0.0).sum(_SPACE)
    return both, predicted, truth.sum(_SPACE).to(probabilities.dtype)


def soft_iou(probabilities: Tensor, target: Tensor, *, regions: Sequence[Sequence[int]] = ()) -> Tensor:
    """Return ``1 - mean_c (Σ p·y + ε) / (Σ p·(1-y) + Σ y + ε)``, sums over batch and space.

    Args:
        probabilities: ``[N, C, I, J, K]``.
        target: ``[N, I, J, K]`` int64, -1 where there is no label.
        regions: Labels of each region; without any, the classes exclude each other.
    """
    both, predicted, truth = _overlap(probabilities, target, regions)
    return 1.0 - ((both + EPSILON) / (predicted - both + truth + EPSILON)).mean()


def soft_dice(probabilities: Tensor, target: Tensor, *, regions: Sequence[Sequence[int]] = ()) -> Tensor:
    """Return ``1 - mean_c (2 Σ p·y + ε) / (Σ p + Σ y + ε)``, sums over batch and space, all classes or regions.

    Args:
        probabilities: ``[N, C, I, J, K]``.
        target: ``[N, I, J, K]`` int64, -1 where there is no label.
        regions: Labels of each region; without any, the classes exclude each other.
    """
    both, predicted, truth = _overlap(probabilities, target, regions)
    return 1.0 - ((2.0 * both + EPSILON) / (predicted + truth + EPSILON)).mean()


class Loss:
    """The weighted sum of an experiment's losses, without the penalties on kernels.

    Args:
        section: Settings.
        num_classes: Classes of the network.
        regions: Regions of labels, one output of the network for each; without any, the classes exclude each other.
        compatibility: Whose definition of the cross-entropy holds.

    Raises:
        ConfigError: The settings do not fit each other or the classes, or MONAI lacks a named loss.
    """

    def __init__(
        self,
        section: LossSection,
        num_classes: int,
        *,
        regions: Regions | None = None,
        compatibility: Compatibility = "none",
    ) -> None:
        if not section.cross_entropy and (section.label_smoothing or section.class_weights != "none"):
            raise ConfigError(
                "losses.class_weights and losses.label_smoothing belong to the cross-entropy, but losses.cross_entropy "
                "is 0."
            )
        if section.mse and (section.cross_entropy or section.soft_iou or section.soft_dice or section.monai):
            raise ConfigError(
                "losses.mse stands alone: it is the loss of a regression, the others are those of classes."
            )
        self.regions = regions or Regions()
        self._members = (*self.regions.members.values(),)
        outputs = len(self._members) or num_classes
        _check_weights(section, outputs, of_regions=bool(regions))
        self.section = section
        self.num_classes = num_classes
        self.compatibility: Compatibility = compatibility
        self._monai = [(loss, MonaiTerm(loss, outputs, regions=self._members)) for loss in section.monai]

    @classmethod
    def of(cls, settings: FitSettings) -> "Loss":
        """Return the loss of a training."""
        return cls(
            settings.losses, len(settings.classes), regions=settings.regions, compatibility=settings.compatibility
        )

    @property
    def of_shapes(self) -> tuple[str, ...]:
        """Names of losses that measure shapes, so that no voxel can be left out."""
        return tuple(loss.name for loss, term in self._monai if not term.voxelwise)

    def __call__(self, logits: Tensor, target: Tensor, *, epoch: float = 0.0) -> LossValue:
        """Return the loss of a batch.

        Args:
            logits: ``[N, C, I, J, K]``, or ``[N, C]`` of whole images and volumes.
            target: ``[N, I, J, K]`` or ``[N]`` int64, -1 where there is no label; of a regression float ``[N, C]``.
            epoch: Epochs done, for class weights that change.
        """
        section = self.section
        if section.mse:
            return self._squared(logits, target)
        if logits.dim() == 2:
            logits, target = logits[:, :, None, None, None], target[:, None, None, None]
        parts: list[tuple[str, float, Tensor]] = []
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if section.cross_entropy:
                parts.append(("cross_entropy", section.cross_entropy, self._cross_entropy(logits, target, epoch)))
            if section.soft_iou or section.soft_dice:
                regions = self._members
                probabilities = torch.sigmoid(logits) if regions else torch.softmax(logits, dim=1)
                if section.soft_iou:
                    parts.append(("soft_iou", section.soft_iou, soft_iou(probabilities, target, regions=regions)))
                if section.soft_dice:
                    parts.append(("soft_dice", section.soft_dice, soft_dice(probabilities, target, regions=regions)))
            for loss, term in self._monai:
                parts.append((loss.name, loss.weight, term(logits, target)))
            total = torch.stack([weight * value for _, weight, value in parts]).sum()
        return LossValue(total, {name: value.detach() for name, _, value in parts})

    def _cross_entropy(self, logits: Tensor, target: Tensor, epoch: float) -> Tensor:
        weights, smoothing = self.class_weights(target, epoch), self.section.label_smoothing
        if self._members:
            return binary_cross_entropy(logits, target, self._members, weights=weights, label_smoothing=smoothing)
        return cross_entropy(
            logits, target, weights=weights, label_smoothing=smoothing, compatibility=self.compatibility
        )

    def _squared(self, predicted: Tensor, target: Tensor) -> LossValue:
        """Return the mean over the batch and the targets of ``(predicted - target)²``."""
        with torch.autocast(predicted.device.type, enabled=False):
            value = functional.mse_loss(predicted.float(), target.float())
        return LossValue(self.section.mse * value, {"mse": value.detach()})

    def class_weights(self, target: Tensor, epoch: float) -> Tensor | None:
        """Return the weight of each class, or None when all are 1.

        Between the two epochs e0 and e1 of ``class_weights_epochs`` they go back to 1:
        ``w(e) = w + (clip(e, e0, e1) - e0) · (1 - w) / (e1 - e0)``.
        """
        chosen = self.section.class_weights
        if chosen == "none":
            return None
        if isinstance(chosen, tuple):
            weights = torch.tensor(chosen, dtype=torch.float32, device=target.device)
        else:
            weights = frequency_weights(target, self.num_classes)
        if self.section.class_weights_epochs is None:
            return weights
        first, last = self.section.class_weights_epochs
        share = float(epoch >= last) if last <= first else (min(max(epoch, first), last) - first) / (last - first)
        return weights + share * (1.0 - weights)


def _check_weights(section: LossSection, outputs: int, *, of_regions: bool) -> None:
    """Require weights that fit the outputs."""
    weights, what = section.class_weights, "region" if of_regions else "class"
    if isinstance(weights, tuple) and len(weights) != outputs:
        raise ConfigError(f"losses.class_weights must hold one number per {what} ({outputs}), got {list(weights)}.")
    if of_regions and isinstance(weights, str) and weights != "none":
        raise ConfigError(
            f"losses.class_weights '{weights}' counts classes that exclude each other, and regions overlap. Give one "
            "number per region, or none."
        )


@torch.no_grad()
def add_penalties(kernels: Sequence[Tensor], section: RegularizationSection) -> dict[str, Tensor]:
    """Add the gradient of ``l1 · Σ|W| + l2 · Σ W²`` to the kernels' gradients and return both sums.

    It is written down (``l1 · sign(W) + 2 · l2 · W``) instead of going through autograd, which would keep a copy of
    each kernel. Kernels without a gradient, such as frozen ones, count in the sums and are left alone.

    Args:
        kernels: Convolution and linear weights.
        section: Weights of the penalties.

    Returns:
        ``l1`` and ``l2`` before their weights; those whose weight is 0 are left out.
    """
    terms: dict[str, Tensor] = {}
    if not kernels:
        return terms
    tensors = [kernel.detach() for kernel in kernels]
    learned = [(kernel.grad, kernel.detach()) for kernel in kernels if kernel.grad is not None]
    grads = [grad for grad, _ in learned]
    values = [value for _, value in learned]
    if section.l1:
        terms["l1"] = torch.stack(torch._foreach_norm(tensors, 1)).sum()
        if grads:
            torch._foreach_add_(grads, torch._foreach_sign(values), alpha=section.l1)
    if section.l2:
        terms["l2"] = torch.stack(torch._foreach_norm(tensors, 2)).square().sum()
        if grads:
            torch._foreach_add_(grads, values, alpha=2.0 * section.l2)
    return terms


@torch.no_grad()
def add_source_penalty(
    parameters: Mapping[str, Tensor], sources: Mapping[str, Tensor], section: RegularizationSection
) -> dict[str, Tensor]:
    """Add the gradient of ``l2_to_source · Σ (W - W₀)²`` and return the sum (L2-SP, Li, Grandvalet and Davoine 2018).

    Parameters without a gradient, such as frozen ones, are left alone; they are where they began.

    Args:
        parameters: All parameters by name.
        sources: W₀ of those that came whole from a source.
        section: Weight of the penalty.

    Returns:
        ``l2_to_source`` before its weight; empty when the weight is 0.
    """
    pulled = [(p, sources[name], p.grad) for name, p in parameters.items() if name in sources and p.grad is not None]
    if not section.l2_to_source or not sources:
        return {}
    if not pulled:
        return {"l2_to_source": torch.zeros((), device=next(iter(sources.values())).device)}
    differences = torch._foreach_sub([p.detach() for p, _, _ in pulled], [source for _, source, _ in pulled])
    value = torch.stack(torch._foreach_norm(differences, 2)).square().sum()
    torch._foreach_add_([grad for _, _, grad in pulled], differences, alpha=2.0 * section.l2_to_source)
    return {"l2_to_source": value}
