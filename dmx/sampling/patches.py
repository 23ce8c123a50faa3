"""Cut the patches of a segment out of a volume, wherever the segment lies."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dmx.cohort.regions import IGNORED
from dmx.errors import ModelError
from dmx.geometry import PatchPlan, SegmentPlan, Triple, triple


def cut_patches(channels_CIJK: Tensor, start: Triple, plan: SegmentPlan) -> list[Tensor]:
    """Return what each pathway reads of the segment that begins at a voxel.

    Args:
        channels_CIJK: Channels of the whole volume.
        start: First voxel of the segment; the segment may leave the volume, be larger, or lie outside of it.
        plan: Sizes of the segment and its patches.

    Returns:
        One float32 tensor ``[C, *patch.shape]`` per patch, in the plan's order.

    Raises:
        ModelError: A plan joins DeepMedic's border with averaging, which DeepMedic does not have.
    """
    return [cut_patch(channels_CIJK, start, patch) for patch in plan.patches]


def cut_patch(channels_CIJK: Tensor, start: Triple, patch: PatchPlan) -> Tensor:
    """Return one patch ``[C, *patch.shape]`` of the segment that begins at ``start``."""
    first = triple([s + o for s, o in zip(start, patch.offset, strict=True)])
    if patch.border == "deepmedic":

        def read(axes: Sequence[range]) -> Tensor:
            return channels_CIJK[(slice(None), *(slice(v.start, v.stop, v.step) for v in axes))]

        return cut_deepmedic(read, triple(channels_CIJK.shape[1:]), first, patch)
    cut = mean_blocks if patch.reduction == "mean" else first_voxels
    own = _own(cut(channels_CIJK, first, patch.shape, patch.factor))
    if patch.border == "zero":
        _clear_outside(own, first, patch.factor, triple(channels_CIJK.shape[1:]))
    return own


def _clear_outside(patch_CIJK: Tensor, first: Triple, factor: Triple, lengths: Triple) -> None:
    """Put zeros where a patch voxel covers no voxel of the volume."""
    for axis, (low, step, length) in enumerate(zip(first, factor, lengths, strict=True), start=1):
        size = patch_CIJK.shape[axis]
        before = min(size, max(0, -low // step))
        inside = min(size, max(0, -((low - length) // step)))
        patch_CIJK.narrow(axis, 0, before).zero_()
        patch_CIJK.narrow(axis, inside, size - inside).zero_()


def _own(view: Tensor) -> Tensor:
    """Copy what may be a view of the volume, so that nobody writes into a cached case."""
    return view.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def cut_labels(labels_IJK: Tensor, start: Triple, shape: Triple) -> Tensor:
    """Return a block of the label map as int64, :data:`~dmx.cohort.regions.IGNORED` outside of the volume."""
    block = torch.full(shape, IGNORED, dtype=torch.int64, device=labels_IJK.device)
    source, target = [], []
    for low, size, length in zip(start, shape, labels_IJK.shape, strict=True):
        first, last = max(low, 0), min(low + size, length)
        if first >= last:
            return block
        source.append(slice(first, last))
        target.append(slice(first - low, last - low))
    block[tuple(target)] = labels_IJK[tuple(source)].to(torch.int64)
    return block


def mean_blocks(volume_CIJK: Tensor, first: Triple, count: Triple, factor: Triple) -> Tensor:
    """Return the means of ``count`` blocks of ``factor`` voxels; the nearest voxel stands for those outside.

    One axis after the other, by sums of strided views: several times faster than pooling on a CPU, because the first
    sums run over whole planes and nothing is padded.

    >>> mean_blocks(torch.arange(4.0).reshape(1, 1, 1, 4), (0, 0, -2), (1, 1, 3), (1, 1, 2)).flatten().tolist()
    [0.0, 0.5, 2.5]
    """
    inner, lows = [slice(None)], []
    for low, number, step, length in zip(first, count, factor, volume_CIJK.shape[1:], strict=True):
        begin = min(max(low, 0), length - 1)
        inner.append(slice(begin, min(max(low + number * step, 1), length)))
        lows.append(low - begin)
    box = volume_CIJK[tuple(inner)]
    for axis, (low, number, step) in enumerate(zip(lows, count, factor, strict=True), start=1):
        box = _sum_axis(box, axis, low, number, step)
    covered = math.prod(factor)
    return box if covered == 1 else box / covered


def _sum_axis(box: Tensor, axis: int, low: int, count: int, step: int) -> Tensor:
    """Add up blocks along one axis: whole blocks as views, those that leave the box plane by plane."""
    length = box.shape[axis]
    begin = min(count, max(0, -(low // step)))
    end = max(begin, min(count, (length - low) // step))

    def leaving(block: int) -> Tensor:
        planes = [min(max(at, 0), length - 1) for at in range(low + block * step, low + (block + 1) * step)]
        total = box.narrow(axis, planes[0], 1)
        if planes[0] == planes[-1]:
            return total if step == 1 else total * step
        for at in planes[1:]:
            total = total + box.narrow(axis, at, 1)
        return total

    parts = [leaving(block) for block in range(begin)]
    if begin < end:
        parts.append(_sum_blocks(box.narrow(axis, low + begin * step, (end - begin) * step), axis, step))
    parts += [leaving(block) for block in range(end, count)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


def _sum_blocks(planes: Tensor, axis: int, step: int) -> Tensor:
    if step == 1:
        return planes
    first, second, *others = planes.unfold(axis, step, step).unbind(-1)
    total = first + second
    for other in others:
        total += other
    return total


def first_voxels(volume_CIJK: Tensor, first: Triple, count: Triple, factor: Triple) -> Tensor:
    """Return every ``factor``-th voxel from ``first`` on; the nearest voxel stands for those outside.

    >>> first_voxels(torch.arange(4.0).reshape(1, 1, 1, 4), (0, 0, -2), (1, 1, 3), (1, 1, 2)).flatten().tolist()
    [0.0, 0.0, 2.0]
    """
    box = volume_CIJK
    for axis, (low, number, step) in enumerate(zip(first, count, factor, strict=True), start=1):
        index = torch.arange(low, low + number * step, step, device=box.device)
        box = box.index_select(axis, index.clamp(0, box.shape[axis] - 1))
    return box


def cut_deepmedic(
    read: Callable[[Sequence[range]], Tensor], lengths: Triple, first: Triple, patch: PatchPlan
) -> Tensor:
    """Cut as DeepMedic v0.8.4 does: every ``factor``-th voxel; the mean of the corners stands for the outside.

    Args:
        read: Returns the voxels ``[C, I, J, K]`` of the volume at the product of three ranges.
        lengths: Size of the volume in voxels.
        first: First voxel that the patch covers.
        patch: Size, factor and reduction of the patch.
    """
    if patch.reduction != "stride":
        raise ModelError(
            f"Patch '{patch.name}' has border 'deepmedic' and reduction '{patch.reduction}'. "
            "DeepMedic's border goes with reduction 'stride' only; use border 'edge' to average."
        )
    axes = [deepmedic_axis(*a) for a in zip(first, patch.shape, patch.factor, lengths, strict=True)]
    inside = read([voxels for voxels, _ in axes]) if all(voxels for voxels, _ in axes) else None
    if inside is not None and inside.shape[1:] == patch.shape:
        return _own(inside)
    corners = read([range(0, length, max(length - 1, 1)) for length in lengths])
    filled = corners.to(torch.float32).mean(dim=(1, 2, 3), keepdim=True).expand(-1, *patch.shape).clone()
    if inside is not None:
        target = [slice(at, at + len(voxels)) for voxels, at in axes]
        filled[(slice(None), *target)] = inside.to(torch.float32)
    return filled


def deepmedic_axis(first: int, count: int, factor: int, length: int) -> tuple[range, int]:
    """Return the voxels that DeepMedic reads on an axis and the patch voxel where it writes the first of them.

    The grid restarts at voxel 0 when the patch begins before the volume, so it is then up to ``factor - 1`` voxels off.

    >>> deepmedic_axis(-5, 4, 3, 100)
    (range(0, 7, 3), 1)
    """
    voxels = range(max(first, 0), max(min(first + count * factor, length), 0), factor)
    return voxels, (0 if first >= 0 else -first // factor)
