"""Changes of intensity: the same for all patches of a segment, as one scanner would make them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dmx import seeding
from dmx.config.augmentation import (
    AugmentationSection,
    BiasFieldSection,
    BlurSection,
    GammaSection,
    NoiseSection,
)
from dmx.geometry import PatchPlan, SegmentPlan
from dmx.sampling.fields import draw_field, patch_axes


def change_intensities(
    patches: Sequence[Tensor], plan: SegmentPlan, section: AugmentationSection, key: int
) -> list[Tensor]:
    """Return a segment's patches with bias field, blur, gamma, shift and scale, and noise, each with its probability.

    The order is that of a scan: the coil, the resolution, the display of intensities, the noise last so that its
    deviation is the one that the settings name.

    Args:
        patches: One ``[C, I, J, K]`` per patch of the plan.
        plan: Sizes of the patches.
        section: Settings.
        key: Key of the segment's draws.
    """
    changed = list(patches)
    if happens(section.bias_field.probability, key, "bias_field"):
        changed = bias_field(changed, plan, section.bias_field, seeding.derive(key, "bias_field"))
    if happens(section.blur.probability, key, "blur"):
        changed = blur(changed, plan, section.blur, seeding.derive(key, "blur"))
    if happens(section.gamma.probability, key, "gamma"):
        changed = gamma(changed, section.gamma, seeding.derive(key, "gamma"))
    if happens(section.intensity.probability, key, "intensity"):
        setting = section.intensity
        shift = (setting.shift_mean, setting.shift_std)
        scale = (setting.scale_mean, setting.scale_std)
        changed = shift_scale(changed, shift, scale, seeding.derive(key, "intensity"))
    if happens(section.noise.probability, key, "noise"):
        changed = noise(changed, plan, section.noise, seeding.derive(key, "noise"))
    return changed


def happens(probability: float, key: int, what: str) -> bool:
    """Tell whether a change with a probability happens to the segment of a key."""
    return probability > 0 and seeding.scalar(seeding.derive(key, what, "happens")) < probability


def shift_scale(
    patches: Sequence[Tensor], shift: tuple[float, float], scale: tuple[float, float], key: int
) -> list[Tensor]:
    """Return (value + shift) · scale; per channel one normal draw of each, given as (mean, deviation)."""
    channels = patches[0].shape[0]
    draws = seeding.normal(key, (2, channels, 1, 1, 1))
    shifts = (draws[0] * shift[1] + shift[0]).to(patches[0].device)
    scales = (draws[1] * scale[1] + scale[0]).to(patches[0].device)
    return [(patch + shifts) * scales for patch in patches]


def gamma(patches: Sequence[Tensor], section: GammaSection, key: int) -> list[Tensor]:
    """Bend each channel between its extremes over all patches by an exponent whose logarithm is normal."""
    lowest = torch.stack([p.amin(dim=(1, 2, 3), keepdim=True) for p in patches]).amin(dim=0)
    highest = torch.stack([p.amax(dim=(1, 2, 3), keepdim=True) for p in patches]).amax(dim=0)
    width = highest - lowest
    # A constant channel stays as it is.
    divisor = torch.where(width > 0, width, 1.0)
    exponent = torch.exp(seeding.normal(key, (patches[0].shape[0], 1, 1, 1)) * section.log_std).to(width.device)
    return [((p - lowest) / divisor).clamp_(0.0, 1.0).pow_(exponent).mul_(width).add_(lowest) for p in patches]


def noise(patches: Sequence[Tensor], plan: SegmentPlan, section: NoiseSection, key: int) -> list[Tensor]:
    """Add normal noise; a voxel that averages n voxels has the deviation of one divided by √n."""
    std = section.std * seeding.scalar(seeding.derive(key, "std"))
    noisy = []
    for index, (patch, values) in enumerate(zip(plan.patches, patches, strict=True)):
        averaged = math.prod(patch.factor) if patch.reduction == "mean" else 1
        draws = seeding.normal(seeding.derive(key, "patch", index), values.shape, values.device)
        noisy.append(values + draws * (std / math.sqrt(averaged)))
    return noisy


def bias_field(patches: Sequence[Tensor], plan: SegmentPlan, section: BiasFieldSection, key: int) -> list[Tensor]:
    """Multiply each channel by a smooth field, one for all patches, whose logarithm is normal at its control points."""
    device = patches[0].device
    extent = max(n * f for patch in plan.patches for n, f in zip(patch.shape, patch.factor, strict=True))
    channels = patches[0].shape[0]
    # Coils vary on the scale of the body part: three control points across the widest patch.
    field = draw_field(key, plan, channels=channels, spacing=extent / 2, std=section.std)
    axes = [patch_axes(p.offset, p.shape, p.factor, mean=p.reduction == "mean") for p in plan.patches]
    return [values * torch.exp(field.at(a)).to(device) for a, values in zip(axes, patches, strict=True)]


def blur(patches: Sequence[Tensor], plan: SegmentPlan, section: BlurSection, key: int) -> list[Tensor]:
    """Smooth with a Gaussian of one width in voxels of the volume, narrower in voxels of a subsampled patch."""
    sigma = section.sigma * seeding.scalar(key)
    return [_smooth(values, sigma, patch) for patch, values in zip(plan.patches, patches, strict=True)]


def _smooth(values_CIJK: Tensor, sigma: float, patch: PatchPlan) -> Tensor:
    smooth = values_CIJK
    for axis, factor in enumerate(patch.factor, start=1):
        width = sigma / factor
        radius = math.ceil(3 * width)
        # Below a fifth of a voxel the neighbors weigh less than one in a hundred thousand.
        if width < 0.2:
            continue
        weights = [math.exp(-0.5 * (x / width) ** 2) for x in range(-radius, radius + 1)]
        length = smooth.shape[axis]
        index = torch.arange(-radius, length + radius, device=smooth.device).clamp(0, length - 1)
        padded = smooth.index_select(axis, index)
        smooth = torch.zeros_like(smooth)
        for shift, weight in enumerate(weights):
            smooth.add_(padded.narrow(axis, shift, length), alpha=weight / sum(weights))
    return smooth
