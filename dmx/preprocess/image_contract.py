"""The contract between images and network: all that decides what an image network sees. Standard library only."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from dmx.config.images import Color, ImagePreprocessSection, Size
from dmx.errors import CheckpointError, ConfigError
from dmx.model.image_facts import IMAGENET, ImageFacts

KIND = "image"
"""Value of the key ``kind`` that tells this contract from that of volumes."""

_COLORS = ("red", "green", "blue")


@dataclass(frozen=True, kw_only=True)
class ImageContract:
    """Everything that decides what an image network sees; kept in checkpoints, so that new images go the same way.

    An image is scaled, its middle is cut out, and (value / 255 - mean) / std is computed per channel.

    Attributes:
        rule: ``shorter_side``: the shorter side gets ``resize[0]`` pixels and the shape stays; ``exact``: the image
            gets the height and width ``resize``, whatever its shape.
        resize: See ``rule``; both numbers are equal for ``shorter_side``.
        crop: Height and width of the network's input.
        interpolation: How pixels are computed; an image that gets smaller is averaged (antialiased).
        mean: Of red, green and blue, for values from 0 to 1.
        std: The same.
        color: Order of the channels that the network gets.
        classes: Names of the classes, in the order of the network's outputs.
        labels: Label in the file: class index.
        targets: Columns that a regression predicts, in the order of the network's outputs.
    """

    rule: Literal["shorter_side", "exact"] = "shorter_side"
    resize: Size = (256, 256)
    crop: Size = (224, 224)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Color = IMAGENET.mean
    std: Color = IMAGENET.std
    color: Literal["RGB", "BGR"] = "RGB"
    classes: tuple[str, ...] = ()
    labels: Mapping[int, int] = field(default_factory=dict)
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in ("shorter_side", "exact") or self.color not in ("RGB", "BGR"):
            raise ConfigError(
                f"An image is scaled by shorter_side or exact, as RGB or BGR, got {self.rule}, {self.color}."
            )
        if any(crop > size for crop, size in zip(self.crop, self.resize, strict=True)):
            raise ConfigError(
                f"image_preprocess.crop must be at most image_preprocess.resize, got {list(self.crop)} and "
                f"{list(self.resize)}."
            )

    @property
    def channels(self) -> tuple[str, ...]:
        """What the network's input channels hold, in their order."""
        return _COLORS if self.color == "RGB" else _COLORS[::-1]

    @property
    def spatial_dims(self) -> int:
        """Return how many axes of space the inputs have: 2, images."""
        return 2

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the network's outputs stand for, in their order: targets, or classes."""
        return self.targets or self.classes

    @property
    def num_outputs(self) -> int:
        """How many numbers the network gives per image."""
        return len(self.outputs)

    def preprocessing(self) -> dict[str, Any]:
        """Return what happens to pixels as plain JSON values, without classes and targets."""
        return {name: value for name, value in self.as_dict().items() if name not in ("classes", "labels", "targets")}

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        labels = {str(label): index for label, index in sorted(self.labels.items())}
        return {"kind": KIND, **values, "labels": labels}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageContract":
        """Return the contract that :meth:`as_dict` described.

        Raises:
            CheckpointError: A value is missing, unknown or of the wrong kind.
        """
        allowed = ["kind", *(entry.name for entry in fields(cls))]
        if unknown := [name for name in values if name not in allowed]:
            raise CheckpointError(
                f"the contract of images has the unknown key '{unknown[0]}', allowed are {allowed}. A newer version of "
                "dmx may have written it."
            )
        if values.get("kind") != KIND:
            raise CheckpointError(f"the contract must be of the kind '{KIND}', got {values.get('kind')!r}.")
        try:
            return cls(
                rule=values["rule"],
                resize=_size(values["resize"]),
                crop=_size(values["crop"]),
                interpolation=values["interpolation"],
                mean=_color(values["mean"]),
                std=_color(values["std"]),
                color=values["color"],
                classes=tuple(str(name) for name in values["classes"]),
                labels={int(label): int(index) for label, index in values["labels"].items()},
                targets=tuple(str(name) for name in values["targets"]),
            )
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise CheckpointError(f"the contract of images cannot be read: {error!r}.") from error

    def key(self) -> str:
        """Return a hash of everything in it, 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:32]

    def pixels_key(self) -> str:
        """Return a hash of what decides the prepared pixels, before crop and normalization."""
        return hashlib.sha256(json.dumps([self.rule, self.resize, self.interpolation]).encode()).hexdigest()[:32]

    def scaled_size(self, size: Size) -> Size:
        """Return height and width to which an image is scaled.

        >>> ImageContract().scaled_size((480, 640))
        (256, 341)
        """
        if self.rule == "exact":
            return self.resize
        shorter = min(size)
        height, width = (side * self.resize[0] // shorter for side in size)
        return (height, width)


def resolve_image_contract(
    section: ImagePreprocessSection,
    facts: ImageFacts = IMAGENET,
    *,
    classes: tuple[str, ...] = (),
    labels: Mapping[int, int] | None = None,
    targets: tuple[str, ...] = (),
) -> ImageContract:
    """Return the contract of an experiment.

    A crop that is given alone keeps the network's ratio between scaled and cut size (256 : 224 for ImageNet).

    Args:
        section: The experiment's settings; what is empty comes from the facts.
        facts: How the network's weights were trained.
        classes: Names of the classes in the order of the network's outputs.
        labels: Label in the file: class index.
        targets: Columns of a regression.

    Raises:
        ConfigError: The input would be larger than the scaled image.
    """
    crop = facts.size if section.crop is None else _pair(section.crop)
    if section.resize is not None:
        resize = section.resize
    elif section.crop is None:
        resize = facts.resize
    else:
        resize = round(max(crop) * facts.resize / max(facts.size))
    return ImageContract(
        rule="shorter_side" if isinstance(resize, int) else "exact",
        resize=_pair(resize),
        crop=crop,
        interpolation=section.interpolation or facts.interpolation,
        mean=section.mean or facts.mean,
        std=section.std or facts.std,
        color=section.color,
        classes=classes,
        labels=dict(labels or {}),
        targets=targets,
    )


def _pair(size: int | Size) -> Size:
    return (size, size) if isinstance(size, int) else size


def _size(values: Any) -> Size:
    height, width = values
    return (int(height), int(width))


def _color(values: Any) -> Color:
    red, green, blue = values
    return (float(red), float(green), float(blue))
