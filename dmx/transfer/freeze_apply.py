"""Hold what a plan freezes: the only lines of freezing that touch a network."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dmx.transfer.freeze import FreezePlan

if TYPE_CHECKING:
    from torch import Tensor, nn


def hold(model: "nn.Module", plan: FreezePlan, epoch: int) -> None:
    """Make a network be as the plan wants it in an epoch, whatever was done to it before.

    Frozen parameters require no gradient and have none, so that autograd ends where no trainable parameter lies before,
    and no optimizer touches them. Frozen modules act as in inference, even after ``model.train()``. What the plan does
    not name is left alone.

    Args:
        model: The network.
        plan: What is frozen when.
        epoch: The epoch, from 0.
    """
    if not plan:
        return
    frozen, still = plan.frozen_parameters(epoch), plan.inference_modules(epoch)
    for name, parameter in model.named_parameters():
        if name not in plan.parameters:
            continue
        trains = name not in frozen
        if parameter.requires_grad != trains:
            parameter.requires_grad_(trains)
        if not trains and parameter.grad is not None:
            parameter.grad = None
    for name, module in model.named_modules():
        wanted = model.training and name not in still
        if name in plan.modules and module.training != wanted:
            module.training = wanted


def digests(model: "nn.Module", names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of tensors of a network by name: of type, shape and bytes, on whatever device they are."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: digest(tensors[name]) for name in names}


def digest(tensor: "Tensor") -> str:
    """Return the SHA-256 of a tensor: type, shape, and its values in order, however they lie in memory."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    content = hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)}".encode())
    content.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
