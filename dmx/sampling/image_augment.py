"""Cut the network's input out of an image, changed at random or from the middle, and normalize it.

Every draw is a function of the image's key, and every image is computed by itself: neither the batch that it comes in
nor the device changes what is drawn.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dmx import seeding
from dmx.config.images import ImageAugmentationSection
from dmx.preprocess.image_contract import ImageContract

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""

_ATTEMPTS = 10
# ITU-R BT.601: what of each color the eye sees as gray.
_GRAY = (0.299, 0.587, 0.114)


class ImageAugmenter:
    """Makes the network's input from prepared images.

    Args:
        section: Changes; the default section cuts the middle.
        contract: What the network sees.
        device: Where it is made.
    """

    def __init__(
        self, section: ImageAugmentationSection, contract: ImageContract, *, device: torch.device | str
    ) -> None:
        self._section = section
        self._contract = contract
        self._device = torch.device(device)
        self._mean = torch.tensor(contract.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(contract.std, device=self._device).view(3, 1, 1)
        self._gray = torch.tensor(_GRAY, device=self._device).view(3, 1, 1)

    def input(self, image_3HW: Tensor, key: int) -> Tensor:
        """Return an image as the network gets it in training, float32 [3, h, w], changed as its key says."""
        section = self._section
        image = self._cut(image_3HW, draw_box(section, self._contract, _size(image_3HW), key))
        if section.flip and seeding.scalar(seeding.derive(key, "flip")) < section.flip:
            image = image.flip(-1)
        return self._normalized(self._colored(image, key))

    def plain(self, image_3HW: Tensor) -> Tensor:
        """Return an image as the network gets it in prediction, float32 [3, h, w]: its middle, unchanged."""
        return self._normalized(self._cut(image_3HW, middle(self._contract, _size(image_3HW))))

    def _cut(self, image_3HW: Tensor, box: Box) -> Tensor:
        top, left, height, width = box
        # The box alone goes to the device, as bytes.
        cut = image_3HW[:, top : top + height, left : left + width].to(self._device).to(torch.float32)
        if (height, width) == self._contract.crop:
            return cut
        mode = self._contract.interpolation
        scaled = interpolate(cut[None], size=self._contract.crop, mode=mode, align_corners=False, antialias=True)[0]
        return scaled.clamp_(0.0, 255.0)

    def _colored(self, image: Tensor, key: int) -> Tensor:
        """Change brightness, then contrast, then saturation, each only where the section asks for it."""
        if brightness := self._section.brightness:
            image = (image * _factor(brightness, key, "brightness")).clamp_(0.0, 255.0)
        if contrast := self._section.contrast:
            # In double precision, so that the sum depends on neither threads nor device.
            mean = (image.double() * self._gray).sum(dim=0).mean().float()
            image = torch.lerp(mean.expand_as(image), image, _factor(contrast, key, "contrast")).clamp_(0.0, 255.0)
        if saturation := self._section.saturation:
            gray = (image * self._gray).sum(dim=0, keepdim=True).expand_as(image)
            image = torch.lerp(gray, image, _factor(saturation, key, "saturation")).clamp_(0.0, 255.0)
        return image

    def _normalized(self, image: Tensor) -> Tensor:
        normalized = (image / 255.0 - self._mean) / self._std
        return normalized if self._contract.color == "RGB" else normalized.flip(0)


def middle(contract: ImageContract, size: tuple[int, int]) -> Box:
    """Return the box in the middle of an image of that height and width."""
    top, left = (round((side - crop) / 2) for side, crop in zip(size, contract.crop, strict=True))
    return (top, left, *contract.crop)


def draw_box(section: ImageAugmentationSection, contract: ImageContract, size: tuple[int, int], key: int) -> Box:
    """Return what is cut out of an image in training.

    ``crop: resized`` is the scale and aspect-ratio augmentation of Szegedy et al., Going deeper with convolutions
    (2015), section 6: the area uniform, the logarithm of the ratio uniform; where ten draws do not fit into the image,
    the largest box of an allowed ratio in its middle.
    """
    if section.crop == "center":
        return middle(contract, size)
    if section.crop == "random":
        return _anywhere(size, contract.crop, key)
    height, width = size
    low, high = (math.log(ratio) for ratio in section.ratio)
    for attempt in range(_ATTEMPTS):
        draw = seeding.derive(key, "box", attempt)
        area = _between(*section.area, seeding.derive(draw, "area")) * height * width
        ratio = math.exp(_between(low, high, seeding.derive(draw, "ratio")))
        box = (round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio)))
        if 0 < box[0] <= height and 0 < box[1] <= width:
            return _anywhere(size, box, draw)
    ratio = min(max(width / height, section.ratio[0]), section.ratio[1])
    box = (min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio))))
    return ((height - box[0]) // 2, (width - box[1]) // 2, *box)


def _anywhere(size: tuple[int, int], box: tuple[int, int], key: int) -> Box:
    free = [side - part + 1 for side, part in zip(size, box, strict=True)]
    top, left = (int(seeding.scalar(seeding.derive(key, "at", axis)) * count) for axis, count in enumerate(free))
    return (top, left, *box)


def _between(low: float, high: float, key: int) -> float:
    return low + (high - low) * seeding.scalar(key)


def _factor(largest: float, key: int, name: str) -> float:
    return _between(1.0 - largest, 1.0 + largest, seeding.derive(key, name))


def _size(image_3HW: Tensor) -> tuple[int, int]:
    _, height, width = image_3HW.shape
    return (height, width)
