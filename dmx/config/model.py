"""The section of the network. Lists follow the layers of a pathway; positions count from 1."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Final, Literal

from dmx.config.check import at_least, between, positive
from dmx.config.trust import check_name

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}

_LARGEST_FACTOR = 64

Triple = tuple[int, int, int]
Kernel = int | Triple
Kernels = int | tuple[Kernel, ...]
Padding = Literal["valid", "zero", "mirror"]

ENCODER_CLASSIFIER: Final = "encoder_classifier"


@dataclass(frozen=True, kw_only=True)
class PathwaySection:
    """The normal pathway, which sees the scan at full resolution."""

    __pydantic_config__ = _STRICT

    widths: tuple[int, ...] = (30, 30, 40, 40, 40, 40, 50, 50)
    """Channels of each layer."""
    kernels: Kernels = 3
    """Kernel size: a number for all layers, or a list with one entry per layer; `[[3, 3, 1]]` is one for all layers."""
    residual: tuple[int, ...] = ()
    """Positions whose output receives the input of the layer before."""
    padding: Padding | tuple[Padding, ...] = "valid"
    """Padding, one for all layers or one per layer."""
    dropout: float | tuple[float, ...] = 0.0
    """Dropout rate, one for all layers or one per layer."""
    low_rank: tuple[int, ...] = ()
    """Positions whose kernel is factorized into one per axis (Ioannou et al. 2016)."""


@dataclass(frozen=True, kw_only=True)
class SubsampledSection:
    """A pathway that sees a wider surrounding at lower resolution; what is left out mirrors the normal pathway."""

    __pydantic_config__ = _STRICT

    factor: int | Triple = 3
    """Voxels of the scan per voxel that the pathway sees, per axis."""
    widths: tuple[int, ...] | None = None
    """Channels of each layer."""
    kernels: Kernels | None = None
    """Kernel size. The receptive field must be that of the normal pathway in compatibility mode."""
    residual: tuple[int, ...] | None = None
    """Positions whose output receives the input of the layer before."""
    padding: Padding | tuple[Padding, ...] | None = None
    """Padding."""
    dropout: float | tuple[float, ...] | None = None
    """Dropout rate."""
    low_rank: tuple[int, ...] | None = None
    """Positions with factorized kernels."""

    def __post_init__(self) -> None:
        for factor in (self.factor,) if isinstance(self.factor, int) else self.factor:
            between("factor", factor, 1, _LARGEST_FACTOR)


@dataclass(frozen=True, kw_only=True)
class FCSection:
    """The pathway that joins the others; its last layer is the head, which is not in `widths`."""

    __pydantic_config__ = _STRICT

    widths: tuple[int, ...] = (150, 150)
    """Channels of the hidden layers."""
    kernels: Kernels = 1
    """Kernel size: a number for all layers, or a list with one entry per layer, the head included."""
    residual: tuple[int, ...] = ()
    """Positions whose output receives the input of the layer before."""
    padding: Padding | tuple[Padding, ...] = "valid"
    """Padding, one for all layers or one per layer, the head included."""
    dropout: float | tuple[float, ...] | None = None
    """Dropout rate, one for all or one per layer, the head included; empty: 0 for the first, 0.5 for the others
    (0.5 for the head when it is the only one)."""


@dataclass(frozen=True, kw_only=True)
class NormalizationSection:
    """Normalization of features."""

    __pydantic_config__ = _STRICT

    name: Literal["batch", "batch_rolling", "instance", "group", "none"] = "batch"
    """`batch_rolling` is DeepMedic's, which averages the statistics of the last `steps` steps."""
    steps: int = 60
    """`batch_rolling`: steps that are averaged."""
    groups: int = 8
    """`group`: groups of channels (the nearest divisor of the width is used)."""
    momentum: float = 0.1
    """`batch`: weight of the newest statistics."""
    epsilon: float = 1e-5
    """Added to the variance (1.18e-38 in compatibility mode)."""

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("groups", self.groups, 1)
        between("momentum", self.momentum, 0.0, 1.0)
        at_least("epsilon", self.epsilon, 0.0)


@dataclass(frozen=True, kw_only=True)
class WeightInitSection:
    """How kernels are drawn before training."""

    __pydantic_config__ = _STRICT

    name: Literal["fan_in", "normal"] = "fan_in"
    """Normal with variance scale / fan-in (He et al. 2015 for scale 2), or with a fixed deviation."""
    scale: float = 2.0
    """`fan_in`: variance times fan-in."""
    std: float = 0.01
    """`normal`: standard deviation."""

    def __post_init__(self) -> None:
        positive("scale", self.scale)
        at_least("std", self.std, 0.0)


def _default(field: "Field[Any]") -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The network."""

    __pydantic_config__ = _STRICT

    name: str = "multiscale"
    """`multiscale`, a network of MONAI by its class name (UNet, DynUNet, SegResNet, SwinUNETR, …), one of nnU-Net
    (PlainConvUNet, ResidualEncoderUNet, ResidualUNet), or a function of your own that returns a torch module,
    `package.module:function`. To classify or score images: `alexnet`,
    `efficientnet-lite0`, or such a function; volumes: `encoder_classifier`, the parallel pathways of `multiscale` or
    the encoder of another network, pooled."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of any network but `multiscale`; channels, classes and dimensions are filled in."""
    head: str | None = None
    """Module that gives the class scores in any network but `multiscale`, by name; empty: the last kernel."""
    normal: PathwaySection = field(default_factory=PathwaySection)
    subsampled: tuple[SubsampledSection, ...] = (SubsampledSection(),)
    """Subsampled pathways; an empty list: none."""
    fc: FCSection = field(default_factory=FCSection)
    activation: Literal["prelu", "relu", "elu", "selu", "leaky_relu", "linear"] = "prelu"
    """Activation of every layer but the first of the parallel pathways."""
    normalization: NormalizationSection = field(default_factory=NormalizationSection)
    weight_init: WeightInitSection = field(default_factory=WeightInitSection)
    upsampling: Literal["nearest", "linear"] = "nearest"
    """How a subsampled pathway's output returns to full resolution."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.name == "multiscale" and (self.arguments or self.head):
            raise ValueError("arguments and head belong to networks of MONAI or of your own, not to 'multiscale'")
        own = ["normal", "subsampled", "fc", "activation", "normalization", "weight_init", "upsampling"]
        if self.name == ENCODER_CLASSIFIER and "network" not in self.arguments:
            # It has the parallel pathways of 'multiscale', and not what joins them.
            own = ["fc", "upsampling"]
        defaults = {field.name: field for field in fields(self)}
        changed = [name for name in own if getattr(self, name) != _default(defaults[name])]
        if self.name != "multiscale" and changed:
            raise ValueError(f"{changed[0]} belongs to 'multiscale'; give '{self.name}' its settings as arguments")
        for rate in self.normal.dropout if isinstance(self.normal.dropout, tuple) else (self.normal.dropout,):
            between("normal.dropout", rate, 0.0, 1.0)
