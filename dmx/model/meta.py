"""Run a network without computing: shapes only, no memory, no change of the network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dmx.geometry import SegmentPlan


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Switch a network to training or prediction; afterwards each module is again in the mode it was in."""
    before = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


def meta_state(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, as shapes without values.

    Each module appears under its first name, so that one that is registered twice is replaced, and put back, once.
    """
    shapes: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for prefix, module in network.named_modules():
        own = [*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False)]
        for name, value in own:
            if id(value) not in shapes:
                shapes[id(value)] = torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
            state[name] = shapes[id(value)]
    return state


def meta_patches(plan: SegmentPlan, *, batch_size: int, num_channels: int) -> list[Tensor]:
    """Return the network's inputs for a plan, as shapes without values."""
    return [torch.empty(batch_size, num_channels, *patch.shape, device="meta") for patch in plan.patches]


def meta_call(network: nn.Module, state: dict[str, Tensor], inputs: Tensor | Sequence[Tensor]) -> object:
    """Return what the network gives for its input, as shapes without values."""
    output: object = functional_call(network, state, (inputs,), tie_weights=False)
    return output
