"""One image file becomes the array that is kept: decoded and scaled, not yet cut and normalized."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.image import read_image, resize_image
from dmx.errors import CohortError
from dmx.preprocess.image_contract import ImageContract

# A strip of one pixel would become gigabytes when its shorter side is scaled up.
_LARGEST_RATIO = 20


def preprocess_image(path: str | Path, contract: ImageContract) -> NDArray[np.uint8]:
    """Decode and scale an image; cutting is left to the device that trains, which may cut at random.

    Args:
        path: The image.
        contract: What the network sees.

    Returns:
        uint8 [3, H, W]; red, green, blue whatever the order that the network gets.

    Raises:
        CohortError: The image cannot be used; the message names it.
    """
    image = read_image(path)
    height, width = image.shape[:2]
    if contract.rule == "shorter_side" and max(height, width) > _LARGEST_RATIO * min(height, width):
        raise CohortError(
            f"Image '{path}' of {height} x {width} pixels is more than {_LARGEST_RATIO} times longer than wide: cut "
            "it, or give preprocess.resize as height and width."
        )
    size = contract.scaled_size((height, width))
    if size != (height, width):
        image = resize_image(image, size, interpolation=contract.interpolation)
    return np.ascontiguousarray(image.transpose(2, 0, 1))
