"""How the images were prepared that published weights were trained with. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a pre-trained network was shown.

    Attributes:
        size: Height and width in pixels.
        mean: Mean of each channel (red, green, blue) that is subtracted, for values from 0 to 1.
        std: What each channel is then divided by.
        resize: Pixels to which the shorter side is scaled before the middle is cut out.
        interpolation: How pixels are computed when an image is scaled.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int = 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


IMAGENET: Final = ImageFacts(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of torchvision's networks, and of most others that were trained on ImageNet."""

EFFICIENTNET_LITE: Final = ImageFacts(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
"""Of the EfficientNet-Lite networks: (value - 127) / 128 of values from 0 to 255."""

FACTS: Final[Mapping[str, ImageFacts]] = {"alexnet": IMAGENET, "efficientnet-lite0": EFFICIENTNET_LITE}
"""By ``model.name``."""


def image_facts(model_name: str) -> ImageFacts:
    """Return how images are prepared for a network by its name; for an unknown one, as for most on ImageNet."""
    return FACTS.get(model_name, IMAGENET)
