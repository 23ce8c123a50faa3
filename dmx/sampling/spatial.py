"""Affine and elastic maps of space, and patches sampled through them: only the box that is needed is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dmx.cohort.regions import IGNORED
from dmx.geometry import PatchPlan, Triple, triple
from dmx.sampling.fields import Axes, SmoothField, patch_axes
from dmx.sampling.patches import cut_deepmedic, mean_blocks

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

    @classmethod
    def along_axes(cls, scale: Sequence[float], offset: Sequence[float]) -> "AffineMap":
        """Return the map that scales and moves each axis."""
        a, b, c = scale
        return cls(((a, 0.0, 0.0), (0.0, b, 0.0), (0.0, 0.0, c)), _point(offset))

    def __call__(self, points: Points) -> Points:
        """Map points."""
        x, y, z = points
        # Grids broadcast: the sums grow to full size only with the last term.
        a, b, c = ((row[0] * x + t) + row[1] * y + row[2] * z for row, t in zip(self.matrix, self.offset, strict=True))
        return (a, b, c)

    def then(self, after: "AffineMap | None") -> "AffineMap":
        """Return this map followed by another."""
        if after is None:
            return self
        matrix = [[sum(after.matrix[r][n] * self.matrix[n][c] for n in range(3)) for c in range(3)] for r in range(3)]
        offset = [
            sum(m * t for m, t in zip(row, self.offset, strict=True)) + last
            for row, last in zip(after.matrix, after.offset, strict=True)
        ]
        a, b, c = (_point(row) for row in matrix)
        return AffineMap((a, b, c), _point(offset))

    def bounds(self, box: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        """Return the lowest and highest coordinates per axis of a box given by the same."""
        bounds = []
        for row, t in zip(self.matrix, self.offset, strict=True):
            ends = [sorted((m * low, m * high)) for m, (low, high) in zip(row, box, strict=True)]
            bounds.append((t + sum(low for low, _ in ends), t + sum(high for _, high in ends)))
        return bounds

    def inverse(self) -> "AffineMap":
        """Return the map back."""
        matrix = torch.linalg.inv(torch.tensor(self.matrix, dtype=torch.float64))
        offset = -matrix @ torch.tensor(self.offset, dtype=torch.float64)
        a, b, c = matrix.tolist()
        return AffineMap((_point(a), _point(b), _point(c)), _point(offset.tolist()))


_IDENTITY = AffineMap(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (0.0, 0.0, 0.0))


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
    def to_image(self) -> AffineMap:
        """The segment's affine map."""
        return self.segment or _IDENTITY

    @property
    def to_volume(self) -> AffineMap:
        """The segment's affine map followed by the image's."""
        return self.to_image.then(self.image)

    def displacement(self, axes: Axes) -> Tensor | None:
        """Return the elastic displacement ``[3, I, J, K]`` on a grid of voxels."""
        if self.elastic is None:
            return None
        i, j, k = (axis - first for axis, first in zip(axes, self.start, strict=True))
        return self.elastic.at((i, j, k))


def sample_patch(channels_CIJK: Tensor, start: Triple, patch: PatchPlan, spatial: SpatialMap) -> Tensor:
    """Return one patch of a segment seen through a map, float32 ``[C, *patch.shape]``.

    A subsampled patch is interpolated between averaged blocks, so it sees the turned surrounding at its own
    resolution. DeepMedic's border is kept where only the image is mapped; a segment's own map repeats the edge.
    """
    first = triple([s + o for s, o in zip(start, patch.offset, strict=True)])
    if patch.border == "deepmedic" and spatial.segment is None and spatial.elastic is None:
        return _sample_deepmedic(channels_CIJK, first, patch, spatial)
    mean = patch.reduction == "mean"
    axes = patch_axes(first, patch.shape, patch.factor, mean=mean)
    factor = patch.factor if mean else (1, 1, 1)
    return _sample(channels_CIJK, axes, first, factor, spatial).to(torch.float32)


def sample_labels(labels_IJK: Tensor, start: Triple, shape: Triple, spatial: SpatialMap) -> Tensor:
    """Return the nearest labels of a block seen through a map, int64, ``IGNORED`` where it leaves the image."""
    axes = patch_axes(start, shape, (1, 1, 1), mean=False)
    device = labels_IJK.device
    displacement = spatial.displacement(axes)
    seen = _grid(spatial.to_image, axes, displacement, dtype=torch.float64, device=device)
    read = seen if spatial.image is None else spatial.image(seen)
    index, inside = [], torch.ones((), dtype=torch.bool, device=device)
    for image, source, length in zip(seen, read, labels_IJK.shape, strict=True):
        voxel = (image + 0.5).floor()
        inside = inside & (voxel >= 0) & (voxel < length)
        index.append((source + 0.5).floor().long().clamp(0, length - 1))
    return torch.where(inside, labels_IJK[tuple(index)].to(torch.int64), IGNORED)


