"""The sections of an experiment: one frozen dataclass per component, the only home of its settings and defaults.

Standard library only, so that the training core can import its section on a machine that has nothing but torch. Reading
YAML, unknown keys and types are checked in :mod:`dmx.config.load`; each section checks the meaning of its values itself
and raises ``ValueError`` with *name, allowed, got*.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dmx.config.augmentation import AugmentationSection
from dmx.config.check import at_least, between, positive
from dmx.config.model import ModelSection

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}

Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class CohortSection:
    """Which cases, channels and classes the network learns from."""

    __pydantic_config__ = _STRICT

    manifest: str
    """Manifest (CSV) of the cohort, relative to the experiment file."""
    channels: tuple[str, ...] = ()
    """Channels in the order in which the network gets them; empty: all of the manifest, in its order."""
    classes: tuple[str, ...] = ()
    """Names of the classes, background first; empty: as the manifest says."""
    labels: Mapping[int, int] = field(default_factory=dict)
    """Label in the file: class index; labels that are not named stay as they are. Merges or drops classes."""
    fill: Mapping[str, float] = field(default_factory=dict)
    """Channel: value (after normalization) that stands for it in cases that lack it."""
    fold: int | None = None
    """Use this fold (from 0) of `folds` for validation instead of the manifest's split."""
    folds: int = 5
    """Number of folds by subject, when `fold` is given."""

    def __post_init__(self) -> None:
        at_least("folds", self.folds, 2)
        if self.fold is not None:
            between("fold", self.fold, 0, self.folds - 1)


@dataclass(frozen=True, kw_only=True)
class NormalizeSection:
    """How intensities are made comparable, per case and channel."""

    __pydantic_config__ = _STRICT

    method: Literal["zscore", "window", "none"] = "zscore"
    """Subtract mean and divide by standard deviation; map a fixed window to 0..1; or leave as it is."""
    region: Literal["roi", "foreground", "image"] = "roi"
    """Where mean and deviation are measured; `roi` falls back to `foreground` for a case without one."""
    channels: tuple[str, ...] = ()
    """Channels that are normalized; empty: all."""
    percentiles: tuple[float, float] | None = None
    """Measure only strictly between these percentiles of the region (DeepMedic: cutoff_percents)."""
    within_std: tuple[float, float] | None = None
    """Measure only within mean - a·std and mean + b·std of the region (DeepMedic: cutoff_times_std)."""
    above_mean: bool = False
    """Measure only above the mean of the whole image (DeepMedic: cutoff_below_mean)."""
    window: tuple[float, float] | None = None
    """Lower and upper intensity of `method: window`."""

    def __post_init__(self) -> None:
        if (self.method == "window") != (self.window is not None):
            raise ValueError("window must be given with method 'window' and only with it")


@dataclass(frozen=True, kw_only=True)
class PreprocessSection:
    """What happens to a case once, before it is cached."""

    __pydantic_config__ = _STRICT

    orientation: Literal["RAS", "native"] = "RAS"
    """Axes of the arrays that the network sees; predictions return to the native grid."""
    spacing: Literal["off", "median"] | tuple[float, float, float] = "off"
    """Voxel size in mm to resample to; `median` of the training cases; `off` keeps each case's own."""
    crop_to_roi: bool = False
    """Keep only the box around the roi (or the computed foreground)."""
    crop_margin: int = 8
    """Voxels kept around that box."""
    normalize: NormalizeSection = field(default_factory=NormalizeSection)
    """Intensity normalization."""

    def __post_init__(self) -> None:
        at_least("crop_margin", self.crop_margin, 0)
        if not isinstance(self.spacing, str):
            for value in self.spacing:
                positive("spacing", value)


