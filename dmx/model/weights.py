"""Weights before training, as a pure function of seed and name."""

import math

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
