"""Losses of MONAI by their class names."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmx.config.optimization import MonaiLoss
from dmx.errors import ConfigError, suggest

_CERTAIN = 30.0
"""Logit that stands for certainty: exp(-30) is below the resolution of float32."""

Built = Callable[[Tensor, Tensor], Tensor]


def region_truth(target: Tensor, regions: Sequence[Sequence[int]]) -> Tensor:
    """Return bool ``[N, C, I, J, K]``: which voxels lie in each region; False where there is no label.

    Args:
        target: ``[N, I, J, K]`` int64, -1 where there is no label.
        regions: Labels of each region.
    """
    return torch.stack([torch.isin(target, target.new_tensor(tuple(labels))) for labels in regions], dim=1)


class MonaiTerm:
    """A loss of MONAI that leaves voxels without label out, exactly.

    MONAI's losses know no such voxels. Where a loss treats voxels alike wherever they are, it gets the others alone, as
    one long volume: of each segment, where it judges segments one by one, else of all. A loss that measures shapes,
    such as ``HausdorffDTLoss``, needs the neighbors: to it, voxels without label are background, predicted with
    certainty.

    Args:
        loss: Its name and arguments.
        num_outputs: Classes of the network, or regions.
        regions: Labels of each region; without any, the classes exclude each other.

    Attributes:
        voxelwise: Whether the order of the voxels does not matter to it.

    Raises:
        ConfigError: MONAI has no such loss, it refuses its arguments, or it cannot judge such scores.
    """

    def __init__(self, loss: MonaiLoss, num_outputs: int, *, regions: Sequence[Sequence[int]] = ()) -> None:
        self._regions = tuple(regions)
        self._built = _build(loss, sigmoid=bool(regions))
        _try(self._built, loss.name, num_outputs, of_regions=bool(regions))
        self.voxelwise, self._by_segment = _nature(self._built, num_outputs, of_regions=bool(regions))

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            logits: ``[N, C, I, J, K]``.
            target: ``[N, I, J, K]`` int64, -1 where there is no label.
        """
        valid = target >= 0
        truth = region_truth(target, self._regions).float() if self._regions else target.clamp(min=0).unsqueeze(1)
        if bool(valid.all()):
            return self._built(logits, truth)
        if not self.voxelwise:
            return self._built(self._certain(logits, valid), truth)
        groups = [slice(n, n + 1) for n in range(len(target))] if self._by_segment else [slice(None)]
        values = [
            self._built(_chosen(logits[group], valid[group]), _chosen(truth[group], valid[group]))
            for group in groups
            if bool(valid[group].any())
        ]
        return torch.stack(values).mean() if values else (logits * 0.0).sum()

    def _certain(self, logits: Tensor, valid: Tensor) -> Tensor:
        background = torch.full((logits.shape[1],), -_CERTAIN, device=logits.device)
        if not self._regions:
            background[0] = _CERTAIN
        return torch.where(valid.unsqueeze(1), logits, background.view(1, -1, 1, 1, 1))


def _chosen(values: Tensor, valid: Tensor) -> Tensor:
    """Return the voxels with a label, ``[1, C, voxels, 1, 1]``."""
    flat = values.movedim(1, -1).reshape(-1, values.shape[1])
    # An index instead of a mask: its gradient is deterministic on every device.
    return flat.index_select(0, valid.reshape(-1).nonzero()[:, 0]).T[None, :, :, None, None]


def _build(loss: MonaiLoss, *, sigmoid: bool) -> Built:
    """Build a loss that takes logits, and class indices or, of regions, a map of 0 and 1 for each.

    ``to_onehot_y`` and ``softmax`` (or ``use_softmax``), of regions ``sigmoid``, are set where the loss has them,
    unless they are given.
    """
    import monai.losses

    names = [name for name in dir(monai.losses) if name.endswith("Loss")]
    if loss.name not in names:
        raise ConfigError(f"losses.monai: MONAI has no loss '{loss.name}'.{suggest(loss.name, names)}")
    factory = getattr(monai.losses, loss.name)
    accepted = inspect.signature(factory).parameters
    chosen = ("sigmoid",) if sigmoid else ("to_onehot_y", "softmax", "use_softmax")
    filled: dict[str, Any] = {name: True for name in chosen if name in accepted}
    try:
        built: Built = factory(**{**filled, **loss.arguments})
    except Exception as error:  # each loss checks its arguments in its own way
        raise ConfigError(f"losses.monai: {loss.name} refuses its arguments {dict(loss.arguments)}: {error}") from error
    parts = [*built.modules()] if isinstance(built, nn.Module) else []
    by_region = "sigmoid" in accepted or "use_softmax" in accepted
    if sigmoid and (not by_region or any(isinstance(part, nn.CrossEntropyLoss) for part in parts)):
        raise ConfigError(
            f"losses.monai: {loss.name} judges classes that exclude each other, not regions. Use a loss with a "
            "sigmoid, such as DiceLoss or FocalLoss, and losses.cross_entropy for the binary cross-entropy."
        )
    return built


def _example(num_outputs: int, *, of_regions: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits of two small segments, and their truth."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_outputs, 8, 8, 8, generator=generator)
    if of_regions:
        return logits, (torch.rand(logits.shape, generator=generator) < 0.3).float()
    return logits, torch.randint(num_outputs, (2, 1, 8, 8, 8), generator=generator)


def _nature(loss: Built, num_outputs: int, *, of_regions: bool) -> tuple[bool, bool]:
    """Return whether a loss does not mind where voxels are, and whether it judges the segments one by one."""
    logits, truth = _example(num_outputs, of_regions=of_regions)
    together = float(loss(logits, truth))
    order = torch.randperm(512, generator=torch.Generator().manual_seed(1))
    mixed = float(loss(*(part.flatten(2)[:, :, order].view(part.shape) for part in (logits, truth))))
    joined = float(loss(*(torch.cat([*part], dim=1)[None] for part in (logits, truth))))
    near = 1e-4 * max(abs(together), 1.0)
    return abs(mixed - together) < near, abs(joined - together) >= near * 1e-2


def _try(loss: Built, name: str, num_outputs: int, *, of_regions: bool) -> None:
    """Call a loss on a few voxels, so that a loss of another kind is noticed before the training."""
    logits, target = _example(num_outputs, of_regions=of_regions)
    logits.requires_grad_()
    what = "regions" if of_regions else "classes"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            value = loss(logits, target)
    except Exception as error:  # whatever a loss makes of tensors that are not meant for it
        raise ConfigError(f"losses.monai: {name} cannot judge scores of {num_outputs} {what}: {error}") from error
    if value.numel() != 1 or not value.requires_grad:
        raise ConfigError(
            f"losses.monai: {name} must give one number to minimize, got a tensor of shape {tuple(value.shape)}. "
            "Leave out its argument 'reduction'."
        )
