"""Images of the demonstration cohort: how a scanner would show tissue and lesions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmx.cohort.demo_anatomy import Array, Generator, Grid, Tissue, random_field


@dataclass(frozen=True)
class Contrast:
    """Mean intensity of each tissue in one channel; white matter of an unweighted scan is about 0.7.

    Attributes:
        csf: Cerebrospinal fluid.
        gray: Gray matter.
        white: White matter.
        texture: Weight of the template's own texture, with its sign.
        lesion: Mean of each lesion class, from class 1 on.
    """

    csf: float
    gray: float
    white: float
    texture: float
    lesion: tuple[float, ...]


STROKE: Mapping[str, Contrast] = {
    "FLAIR": Contrast(0.15, 0.72, 0.58, -0.12, (0.95,)),
    "DWI": Contrast(0.18, 0.52, 0.45, -0.08, (1.00,)),
}
# Lesion classes: edema, core, enhancing rim.
TUMOR: Mapping[str, Contrast] = {
    "T1": Contrast(0.25, 0.58, 0.80, 0.15, (0.55, 0.38, 0.56)),
    "T1c": Contrast(0.25, 0.60, 0.82, 0.15, (0.56, 0.34, 1.25)),
    "T2": Contrast(1.30, 0.72, 0.52, -0.15, (1.02, 1.18, 0.82)),
    "FLAIR": Contrast(0.15, 0.72, 0.58, -0.12, (1.10, 0.70, 0.92)),
}


def render(
    rng: Generator, grid: Grid, tissue: Tissue, labels: NDArray[np.uint8], contrast: Contrast
) -> NDArray[np.int16]:
    """Return one channel as the scanner stores it, int16 [I, J, K].

    Tissue means vary by 10 %, tissue by 3 % from voxel to voxel; bias field exp(0.12 · field of 40 mm), point spread
    0.3 to 0.6 voxel, Rician noise of 0.015 to 0.04, a gain of its own.
    """

    def vary(mean: float) -> float:
        return mean * float(rng.uniform(0.9, 1.1))

    image = vary(contrast.csf) * tissue.csf + vary(contrast.gray) * tissue.gray + vary(contrast.white) * tissue.white
    image += np.float32(contrast.texture) * tissue.texture
    for label, mean in enumerate(contrast.lesion, start=1):
        image = _blend(rng, grid, image, labels == label, vary(mean))
    image *= 1 + np.float32(0.03) * rng.standard_normal(grid.shape, dtype=np.float32)
    image *= np.exp(np.float32(0.12) * random_field(rng, grid, 40.0))
    image = ndimage.gaussian_filter(np.maximum(image, 0), rng.uniform(0.3, 0.6))
    noise = np.float32(rng.uniform(0.015, 0.04))
    real = image + noise * rng.standard_normal(grid.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(grid.shape, dtype=np.float32)
    gain = np.float32(np.exp(rng.uniform(np.log(300.0), np.log(3000.0))))
    stored: NDArray[np.int16] = np.rint(gain * np.hypot(real, imaginary)).astype(np.int16)
    return stored


def _blend(rng: Generator, grid: Grid, image: Array, region: NDArray[np.bool_], mean: float) -> Array:
    """Mix a lesion into the tissue: denser in its middle, uneven, with a soft border."""
    if not region.any():
        return image
    share = ndimage.gaussian_filter(region.astype(np.float32), 0.5) * np.float32(rng.uniform(0.75, 0.95))
    uneven = mean * (1 + np.float32(0.06) * random_field(rng, grid, max(5.0, grid.spacing)))
    mixed: Array = image * (1 - share) + uneven * share
    return mixed
