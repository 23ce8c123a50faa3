"""Weights that are no numbers, which a training that diverged or a damaged file leaves behind."""

from collections.abc import Mapping

import torch
from torch import Tensor

_SHOWN = 4


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold NaN or infinite values.

    A mask that is added before a softmax, of zeros and minus infinity, is as it should be.
    """
    return [name for name, tensor in state.items() if not _is_sound(tensor)]


def listed(names: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _is_sound(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return True
    return bool(((tensor == 0) | (tensor == -torch.inf)).all()) and bool((tensor == 0).any())
