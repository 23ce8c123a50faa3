"""Smooth random fields over a segment, given by random numbers at a coarse grid of control points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmx import seeding
from dmx.geometry import SegmentPlan

Axes = tuple[Tensor, Tensor, Tensor]
"""Positions on each axis, in voxels; together they stand for the grid of their product."""


@dataclass(frozen=True)
class SmoothField:
    """A field interpolated between control points by cubic convolution (Keys 1981), which passes through them.

    Attributes:
        controls: Values ``[C, I, J, K]`` at the control points, on the CPU.
        origin: Position of the first control point in voxels of the segment.
        spacing: Distance of the control points in voxels.
    """

    controls: Tensor
    origin: tuple[float, float, float]
    spacing: float

    def at(self, axes: Axes) -> Tensor:
        """Return the field ``[C, I, J, K]`` on the grid of three axes of positions, all on the CPU."""
        field = self.controls
        for axis, positions in enumerate(axes):
            weights = _weights((positions - self.origin[axis]) / self.spacing, field.shape[1])
            # Each pass moves the axis that it interpolates to the end, so that three passes restore the order.
            field = torch.tensordot(field, weights.to(field.dtype), dims=([1], [1]))
        return field


def draw_field(key: int, plan: SegmentPlan, *, channels: int, spacing: float, std: float) -> SmoothField:
    """Draw a field that covers every patch of a segment, the same one for all of them."""
    low = [min(0, *(patch.offset[axis] for patch in plan.patches)) for axis in range(3)]
    high = [
        max(plan.shape[axis], *(p.offset[axis] + p.shape[axis] * p.factor[axis] for p in plan.patches))
        for axis in range(3)
    ]
    # One control point before and two behind: the cubic reads two on each side.
    counts = [math.ceil((b - a) / spacing) + 4 for a, b in zip(low, high, strict=True)]
    controls = seeding.normal(key, (channels, *counts)) * std
    i, j, k = (a - spacing for a in low)
    return SmoothField(controls, (i, j, k), spacing)


def _weights(position: Tensor, count: int) -> Tensor:
    """Return the weights ``[n, count]`` of the control points at positions in units of their distance."""
    base = position.floor()
    u = position - base
    near = torch.stack(
        [
            ((-0.5 * u + 1.0) * u - 0.5) * u,
            (1.5 * u - 2.5) * u * u + 1.0,
            ((-1.5 * u + 2.0) * u + 0.5) * u,
            (0.5 * u - 0.5) * u * u,
        ],
        dim=1,
    )
    index = (base.long()[:, None] + torch.arange(-1, 3)).clamp(0, count - 1)
    return torch.zeros(len(position), count, dtype=near.dtype).scatter_add_(1, index, near)


def patch_axes(offset: Sequence[int], shape: Sequence[int], factor: Sequence[int], *, mean: bool) -> Axes:
    """Return the positions of a patch's voxels: the middle of what each averages, or the voxel that it takes."""
    i, j, k = (
        torch.arange(n, dtype=torch.float64) * f + (o + ((f - 1) / 2 if mean else 0.0))
        for o, n, f in zip(offset, shape, factor, strict=True)
    )
    return (i, j, k)
