"""Back to full resolution: the output of a subsampled pathway brought to the grid of the normal one."""

from typing import Literal

import torch
from torch import Tensor

from dmx.geometry import Triple

# Linear interpolation between voxel centers needs one coarse voxel beyond each end.
LINEAR_EXTRA = 1


def repeat_nearest(x_NCIJK: Tensor, factor: Triple, like_NCIJK: Tensor) -> Tensor:
    """Repeat each voxel ``factor`` times and keep the first voxels, as many as ``like`` has.

    Written with views and one copy: unlike interpolation, its gradient is deterministic on every device.
    """
    if factor != (1, 1, 1):
        last = like_NCIJK.is_contiguous(memory_format=torch.channels_last_3d) and not like_NCIJK.is_contiguous()
        x_NCIJK = _repeat_channels_last(x_NCIJK, factor) if last else _repeat(x_NCIJK, factor)
    _, _, i, j, k = like_NCIJK.shape
    return x_NCIJK[:, :, :i, :j, :k]


def _repeat(x_NCIJK: Tensor, factor: Triple) -> Tensor:
    n, c, i, j, k = x_NCIJK.shape
    f, g, h = factor
    return x_NCIJK.reshape(n, c, i, 1, j, 1, k, 1).expand(n, c, i, f, j, g, k, h).reshape(n, c, i * f, j * g, k * h)


def _repeat_channels_last(x_NCIJK: Tensor, factor: Triple) -> Tensor:
    """Repeat without leaving the memory layout, so that what follows keeps it."""
    n, c, i, j, k = x_NCIJK.shape
    f, g, h = factor
    x_NIJKC = x_NCIJK.permute(0, 2, 3, 4, 1).reshape(n, i, 1, j, 1, k, 1, c).expand(n, i, f, j, g, k, h, c)
    return x_NIJKC.reshape(n, i * f, j * g, k * h, c).permute(0, 4, 1, 2, 3)


def _linear_matrix(coarse: int, fine: int, factor: int, like: Tensor) -> Tensor:
    """Return the [fine, coarse] weights of linear interpolation; coarse voxel 0 ends where fine voxel 0 begins."""
    place = (torch.arange(fine, device=like.device) + 0.5) / factor - 0.5 + LINEAR_EXTRA
    distance = (place[:, None] - torch.arange(coarse, device=like.device)).abs()
    return (1.0 - distance).clamp(min=0.0).to(like.dtype)


def interpolate_linear(x_NCIJK: Tensor, factor: Triple, like_NCIJK: Tensor) -> Tensor:
    """Interpolate between voxel centers; ``x`` has one voxel more at the start, and what is needed at the end.

    Written as one matrix product per axis: unlike interpolation, its gradient is deterministic on every device.
    """
    for axis, size in enumerate(like_NCIJK.shape[2:]):
        if factor[axis] == 1:
            x_NCIJK = x_NCIJK.narrow(axis + 2, LINEAR_EXTRA, size)
            continue
        matrix = _linear_matrix(x_NCIJK.shape[axis + 2], size, factor[axis], x_NCIJK)
        x_NCIJK = (x_NCIJK.movedim(axis + 2, -1) @ matrix.T).movedim(-1, axis + 2)
    return x_NCIJK


def upsample(x_NCIJK: Tensor, factor: Triple, like_NCIJK: Tensor, how: Literal["nearest", "linear"]) -> Tensor:
    """Return features at full resolution, of the size and in the memory layout of ``like``."""
    return (repeat_nearest if how == "nearest" else interpolate_linear)(x_NCIJK, factor, like_NCIJK)
