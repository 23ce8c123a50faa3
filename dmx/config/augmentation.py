"""The section of augmentation; nothing is on by default.

Every change has its probability per segment; a task on whole volumes takes each of them for a segment. DeepMedic's
affine is drawn per case and epoch, and its histogram change always happens, as there.
"""

from dataclasses import dataclass, field

from dmx.config.check import between

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}

Triple = tuple[float, float, float]
Quarter = tuple[float, float, float, float]


class _Probable:
    """A change that happens with a probability."""

    probability: float

    def __post_init__(self) -> None:
        between("probability", self.probability, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class AffineSection(_Probable):
    """Rotation, scaling and shearing about the center of the segment, and a shift."""

    __pydantic_config__ = _STRICT

    probability: float = 0.0
    rotation: float | Triple = 15.0
    """Largest angle in degrees about each axis."""
    scale: float | Triple = 0.1
    """Largest relative change of size per axis."""
    isotropic: bool = False
    """One factor for all axes."""
    shear: float = 0.0
    """Largest shear."""
    shift: float | Triple = 0.0
    """Largest shift along each axis, in voxels; for whole volumes, since segments are taken from anywhere anyway."""


@dataclass(frozen=True, kw_only=True)
class ElasticSection(_Probable):
    """Smooth random displacement."""

    __pydantic_config__ = _STRICT

    probability: float = 0.0
    displacement: float = 2.0
    """Standard deviation of the displacement at the control points, in voxels."""
    spacing: float = 12.0
    """Distance of the control points in voxels."""


@dataclass(frozen=True, kw_only=True)
class ReflectSection:
    """Mirror along each axis with its own probability."""

    __pydantic_config__ = _STRICT

    probability: Triple = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for value in self.probability:
            between("probability", value, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Rotate90Section:
    """Turn by 0, 90, 180 or 270 degrees in a plane, each with its probability; the lists are normalized."""

    __pydantic_config__ = _STRICT

    xy: Quarter = (1.0, 0.0, 0.0, 0.0)
    yz: Quarter = (1.0, 0.0, 0.0, 0.0)
    xz: Quarter = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class IntensitySection(_Probable):
    """Shift and scale each channel: (value + shift) · scale."""

    __pydantic_config__ = _STRICT

    probability: float = 0.0
    shift_mean: float = 0.0
    shift_std: float = 0.1
    scale_mean: float = 1.0
    scale_std: float = 0.1


@dataclass(frozen=True, kw_only=True)
class GammaSection(_Probable):
    """Bend the intensities of each channel between its extremes."""

    __pydantic_config__ = _STRICT

    probability: float = 0.0
    log_std: float = 0.2
    """Standard deviation of the logarithm of the exponent."""


@dataclass(frozen=True, kw_only=True)
class NoiseSection(_Probable):
    """Add normal noise."""

    __pydantic_config__ = _STRICT

    probability: float = 0.0
    std: float = 0.1
    """Largest standard deviation; each segment draws its own."""


@dataclass(frozen=True, kw_only=True)
class BiasFieldSection(_Probable):
    """Multiply by a smooth field, as coil sensitivity does."""

    __pydantic_config__ = _STRICT

    probability: float = 0.0
    std: float = 0.2
    """Standard deviation of the field's logarithm at its control points."""


@dataclass(frozen=True, kw_only=True)
class BlurSection(_Probable):
    """Smooth with a Gaussian."""

    __pydantic_config__ = _STRICT

    probability: float = 0.0
    sigma: float = 1.0
    """Largest standard deviation in voxels; each segment draws its own."""


@dataclass(frozen=True, kw_only=True)
class DeepMedicAffine:
    """DeepMedic's augm_img_prms_tr.affine."""

    __pydantic_config__ = _STRICT

    prob: float = 0.0
    max_rot_xyz: Triple = (45.0, 45.0, 45.0)
    max_scaling: float = 0.1
    interp_order_imgs: int = 1
    interp_order_lbls: int = 0
    interp_order_roi: int = 0
    interp_order_wmaps: int = 1
    boundary_mode: str = "nearest"

    def __post_init__(self) -> None:
        between("prob", self.prob, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class DeepMedicHistDist:
    """DeepMedic's augm_sample_prms_tr.hist_dist: mean and deviation of shift and scale per channel."""

    __pydantic_config__ = _STRICT

    shift: tuple[float, float] | None = None
    scale: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class DeepMedicSection:
    """DeepMedic's augmentation under its own names."""

    __pydantic_config__ = _STRICT

    affine: DeepMedicAffine | None = None
    hist_dist: DeepMedicHistDist | None = None
    reflect: Triple | None = None
    rotate90: Rotate90Section | None = None

    def __post_init__(self) -> None:
        for value in self.reflect or ():
            between("reflect", value, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class AugmentationSection:
    """Random changes of training segments, or of whole volumes, made on the device that trains."""

    __pydantic_config__ = _STRICT

    affine: AffineSection = field(default_factory=AffineSection)
    elastic: ElasticSection = field(default_factory=ElasticSection)
    reflect: ReflectSection = field(default_factory=ReflectSection)
    rotate90: Rotate90Section = field(default_factory=Rotate90Section)
    intensity: IntensitySection = field(default_factory=IntensitySection)
    gamma: GammaSection = field(default_factory=GammaSection)
    noise: NoiseSection = field(default_factory=NoiseSection)
    bias_field: BiasFieldSection = field(default_factory=BiasFieldSection)
    blur: BlurSection = field(default_factory=BlurSection)
    deepmedic: DeepMedicSection = field(default_factory=DeepMedicSection)
    """DeepMedic's own set under its own names; in addition to the others."""

    @property
    def changes(self) -> bool:
        """Whether what is trained on looks different from one epoch to the next."""
        sections = (self.affine, self.elastic, self.intensity, self.gamma, self.noise, self.bias_field, self.blur)
        turns = (self.rotate90.xy, self.rotate90.yz, self.rotate90.xz)
        return (
            any(section.probability > 0 for section in sections)
            or any(self.reflect.probability)
            or any(any(turn[1:]) for turn in turns)
            or self.deepmedic != DeepMedicSection()
        )
