"""The sections of what is minimized and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dmx.config.check import at_least, between, positive

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """How gradients become updates."""

    __pydantic_config__ = _STRICT

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "rmsprop"
    """Optimizer. With `compatibility: deepmedic` the definitions are DeepMedic's (rmsprop: epsilon inside the root)."""
    lr: float = 1e-3
    """Learning rate before the schedule."""
    momentum: float = 0.6
    """Momentum of sgd and rmsprop."""
    nesterov: bool = True
    """Nesterov momentum instead of classic."""
    normalized_momentum: bool = False
    """Scale the update by 1 - momentum (DeepMedic: momNonNorm0orNormalized1)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of adam and adamw."""
    rho: float = 0.9
    """Decay rate of rmsprop."""
    epsilon: float | None = None
    """Added to the denominator; empty: 1e-8 (adam, adamw), 1e-4 (rmsprop)."""
    weight_decay: float = 0.0
    """Decoupled decay of adamw, on kernels only."""
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    """Factors of the learning rate: for what was `received` from a source or `initialized`, for a pathway (`normal`,
    `subsampled`, `subsampled_1`, `fc`), or for names of modules or parameters, `*` for any text. A name overrules a
    pathway, a pathway the origin, a later name an earlier one."""

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        for name, value in (("momentum", self.momentum), ("rho", self.rho), *(("betas", beta) for beta in self.betas)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        if self.epsilon is not None:
            positive("epsilon", self.epsilon)
        at_least("weight_decay", self.weight_decay, 0.0)
        for name, factor in self.lr_scale.items():
            if not factor > 0:
                raise ValueError(f"lr_scale.{name} must be above 0, got {factor}; 'freeze' keeps what must not change")


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """How the learning rate goes on."""

    __pydantic_config__ = _STRICT

    name: Literal["constant", "steps", "polynomial", "exponential", "cosine", "plateau"] = "polynomial"
    """Shape of the curve. All but `plateau` and `steps` change at every step, not only at every epoch; in
    compatibility mode they change once per epoch, as DeepMedic's do."""
    warmup: float | None = None
    """Epochs of linear growth before it, step by step; empty: none."""
    at_epochs: tuple[int, ...] = ()
    """`steps`: epochs at which the rate is divided."""
    divide_by: float = 2.0
    """`steps` and `plateau`: divisor."""
    power: float = 0.9
    """`polynomial`: exponent."""
    wait_epochs: float | None = None
    """`polynomial`, `exponential`: epochs before the rate falls; empty: 0 (a third of all epochs in compatibility
    mode)."""
    final_lr: float | None = None
    """`exponential`, `cosine`: rate at the end; empty: a hundredth of the start, 0 for cosine."""
    patience: int = 5
    """`plateau`: epochs without improvement before the rate is divided."""
    min_increase: float = 0.0
    """`plateau`: what counts as improvement of the metric."""
    begin_epoch: int = 0
    """Epoch at which the curve begins; set when an extended training restarts it."""
    span_epochs: int | None = None
    """Epochs that the curve takes, after which it stays; empty: all. Set when an extended training keeps it."""

    def __post_init__(self) -> None:
        if self.name == "steps" and not self.at_epochs:
            raise ValueError("at_epochs must name the epochs of schedule 'steps', got none")
        at_least("patience", self.patience, 1)
        at_least("begin_epoch", self.begin_epoch, 0)
        if self.span_epochs is not None:
            at_least("span_epochs", self.span_epochs, 1)
        for name in ("warmup", "wait_epochs"):
            if (value := getattr(self, name)) is not None:
                at_least(name, value, 0.0)
        if self.final_lr is not None and (self.final_lr < 0 or (self.final_lr == 0 and self.name == "exponential")):
            raise ValueError(f"final_lr must be above 0 (at least 0 for cosine), got {self.final_lr}")
        if self.divide_by <= 1:
            raise ValueError(f"divide_by must be above 1, got {self.divide_by}")


@dataclass(frozen=True, kw_only=True)
class MonaiLoss:
    """A loss of MONAI by its class name."""

    __pydantic_config__ = _STRICT

    name: str
    """Class in monai.losses, e.g. DiceFocalLoss."""
    weight: float = 1.0
    """Weight in the sum."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class."""


@dataclass(frozen=True, kw_only=True)
class LossSection:
    """What is minimized: a weighted sum."""

    __pydantic_config__ = _STRICT

    cross_entropy: float = 1.0
    """Weight of the cross-entropy (DeepMedic: xentr)."""
    soft_iou: float = 0.0
    """Weight of the soft intersection over union (DeepMedic: iou)."""
    soft_dice: float = 0.0
    """Weight of the soft Dice over all classes (DeepMedic: dsc)."""
    mse: float = 0.0
    """Weight of the mean squared error, the loss of a regression (1 there by default)."""
    monai: tuple[MonaiLoss, ...] = ()
    """Losses of MONAI to add."""
    class_weights: Literal["none", "frequency"] | tuple[float, ...] = "none"
    """Weights of the classes in the cross-entropy: inverse frequency in the batch, or one number per class."""
    class_weights_epochs: tuple[float, float] | None = None
    """Epochs between which the class weights go back to 1; empty: they stay."""
    label_smoothing: float = 0.0
    """Share of the truth that is spread over all classes."""

    def __post_init__(self) -> None:
        weights = (self.cross_entropy, self.soft_iou, self.soft_dice, self.mse, *(loss.weight for loss in self.monai))
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError("losses must have weights of at least 0 and one above 0")
        between("label_smoothing", self.label_smoothing, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class RegularizationSection:
    """Penalties on convolution kernels, added to the loss."""

    __pydantic_config__ = _STRICT

    l1: float = 1e-6
    """Weight of the sum of absolute values."""
    l2: float = 1e-4
    """Weight of the sum of squares (without a factor of one half)."""
    l2_to_source: float = 0.0
    """Weight of the sum of squared differences from the source, over all parameters that were received whole (L2-SP, Li
    et al. 2018); needs a source."""

    def __post_init__(self) -> None:
        at_least("l1", self.l1, 0.0)
        at_least("l2", self.l2, 0.0)
        at_least("l2_to_source", self.l2_to_source, 0.0)
