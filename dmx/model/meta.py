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
    """Return parameters and buffers by name, as shapes without values."""
    state: dict[str, Tensor] = {
        name: torch.empty_like(parameter, device="meta").requires_grad_(parameter.requires_grad)
        for name, parameter in network.named_parameters()
    }
    state.update({name: torch.empty_like(buffer, device="meta") for name, buffer in network.named_buffers()})
    return state


def meta_patches(plan: SegmentPlan, *, batch_size: int, num_channels: int) -> list[Tensor]:
    """Return the network's inputs for a plan, as shapes without values."""
    return [torch.empty(batch_size, num_channels, *patch.shape, device="meta") for patch in plan.patches]


def meta_call(network: nn.Module, state: dict[str, Tensor], inputs: Tensor | Sequence[Tensor]) -> object:
    """Return what the network gives for its input, as shapes without values."""
    output: object = functional_call(network, state, (inputs,))
    return output
