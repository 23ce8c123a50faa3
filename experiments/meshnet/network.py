"""A network of dilated convolutions, all at full resolution."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def dilated(in_channels: int, out_channels: int, layers: Sequence[Sequence[int]], kernel: int = 3) -> nn.Module:
    """Return dilated convolutions with an ELU after each, `features`, and a convolution of one voxel, the `head`.

    Args:
        in_channels: Channels of the scan.
        out_channels: Classes.
        layers: Width and dilation of each layer but the head.
        kernel: Voxels that a layer sees per axis, an odd number; outside of the segment it sees zeros.
    """
    features: list[nn.Module] = []
    for width, dilation in layers:
        padding = dilation * (kernel // 2)
        features += [nn.Conv3d(in_channels, width, kernel, padding=padding, dilation=dilation), nn.ELU()]
        in_channels = width
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), head=nn.Conv3d(in_channels, out_channels, 1)))
