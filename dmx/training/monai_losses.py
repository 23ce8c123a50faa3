"""Losses of MONAI by their class names."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmx.config.optimization import MonaiLoss
from dmx.errors import ConfigError, suggest

_CERTAIN = 30.0
"""Logit that stands for certainty: exp(-30) is below the resolution of float32."""


def without_ignored(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and target in which ignored voxels are background, predicted with certainty.

    MONAI's losses know no ignored voxels. Made so, they have no gradient and next to no loss; the mean over the voxels
    and the overlap of the background still count them.

    Args:
        logits: ``[N, C, I, J, K]``.
        target: ``[N, I, J, K]`` int64, -1 where there is no label.

    Returns:
        Logits ``[N, C, I, J, K]`` and target ``[N, 1, I, J, K]``.
    """
    valid = (target >= 0).unsqueeze(1)
    certain = torch.full((logits.shape[1],), -_CERTAIN, device=logits.device)
    certain[0] = _CERTAIN
    return torch.where(valid, logits, certain.view(1, -1, 1, 1, 1)), target.clamp(min=0).unsqueeze(1)


def monai_loss(loss: MonaiLoss, num_classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Build a loss of MONAI that takes logits and class indices, and try it once.

    ``to_onehot_y`` and ``softmax`` (or ``use_softmax``) are set where the loss has them, unless they are given.

    Args:
        loss: Its name and arguments.
        num_classes: Classes of the network.

    Raises:
        ConfigError: MONAI has no such loss, it refuses its arguments, or it cannot judge class scores.
    """
    import monai.losses

    names = [name for name in dir(monai.losses) if name.endswith("Loss")]
    if loss.name not in names:
        raise ConfigError(f"losses.monai: MONAI has no loss '{loss.name}'.{suggest(loss.name, names)}")
    factory = getattr(monai.losses, loss.name)
    accepted = inspect.signature(factory).parameters
    filled: dict[str, Any] = {name: True for name in ("to_onehot_y", "softmax", "use_softmax") if name in accepted}
    try:
        built: Callable[[Tensor, Tensor], Tensor] = factory(**{**filled, **loss.arguments})
    except Exception as error:  # each loss checks its arguments in its own way
        raise ConfigError(f"losses.monai: {loss.name} refuses its arguments {dict(loss.arguments)}: {error}") from error
    _try(built, loss.name, num_classes)
    return built


def _try(loss: Callable[[Tensor, Tensor], Tensor], name: str, num_classes: int) -> None:
    """Call a loss on a few voxels, so that a loss of another kind is noticed before the training."""
    logits = torch.zeros(1, num_classes, 8, 8, 8, requires_grad=True)
    target = (torch.arange(512) % num_classes).view(1, 1, 8, 8, 8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            value = loss(logits, target)
    except Exception as error:  # whatever a loss makes of tensors that are not meant for it
        raise ConfigError(f"losses.monai: {name} cannot judge scores of {num_classes} classes: {error}") from error
    if value.numel() != 1 or not value.requires_grad:
        raise ConfigError(
            f"losses.monai: {name} must give one number to minimize, got a tensor of shape {tuple(value.shape)}. "
            "Leave out its argument 'reduction'."
        )
