"""A network of dilated convolutions, all at full resolution."""

from collections.abc import Sequence

from torch import nn


def dilated(in_channels: int, out_channels: int, layers: Sequence[Sequence[int]], kernel: int = 3) -> nn.Module:
    """Return dilated convolutions with an ELU after each; the last one, of a single voxel, gives the class scores.

    The modules are numbered: convolutions 0, 2, 4, … and between them the ELUs.

    Args:
        in_channels: Channels of the scan.
        out_channels: Classes.
        layers: Width and dilation of each layer but the last.
        kernel: Voxels that a layer sees per axis, an odd number; outside of the segment it sees zeros.
    """
    modules: list[nn.Module] = []
    for width, dilation in layers:
        padding = dilation * (kernel // 2)
        modules += [nn.Conv3d(in_channels, width, kernel, padding=padding, dilation=dilation), nn.ELU()]
        in_channels = width
    return nn.Sequential(*modules, nn.Conv3d(in_channels, out_channels, 1))
