"""The sections of tasks on images: where they are, how they are prepared, how they are changed at random."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dmx.config.check import at_least, between, positive

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}

Size = tuple[int, int]
Color = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class StimuliSection:
    """Which images the network learns from."""

    __pydantic_config__ = _STRICT

    source: str
    """A `.stim.csv`, a folder with a folder per class, or a CSV table with a column `path`; relative to the experiment
    file."""
    validation: str | None = None
    """The same for validation, when `source` holds nothing but training images; empty: as `source` or the settings
    below say."""
    evaluation: str | None = None
    """The same for evaluation."""
    classes: tuple[str, ...] = ()
    """Names of the classes in the order of the network's outputs; empty: as the source says."""
    targets: tuple[str, ...] = ()
    """Columns whose numbers a regression learns."""
    fractions: Mapping[str, float] = field(default_factory=dict)
    """Share of the groups (without groups: of the images) per split, drawn with the experiment's seed, instead of the
    source's splits; e.g. `{training: 0.8, validation: 0.2}`."""
    fold: int | None = None
    """Use this fold (from 0) of `folds` for validation instead of the source's splits."""
    folds: int = 5
    """Number of folds by group, when `fold` is given."""

    def __post_init__(self) -> None:
        at_least("folds", self.folds, 2)
        if self.fold is not None:
            between("fold", self.fold, 0, self.folds - 1)
        ways = {"validation": self.validation, "fractions": self.fractions or None, "fold": self.fold}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} must not be given together: each says what is for validation")
        if self.evaluation is not None and "evaluation" in self.fractions:
            raise ValueError("fractions must have no share for evaluation when evaluation has images of its own")


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessSection:
    """How an image becomes the network's input; what is empty is as the network's weights were trained."""

    __pydantic_config__ = _STRICT

    resize: int | Size | None = None
    """Pixels of the shorter side, or exact height and width whatever the shape of the image."""
    crop: int | Size | None = None
    """Height and width of the input, cut from the middle (training: as `augmentation` says)."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pixels are computed when an image is scaled."""
    mean: Color | None = None
    """Subtracted from each channel (red, green, blue) of values from 0 to 1."""
    std: Color | None = None
    """What each channel is then divided by."""
    color: Literal["RGB", "BGR"] = "RGB"
    """Order in which the network gets the channels."""

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            for side in (value,) if isinstance(value, int) else value or ():
                at_least(name, side, 1)
        for value in self.std or ():
            positive("std", value)


@dataclass(frozen=True, kw_only=True)
class ImageAugmentationSection:
    """Random changes of training images, made on the device that trains; nothing is on by default."""

    __pydantic_config__ = _STRICT

    crop: Literal["center", "random", "resized"] = "center"
    """The middle, as in prediction; a window of the input's size anywhere; or a box of random area and shape anywhere,
    scaled to the input."""
    area: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image that the box of `crop: resized` covers."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest width/height of that box."""
    flip: float = 0.0
    """Probability of exchanging left and right."""
    brightness: float = 0.0
    """Largest change of the factor for all values, which is drawn from 1 - x to 1 + x."""
    contrast: float = 0.0
    """The same for the distance from the image's mean gray."""
    saturation: float = 0.0
    """The same for the distance of each pixel from its gray."""

    def __post_init__(self) -> None:
        between("flip", self.flip, 0.0, 1.0)
        for name in ("brightness", "contrast", "saturation"):
            between(name, getattr(self, name), 0.0, 1.0)
        for name, pair in (("area", self.area), ("ratio", self.ratio)):
            positive(name, pair[0])
            if not pair[0] <= pair[1]:
                raise ValueError(f"{name} must be a lower and a higher number, got {list(pair)}")
        between("area", self.area[1], 0.0, 1.0)

    @property
    def changes(self) -> bool:
        """Whether an image looks different from one epoch to the next."""
        return self.crop != "center" or any((self.flip, self.brightness, self.contrast, self.saturation))
