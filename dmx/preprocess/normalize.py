"""Make intensities comparable: z-score or range in a region, a fixed window, or fixed numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.config.sections import NormalizeSection
from dmx.errors import CohortError


def normalize_channel(
    image_IJK: NDArray[Any], region: NDArray[np.bool_], section: NormalizeSection, *, case: str, channel: str
) -> NDArray[np.float32]:
    """Return the channel as the network sees it.

    A channel whose measured voxels are all equal becomes 0 everywhere: it tells nothing, and has no deviation to divide
    by.

    Args:
        image_IJK: Intensities.
        region: Where mean and deviation, or lowest and highest, are measured before the cut-offs.
        section: Method and cut-offs.
        case: Name for the error.
        channel: Name for the error.

    Raises:
        CohortError: Nothing is left to measure in.
    """
    if channel in section.fixed:
        low, high, mean, std = section.fixed[channel]
        return ((np.clip(image_IJK.astype(np.float64), low, high) - mean) / std).astype(np.float32)
    if section.method == "none" or (section.channels and channel not in section.channels):
        return image_IJK.astype(np.float32)
    if section.window is not None:
        low, high = section.window
        scaled = (image_IJK.astype(np.float64) - low) / (high - low)
        return np.clip(scaled, 0.0, 1.0).astype(np.float32)
    # DeepMedic computes in float64; cut-offs compare strictly, so rounding would move voxels across them.
    image = image_IJK.astype(np.float64)
    return _measured(image, region, section, case=case, channel=channel).astype(np.float32)


def _measured(
    image: NDArray[np.float64], region: NDArray[np.bool_], section: NormalizeSection, *, case: str, channel: str
) -> NDArray[np.float64]:
    """Return the channel by its own mean and deviation, or its own lowest and highest intensity."""
    values = image[measured_region(image, region, section)]
    if not values.size:
        raise CohortError(
            f"case '{case}', channel '{channel}': no voxel is left to measure intensities in. Check its roi and "
            "the cut-offs of preprocess.normalize."
        )
    if values.min() == values.max():
        return np.zeros(image.shape)
    if section.method == "range":
        return np.asarray((image - values.min()) / (values.max() - values.min()))
    image -= values.mean()
    image /= values.std()
    if section.outside == "zero":
        image[~region] = 0.0
    return image


def measured_region(
    image: NDArray[np.float64], region: NDArray[np.bool_], section: NormalizeSection
) -> NDArray[np.bool_]:
    """Return the region after the cut-offs; each is taken from the whole region, and all must hold (DeepMedic v0.8.4).

    Percentiles and deviations exclude the limits themselves; ``above_mean`` excludes the largest voxel too.
    """
    measured = region.copy()
    values = image[region]
    if not values.size:
        return measured
    limits = []
    if section.percentiles is not None:
        low, high = np.percentile(values, section.percentiles)
        limits.append((low, high))
    if section.within_std is not None:
        below, above = section.within_std
        mean, std = values.mean(), values.std()
        limits.append((mean - below * std, mean + above * std))
    if section.above_mean:
        limits.append((image.mean(), image.max()))
    for low, high in limits:
        measured &= (image > low) & (image < high)
    return measured
