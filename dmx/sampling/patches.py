"""Cut the patches of a segment out of a volume, wherever the segment lies."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dmx.errors import ModelError
from dmx.geometry import PatchPlan, SegmentPlan, Triple, triple
from dmx.sampling.batch import IGNORED


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
        return _cut_deepmedic(channels_CIJK, first, patch)
    size = triple([n * f for n, f in zip(patch.shape, patch.factor, strict=True)])
    box = crop_edge(channels_CIJK, first, size)
    reduced = block_mean(box, patch.factor) if patch.reduction == "mean" else box[strided(patch.factor)]
    return reduced.to(torch.float32).contiguous()


def cut_labels(labels_IJK: Tensor, start: Triple, shape: Triple) -> Tensor:
    """Return a block of the label map as int64, :data:`~dmx.sampling.batch.IGNORED` outside of the volume."""
    block = torch.full(shape, IGNORED, dtype=torch.int64, device=labels_IJK.device)
    source, target = [], []
    for low, size, length in zip(start, shape, labels_IJK.shape, strict=True):
        inner = slice(max(low, 0), max(min(low + size, length), 0))
        source.append(inner)
        target.append(slice(inner.start - low, max(inner.stop - low, inner.start - low)))
    inside = labels_IJK[tuple(source)]
    if inside.numel():
        block[tuple(target)] = inside.to(torch.int64)
    return block


def crop_edge(volume_CIJK: Tensor, start: Triple, size: Triple) -> Tensor:
    """Return a box of a volume whose outside repeats the nearest voxel; a view where the box lies inside.

    >>> crop_edge(torch.arange(4.0).reshape(1, 1, 1, 4), (0, 0, -2), (1, 1, 4)).flatten().tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    inner, padding = [slice(None)], []
    for low, count, length in zip(start, size, volume_CIJK.shape[1:], strict=True):
        first = min(max(low, 0), length - 1)
        last = min(max(low + count, 1), length)
        before = min(max(-low, 0), count - (last - first))
        inner.append(slice(first, last))
        padding.append((before, count - (last - first) - before))
    box = volume_CIJK[tuple(inner)]
    if not any(before or after for before, after in padding):
        return box
    # torch pads the last axis first.
    flat = [side for pair in reversed(padding) for side in pair]
    return functional.pad(box.unsqueeze(0), flat, mode="replicate").squeeze(0)


def block_mean(box_CIJK: Tensor, factor: Sequence[int]) -> Tensor:
    """Return the means of blocks of ``factor`` voxels.

    One axis after the other, by sums of strided views: several times faster than pooling on a CPU, because the first
    sums run over whole planes.

    >>> block_mean(torch.arange(4.0).reshape(1, 1, 1, 4), (1, 1, 2)).flatten().tolist()
    [0.5, 2.5]
    """
    mean = box_CIJK
    for axis, step in enumerate(factor, start=1):
        if step > 1:
            first, second, *others = mean.unfold(axis, step, step).unbind(-1)
            total = first + second
            for other in others:
                total += other
            mean = total.div_(step)
    return mean


def strided(factor: Sequence[int]) -> tuple[slice, ...]:
    """Return the index that takes the first voxel of each block from ``[C, I, J, K]``."""
    return (slice(None), *(slice(None, None, step) for step in factor))


def deepmedic_axis(first: int, count: int, factor: int, length: int) -> tuple[range, int]:
    """Return the voxels that DeepMedic reads on an axis and the patch voxel where it writes the first of them.

    The grid restarts at voxel 0 when the patch begins before the volume, so it is then up to ``factor - 1`` voxels off.

    >>> deepmedic_axis(-5, 4, 3, 100)
    (range(0, 7, 3), 1)
    """
    voxels = range(max(first, 0), max(min(first + count * factor, length), 0), factor)
    return voxels, (0 if first >= 0 else -first // factor)


def corner_mean(corners_C222: Tensor) -> Tensor:
    """Return the mean of each channel's eight corner voxels, ``[C, 1, 1, 1]``."""
    return corners_C222.to(torch.float32).mean(dim=(1, 2, 3), keepdim=True)


def _cut_deepmedic(channels_CIJK: Tensor, first: Triple, patch: PatchPlan) -> Tensor:
    """Cut as DeepMedic v0.8.4 does: every ``factor``-th voxel; the mean of the corners stands for the outside."""
    if patch.reduction != "stride":
        raise ModelError(
            f"Patch '{patch.name}' has border 'deepmedic' and reduction '{patch.reduction}'. "
            "DeepMedic's border goes with reduction 'stride' only; use border 'edge' to average."
        )
    lengths = channels_CIJK.shape[1:]
    axes = [deepmedic_axis(*a) for a in zip(first, patch.shape, patch.factor, lengths, strict=True)]
    read = channels_CIJK[(slice(None), *(slice(v.start, v.stop, v.step) for v, _ in axes))]
    if read.shape[1:] == patch.shape:
        return read.to(torch.float32).contiguous()
    corners = channels_CIJK[(slice(None), *(slice(None, None, max(n - 1, 1)) for n in lengths))]
    return place(read, corner_mean(corners), [low for _, low in axes], patch.shape)


def place(read_CIJK: Tensor, fill_C111: Tensor, low: Sequence[int], shape: Triple) -> Tensor:
    """Return a patch of ``shape`` that holds what was read from ``low`` on and the fill elsewhere."""
    patch = fill_C111.expand(-1, *shape).clone()
    if read_CIJK.numel():
        target = [slice(at, at + n) for at, n in zip(low, read_CIJK.shape[1:], strict=True)]
        patch[(slice(None), *target)] = read_CIJK.to(torch.float32)
    return patch
