"""Weights before training, as a pure function of seed and name."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dmx.config.model import WeightInitSection
from dmx.model.blocks import Convolution
from dmx.seeding import derive, normal


@torch.no_grad()
def draw_kernels(network: nn.Module, section: WeightInitSection, *, seed: int) -> None:
    """Draw every convolution kernel from a normal distribution and set its bias to 0.

    A kernel depends on the seed and on its name alone, so that a change elsewhere in the network leaves it as it is.
    ``fan_in`` is He et al. 2015, section 2.2: variance ``scale / (channels in · voxels of the kernel)``.
    """
    for name, module in network.named_modules():
        if not isinstance(module, Convolution):
            continue
        fan_in = module.in_channels * math.prod(module.kernel_size)
        std = section.std if section.name == "normal" else math.sqrt(section.scale / fan_in)
        key = derive(seed, "weights", f"{name}.weight")
        module.weight.copy_(normal(key, module.weight.shape, module.weight.device) * std)
        if module.bias is not None:
            module.bias.zero_()


@contextmanager
def drawn_from(seed: int, name: str) -> Iterator[None]:
    """Let torch's own initialization draw from a seed; afterwards the global random state is what it was.

    Args:
        seed: The experiment's seed.
        name: Kind of network.
    """
    with torch.random.fork_rng(devices=[]):
        # Only the generator of the CPU: torch.manual_seed would also reset those of the GPUs.
        torch.default_generator.manual_seed(derive(seed, "weights", name))
        yield