@dataclass(frozen=True, kw_only=True)
class SamplingSection:
    """Where segments are taken from and how large they are."""

    __pydantic_config__ = _STRICT

    segment: int | Triple = 37
    """Size of a training segment in voxels."""
    categories: Literal["foreground_background", "uniform", "per_class", "whole_image"] = "foreground_background"
    """What centers are drawn from, inside the roi where a case has one."""
    proportions: tuple[float, ...] | None = None
    """Share of each category, in the order foreground, background or class 0, 1, …; empty: equal."""
    weight_maps: tuple[str, ...] = ()
    """Weight-map columns of the manifest (without `weight_`), one per category, that replace the category's region."""
    cases_per_epoch: int | None = None
    """Draw from that many cases in an epoch (another choice each epoch); empty: from all."""
    workers: int = 1
    """Threads that prepare batches ahead; 0 prepares each batch when it is needed. Never changes what is drawn."""
    memory_gb: float = 8.0
    """Memory of the training device that cached cases may take; beyond it the least recently used are dropped."""

    def __post_init__(self) -> None:
        at_least("workers", self.workers, 0)
        positive("memory_gb", self.memory_gb)
        if self.cases_per_epoch is not None:
            at_least("cases_per_epoch", self.cases_per_epoch, 1)
        if self.proportions is not None and (min(self.proportions) < 0 or sum(self.proportions) <= 0):
            raise ValueError(f"proportions must be at least 0 and not all 0, got {list(self.proportions)}")


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """How long, on what, and in which precision the network trains."""

    __pydantic_config__ = _STRICT

    epochs: int = 35
    """Number of epochs."""
    steps_per_epoch: int = 100
    """Optimizer updates per epoch."""
    batch_size: int = 10
    """Segments per forward pass."""
    accumulate: int = 1
    """Forward passes whose gradients are averaged into one step."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Mixed precision; fp16 uses a loss scaler."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; empty: no clipping."""
    moving_average: float | None = None
    """Decay per step of a moving average of the weights, which then validates and predicts; empty: none."""
    deterministic: bool = True
    """Only deterministic algorithms: the same seed gives the same bits on the same machine."""
    channels_last: bool = False
    """Memory layout that is faster for some networks and devices."""
    compile: bool = False
    """Compile the network (torch.compile)."""
    threads: int | None = None
    """CPU threads; empty: all cores."""

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "batch_size", "accumulate"):
            at_least(name, getattr(self, name), 1)
        if self.gradient_clip is not None:
            positive("gradient_clip", self.gradient_clip)
        if self.moving_average is not None:
            between("moving_average", self.moving_average, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """How gradients become updates."""

    __pydantic_config__ = _STRICT

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "rmsprop"
    """Optimizer. With `compatibility: deepmedic` the definitions are DeepMedic's (epsilon inside the root)."""
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

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        between("momentum", self.momentum, 0.0, 1.0)
        at_least("weight_decay", self.weight_decay, 0.0)


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """How the learning rate goes on."""

    __pydantic_config__ = _STRICT

    name: Literal["constant", "steps", "polynomial", "exponential", "cosine", "plateau"] = "polynomial"
    """Shape of the curve. All but `plateau` and `steps` change at every step, not only at every epoch; in
    compatibility mode they change once per epoch, as DeepMedic's do."""
    warmup: float | None = None
    """Epochs of linear growth before it; empty: none (one epoch in a fine-tuning)."""
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

    def __post_init__(self) -> None:
        if self.name == "steps" and not self.at_epochs:
            raise ValueError("at_epochs must name the epochs of schedule 'steps', got none")
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
    monai: tuple[MonaiLoss, ...] = ()
    """Losses of MONAI to add."""
    class_weights: Literal["none", "frequency"] | tuple[float, ...] = "none"
    """Weights of the classes in the cross-entropy: inverse frequency in the batch, or one number per class."""
    class_weights_epochs: tuple[float, float] | None = None
    """Epochs between which the class weights go back to 1; empty: they stay."""
    label_smoothing: float = 0.0
    """Share of the truth that is spread over all classes."""

    def __post_init__(self) -> None:
        weights = (self.cross_entropy, self.soft_iou, self.soft_dice, *(loss.weight for loss in self.monai))
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

    def __post_init__(self) -> None:
        at_least("l1", self.l1, 0.0)
        at_least("l2", self.l2, 0.0)


@dataclass(frozen=True, kw_only=True)
class ValidationSection:
    """What is measured while the network trains."""

    __pydantic_config__ = _STRICT

    every_epochs: int = 1
    """Epochs between validations on sampled segments; 0: never."""
    segments: int = 100
    """Segments per validation, the same ones each time, drawn uniformly."""
    segment: int | Triple | None = None
    """Size of a validation segment; empty: as in training."""
    volumes_every_epochs: int = 5
    """Epochs between predictions of whole validation volumes; 0: never. The last epoch always has one."""
    max_volumes: int | None = None
    """Predict that many validation cases at most; empty: all."""
    overlays: int = 3
    """Validation cases whose overlay is drawn."""

    def __post_init__(self) -> None:
        for name in ("every_epochs", "volumes_every_epochs", "overlays"):
            at_least(name, getattr(self, name), 0)
        at_least("segments", self.segments, 1)


@dataclass(frozen=True, kw_only=True)
class CheckpointSection:
    """When the state is saved, what is kept, and when to stop."""

    __pydantic_config__ = _STRICT

    every_epochs: int = 1
    """Epochs between checkpoints."""
    every_steps: int | None = None
    """Also save after this many steps within an epoch."""
    keep_last: int = 2
    """Checkpoints kept besides initial, best and the listed epochs."""
    keep_epochs: tuple[int, ...] = ()
    """Epochs whose checkpoint is kept for ever."""
    best_metric: str = "auto"
    """Metric that names the best checkpoint; auto: val_volume/dice, else val/dice, else the training loss."""
    best_mode: Literal["max", "min", "auto"] = "auto"
    """Whether larger or smaller is better; auto: smaller for a loss."""
    early_stopping: int | None = None
    """Stop after this many epochs without a better value of `best_metric`; empty: never."""

    def __post_init__(self) -> None:
        at_least("every_epochs", self.every_epochs, 1)
        at_least("keep_last", self.keep_last, 1)


@dataclass(frozen=True, kw_only=True)
class PredictionSection:
    """How whole volumes are predicted, in validation and later."""

    __pydantic_config__ = _STRICT

    tile: int | Triple | Literal["auto"] = "auto"
    """Segment size of a tile; auto: as large as the memory at hand allows."""
    overlap: float = 0.0
    """Share of a tile's output that is predicted twice and averaged."""
    mirror: tuple[Literal[0, 1, 2], ...] = ()
    """Axes (0 left-right, 1 back-front, 2 down-up) whose mirrored predictions are averaged."""
    batch_size: int = 1
    """Tiles per forward pass."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of prediction; empty: as in training."""

    def __post_init__(self) -> None:
        between("overlap", self.overlap, 0.0, 0.9)
        at_least("batch_size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True)
class TrackingSection:
    """Where runs are kept and what they tell."""

    __pydantic_config__ = _STRICT

    uri: str | None = None
    """Tracking server or store; empty: MLFLOW_TRACKING_URI, else mlruns/mlflow.db of the project."""
    experiment: str | None = None
    """MLflow experiment; empty: the experiment's name."""
    git_diff: bool = True
    """Keep uncommitted changes of the code as an artifact."""
    pseudonyms: bool = False
    """Replace subject ids by a salted hash in what is logged."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One research question's settings, as resolved and kept with each run."""

    __pydantic_config__ = _STRICT

    name: str
    """Short name; also the MLflow experiment."""
    description: str = ""
    """One or two sentences for the run's note."""
    task: Literal["segmentation"] = "segmentation"
    """What the network learns."""
    compatibility: Literal["none", "deepmedic"] = "none"
    """`deepmedic` computes exactly what DeepMedic v0.8.4 does: borders, subsampling, statistics, optimizers."""
    seed: int = 0
    """Seed of every random draw."""
    cohort: CohortSection
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)
    sampling: SamplingSection = field(default_factory=SamplingSection)
    augmentation: AugmentationSection = field(default_factory=AugmentationSection)
    model: ModelSection = field(default_factory=ModelSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    losses: LossSection = field(default_factory=LossSection)
    regularization: RegularizationSection = field(default_factory=RegularizationSection)
    validation: ValidationSection = field(default_factory=ValidationSection)
    checkpoints: CheckpointSection = field(default_factory=CheckpointSection)
    prediction: PredictionSection = field(default_factory=PredictionSection)
    tracking: TrackingSection = field(default_factory=TrackingSection)
