"""Affine and elastic maps of space, and patches sampled through them: only the box that is needed is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from dmx.geometry import PatchPlan, Triple, triple
from dmx.sampling.batch import IGNORED
from dmx.sampling.fields import OVERSHOOT, Axes, SmoothField, patch_axes
from dmx.sampling.patches import cut_deepmedic, first_voxels, mean_blocks

Point = tuple[float, float, float]
Points = tuple[Tensor, Tensor, Tensor]
"""The three coordinates of points, tensors that broadcast to the points' grid."""


@dataclass(frozen=True)
class AffineMap:
    """Where a voxel of the changed volume is read from: ``matrix @ x + offset``, in voxels.

    Attributes:
        matrix: Three rows.
        offset: Three numbers.
    """

    matrix: tuple[Point, Point, Point]
    offset: Point

    @classmethod
    def about(cls, matrix: Sequence[Sequence[float]], center: Sequence[float]) -> "AffineMap":
        """Return the map that applies a matrix about a fixed point.

        >>> AffineMap.about([[2, 0, 0], [0, 1, 0], [0, 0, 1]], (5, 0, 0)).offset
        (-5.0, 0.0, 0.0)
        """
        a, b, c = (_point(row) for row in matrix)
        moved = (sum(m * x for m, x in zip(row, center, strict=True)) for row in (a, b, c))
        return cls((a, b, c), _point([x - y for x, y in zip(center, moved, strict=True)]))

    def __call__(self, points: Points) -> Points:
        """Map points."""
        x, y, z = points
        a, b, c = (row[0] * x + row[1] * y + row[2] * z + t for row, t in zip(self.matrix, self.offset, strict=True))
        return (a, b, c)

    def corners(self, box: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        """Return the lowest and highest coordinates per axis of a box given by the same."""
        ends = list(product(*box))
        mapped = [
            [sum(m * x for m, x in zip(row, end, strict=True)) + t for end in ends]
            for row, t in zip(self.matrix, self.offset, strict=True)
        ]
        return [(min(values), max(values)) for values in mapped]

    def inverse(self) -> "AffineMap":
        """Return the map back."""
        matrix = torch.linalg.inv(torch.tensor(self.matrix, dtype=torch.float64))
        offset = -matrix @ torch.tensor(self.offset, dtype=torch.float64)
        a, b, c = matrix.tolist()
        return AffineMap((_point(a), _point(b), _point(c)), _point(offset.tolist()))


@dataclass(frozen=True)
class SpatialMap:
    """Where a segment's voxels are read from: first the segment's own map, then the map of the whole image.

    Attributes:
        segment: Affine map of the segment, in voxels of the volume; None: none.
        elastic: Displacement ``[3, I, J, K]`` added before it, in voxels; None: none.
        start: First voxel of the segment, to which the displacement refers.
        image: Affine map of the whole image; None: none.
        order: 1 interpolates channels linearly, 0 takes the nearest voxel. Labels always take the nearest.
    """

    segment: AffineMap | None = None
    elastic: SmoothField | None = None
    start: Triple = (0, 0, 0)
    image: AffineMap | None = None
    order: int = 1

    @property
    def reach(self) -> float:
        """Largest displacement in voxels along an axis."""
        return OVERSHOOT * float(self.elastic.controls.abs().amax()) if self.elastic is not None else 0.0

    def in_image(self, axes: Axes) -> Points:
        """Return where a grid of voxels lies in the image, changed by the image's map or not."""
        i, j, k = axes
        points = (i[:, None, None], j[None, :, None], k[None, None, :])
        if self.elastic is not None:
            local = (i - self.start[0], j - self.start[1], k - self.start[2])
            moved = self.elastic.at(local).to(i.dtype)
            points = (points[0] + moved[0], points[1] + moved[1], points[2] + moved[2])
        return points if self.segment is None else self.segment(points)

    def in_volume(self, points: Points) -> Points:
        """Return where points of the image lie in the volume."""
        return points if self.image is None else self.image(points)

    def bounds(self, axes: Axes) -> list[tuple[float, float]]:
        """Return the box of the volume that a grid reads, lowest and highest coordinate per axis."""
        box = [(float(axis[0]) - self.reach, float(axis[-1]) + self.reach) for axis in axes]
        for step in (self.segment, self.image):
            box = box if step is None else step.corners(box)
        return box


def sample_patch(channels_CIJK: Tensor, start: Triple, patch: PatchPlan, spatial: SpatialMap) -> Tensor:
    """Return one patch of a segment seen through a map, float32 ``[C, *patch.shape]``.

    A subsampled patch is interpolated between averaged blocks, so it sees the turned surrounding at its own
    resolution. DeepMedic's border is kept where only the image is mapped; a segment's own map repeats the edge.
    """
    first = triple([s + o for s, o in zip(start, patch.offset, strict=True)])
    if patch.border == "deepmedic" and spatial.segment is None and spatial.elastic is None:
        return _sample_deepmedic(channels_CIJK, first, patch, spatial)
    mean = patch.reduction == "mean"
    factor = patch.factor if mean else (1, 1, 1)
    # Positions are computed on the CPU where they decide what is read, so that a GPU need not be waited for.
    box = spatial.bounds(patch_axes(first, patch.shape, patch.factor, mean=mean, device="cpu"))
    axes = patch_axes(first, patch.shape, patch.factor, mean=mean, device=channels_CIJK.device)
    points = spatial.in_volume(spatial.in_image(axes))
    low, count = _blocks(box, first, factor, triple(channels_CIJK.shape[1:]))
    cut = mean_blocks if mean else first_voxels
    blocks = cut(channels_CIJK, low, count, factor)
    i, j, k = ((p - a - (f - 1) / 2) / f for p, a, f in zip(points, low, factor, strict=True))
    return interpolate(blocks, (i, j, k), spatial.order).to(torch.float32)


def sample_labels(labels_IJK: Tensor, start: Triple, shape: Triple, spatial: SpatialMap) -> Tensor:
    """Return the nearest labels of a block seen through a map, int64, ``IGNORED`` where it leaves the image."""
    axes = patch_axes(start, shape, (1, 1, 1), mean=False, device=labels_IJK.device)
    seen = spatial.in_image(axes)
    index, inside = [], torch.ones((), dtype=torch.bool, device=labels_IJK.device)
    for image, source, length in zip(seen, spatial.in_volume(seen), labels_IJK.shape, strict=True):
        voxel = (image + 0.5).floor()
        inside = inside & (voxel >= 0) & (voxel < length)
        index.append((source + 0.5).floor().long().clamp(0, length - 1))
    block = labels_IJK[tuple(index)].to(torch.int64)
    return torch.where(inside, block, IGNORED)


def interpolate(volume_CIJK: Tensor, points: Points, order: int) -> Tensor:
    """Return a volume's values at points in its voxels, the nearest voxel's beyond its edge.

    Args:
        volume_CIJK: Floating point; its precision is that of the result.
        points: Coordinates.
        order: 1 linear, 0 nearest (a half is rounded up).
    """
    lengths = volume_CIJK.shape[1:]
    if order == 0:
        i, j, k = ((p + 0.5).floor().long().clamp(0, n - 1) for p, n in zip(points, lengths, strict=True))
        return volume_CIJK[:, i, j, k]
    volume = volume_CIJK if volume_CIJK.dtype == torch.float64 else volume_CIJK.to(torch.float32)
    unit = [(p * (2.0 / max(n - 1, 1)) - 1.0).to(volume.dtype) for p, n in zip(points, lengths, strict=True)]
    # grid_sample counts axes from the last.
    shape = [max(u.shape[axis] for u in unit) for axis in range(3)]
    grid = torch.stack([u.expand(shape) for u in reversed(unit)], dim=-1)
    sampled = functional.grid_sample(volume[None], grid[None], padding_mode="border", align_corners=True)
    return sampled[0]


def _sample_deepmedic(channels_CIJK: Tensor, first: Triple, patch: PatchPlan, spatial: SpatialMap) -> Tensor:
    def read(voxels: Sequence[range]) -> Tensor:
        i, j, k = (torch.tensor(list(v), dtype=torch.float64) for v in voxels)
        lengths = triple(channels_CIJK.shape[1:])
        low, count = _blocks(spatial.bounds((i, j, k)), (0, 0, 0), (1, 1, 1), lengths)
        box = first_voxels(channels_CIJK, low, count, (1, 1, 1))
        device = channels_CIJK.device
        x, y, z = spatial.in_volume(spatial.in_image((i.to(device), j.to(device), k.to(device))))
        return interpolate(box, (x - low[0], y - low[1], z - low[2]), spatial.order)

    return cut_deepmedic(read, triple(channels_CIJK.shape[1:]), first, patch)


def _blocks(
    box: Sequence[tuple[float, float]], first: Triple, factor: Triple, lengths: Triple
) -> tuple[Triple, Triple]:
    """Return the first voxel and the number of blocks that surround a box, on the grid of the patch.

    Beyond one block outside of the volume all blocks are equal: the box ends there.
    """
    lows, counts = [], []
    for (lowest, highest), origin, step, length in zip(box, first, factor, lengths, strict=True):
        inside = [min(max(end, -step), length - 1 + step) for end in (lowest, highest)]
        begin, end = (math.floor((x - origin - (step - 1) / 2) / step) for x in inside)
        lows.append(origin + begin * step)
        counts.append(end + 2 - begin)
    return triple(lows), triple(counts)


def _point(values: Sequence[float]) -> Point:
    x, y, z = (float(v) for v in values)
    return (x, y, z)