def _sample(channels_CIJK: Tensor, axes: Axes, first: Triple, factor: Triple, spatial: SpatialMap) -> Tensor:
    """Read the box of blocks that a grid needs and interpolate between the blocks' middles."""
    displacement = spatial.displacement(axes)
    # Positions are bounded on the CPU, so that a GPU need not be waited for.
    box = [(float(axis[0]), float(axis[-1])) for axis in axes]
    if displacement is not None:
        ranges = zip(displacement.amin(dim=(1, 2, 3)).tolist(), displacement.amax(dim=(1, 2, 3)).tolist(), strict=True)
        box = [(a + low, b + high) for (a, b), (low, high) in zip(box, ranges, strict=True)]
    box = spatial.to_volume.bounds(box)
    low, count = _blocks(box, first, factor, triple(channels_CIJK.shape[1:]))
    blocks = mean_blocks(channels_CIJK, low, count, factor)
    scale = [1 / step for step in factor]
    offset = [-(at + (step - 1) / 2) / step for at, step in zip(low, factor, strict=True)]
    total = spatial.to_volume.then(AffineMap.along_axes(scale, offset))
    return interpolate(blocks, axes, total, displacement=displacement, order=spatial.order)


def _grid(
    affine: AffineMap, axes: Axes, displacement: Tensor | None, *, dtype: torch.dtype, device: torch.device
) -> Points:
    """Return where a map puts a displaced grid."""
    i, j, k = (axis.to(device) for axis in axes)
    rows = zip(affine.matrix, affine.offset, strict=True)
    terms = ((row[0] * i + t, row[1] * j, row[2] * k) for row, t in rows)
    x, y, z = (
        a.to(dtype)[:, None, None] + b.to(dtype)[None, :, None] + c.to(dtype)[None, None, :] for a, b, c in terms
    )
    if displacement is None:
        return (x, y, z)
    matrix = torch.tensor(affine.matrix, dtype=dtype)
    moved = (matrix @ displacement.to(dtype).flatten(1)).reshape(displacement.shape).to(device)
    return (x + moved[0], y + moved[1], z + moved[2])


def interpolate(
    volume_CIJK: Tensor, axes: Axes, affine: AffineMap, *, displacement: Tensor | None = None, order: int = 1
) -> Tensor:
    """Return a volume's values where a map puts a grid, the nearest voxel's beyond its edge.

    Args:
        volume_CIJK: Floating point; float64 stays so, everything else gives float32.
        axes: Positions on each axis of the grid, on the CPU.
        affine: Map into voxels of the volume.
        displacement: Added to the positions before the map, ``[3, I, J, K]``; None: none.
        order: 1 linear, 0 nearest (a half is rounded up).
    """
    lengths = volume_CIJK.shape[1:]
    device = volume_CIJK.device
    if order == 0:
        points = _grid(affine, axes, displacement, dtype=torch.float64, device=device)
        i, j, k = ((p + 0.5).floor().long().clamp(0, n - 1) for p, n in zip(points, lengths, strict=True))
        return volume_CIJK[:, i, j, k]
    volume = volume_CIJK if volume_CIJK.dtype == torch.float64 else volume_CIJK.to(torch.float32)
    to_unit = AffineMap.along_axes([2.0 / max(n - 1, 1) for n in lengths], (-1.0, -1.0, -1.0))
    points = _grid(affine.then(to_unit), axes, displacement, dtype=volume.dtype, device=device)
    # grid_sample counts axes from the last.
    grid = torch.stack(points[::-1], dim=-1)
    return functional.grid_sample(volume[None], grid[None], padding_mode="border", align_corners=True)[0]


def _sample_deepmedic(channels_CIJK: Tensor, first: Triple, patch: PatchPlan, spatial: SpatialMap) -> Tensor:
    def read(voxels: Sequence[range]) -> Tensor:
        i, j, k = (torch.tensor(list(v), dtype=torch.float64) for v in voxels)
        return _sample(channels_CIJK, (i, j, k), (0, 0, 0), (1, 1, 1), spatial)

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
