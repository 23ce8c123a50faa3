"""The sections of an experiment: one frozen dataclass per component, the only home of its settings and defaults.

Standard library only, so that the training core can import its section on a machine that has nothing but torch. Reading
YAML, unknown keys and types are checked in :mod:`dmx.config.load`; each section checks the meaning of its values itself
and raises ``ValueError`` with *name, allowed, got*.
"""

from dataclasses import dataclass, field
from typing import Literal

from dmx.config.augmentation import AugmentationSection
from dmx.config.check import at_least, between, positive, size
from dmx.config.data import CohortSection, NormalizeSection, PreprocessSection, SamplingSection
from dmx.config.freeze import FreezeSection
from dmx.config.images import ImageAugmentationSection, ImagePreprocessSection, StimuliSection
from dmx.config.model import ModelSection
from dmx.config.optimization import LossSection, MonaiLoss, OptimizerSection, RegularizationSection, ScheduleSection
from dmx.config.tasks import Task, check_task
from dmx.config.transfer import TransferSection

__all__ = [
    "AugmentationSection",
    "CheckpointSection",
    "CohortSection",
    "Experiment",
    "FreezeSection",
    "ImageAugmentationSection",
    "ImagePreprocessSection",
    "LossSection",
    "ModelSection",
    "MonaiLoss",
    "NormalizeSection",
    "OptimizerSection",
    "PredictionSection",
    "PreprocessSection",
    "RegularizationSection",
    "SamplingSection",
    "ScheduleSection",
    "StimuliSection",
    "Task",
    "TrackingSection",
    "TrainingSection",
    "ValidationSection",
]

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}

Triple = tuple[int, int, int]

_LONGEST_NAME = 120


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """How long, on what, and in which precision the network trains."""

    __pydantic_config__ = _STRICT

    epochs: int = 35
    """Number of epochs."""
    steps_per_epoch: int = 100
    """Optimizer updates per epoch; 0, the default for whole images and volumes: as many as one pass over them takes."""
    batch_size: int = 10
    """Segments per forward pass. Other tasks: images or volumes."""
    accumulate: int = 1
    """Forward passes whose gradients are averaged into one step."""
    processes: int = 1
    """Processes that share the passes of a step out; `accumulate` must be a multiple of it. On CUDA each has a GPU."""
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
    """CPU threads of each process of the training; empty: as torch chooses, usually all cores, shared out between the
    processes."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "processes"):
            at_least(name, getattr(self, name), 1)
        if self.accumulate % self.processes:
            raise ValueError(
                f"accumulate must be a multiple of processes ({self.processes}), which share the passes of a step out, "
                f"got {self.accumulate}"
            )
        at_least("steps_per_epoch", self.steps_per_epoch, 0)
        if self.gradient_clip is not None:
            positive("gradient_clip", self.gradient_clip)
        if self.threads is not None:
            at_least("threads", self.threads, 1)
        if self.moving_average is not None and not 0.0 <= self.moving_average < 1.0:
            raise ValueError(f"moving_average must be at least 0 and below 1, got {self.moving_average}")


@dataclass(frozen=True, kw_only=True)
class ValidationSection:
    """What is measured while the network trains."""

    __pydantic_config__ = _STRICT

    every_epochs: int = 1
    """Epochs between validations on sampled segments (of whole images and volumes: on all), and after the last epoch;
    0: never."""
    score_train: bool = False
    """Also score all training images or volumes then, in inference mode; not for segmentation."""
    segments: int = 100
    """Segments per validation, at least; the same ones each time, drawn uniformly from all cases."""
    segment: int | Triple | None = None
    """Size of a validation segment; empty: as in training."""
    volumes_every_epochs: int = 5
    """Epochs between predictions of whole validation volumes, and after the last epoch; 0: never."""
    max_volumes: int | None = None
    """Predict that many validation cases at most; empty: all."""
    overlays: int = 3
    """Validation cases whose overlay is drawn."""

    def __post_init__(self) -> None:
        for name in ("every_epochs", "volumes_every_epochs", "overlays"):
            at_least(name, getattr(self, name), 0)
        at_least("segments", self.segments, 1)
        if self.max_volumes is not None:
            at_least("max_volumes", self.max_volumes, 1)


@dataclass(frozen=True, kw_only=True)
class CheckpointSection:
    """When the state is saved, what is kept, and when to stop."""

    __pydantic_config__ = _STRICT

    every_epochs: int = 1
    """Epochs between checkpoints; a new best one is saved in between, too."""
    every_steps: int | None = None
    """Also save after this many steps within an epoch."""
    keep_last: int = 2
    """Checkpoints kept besides initial, best and the listed epochs."""
    keep_epochs: tuple[int, ...] = ()
    """Epochs, from 0, whose checkpoint is kept for ever."""
    best_metric: str = "auto"
    """Metric that names the best checkpoint; auto: val_volume/dice, else val/dice, else the training loss;
    classification: val/accuracy, regression: val/loss."""
    best_mode: Literal["max", "min", "auto"] = "auto"
    """Whether larger or smaller is better; auto: smaller for a loss."""
    early_stopping: int | None = None
    """Stop after this many epochs without a better value of `best_metric`; empty: never."""

    def __post_init__(self) -> None:
        at_least("every_epochs", self.every_epochs, 1)
        at_least("keep_last", self.keep_last, 1)
        for name in ("every_steps", "early_stopping"):
            if (value := getattr(self, name)) is not None:
                at_least(name, value, 1)


@dataclass(frozen=True, kw_only=True)
class PredictionSection:
    """How whole volumes are predicted, in validation and later."""

    __pydantic_config__ = _STRICT

    tile: int | Triple | Literal["auto"] = "auto"
    """Segment size of a tile; auto: as large as the memory at hand allows."""
    overlap: float = 0.0
    """Share of a tile's output that is predicted twice and averaged."""
    mirror: tuple[Literal[0, 1, 2], ...] = ()
    """Axes whose mirrored predictions are averaged; with orientation RAS 0 is left-right, 1 back-front, 2 down-up."""
    batch_size: int = 1
    """Tiles, images or volumes per forward pass."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of prediction; empty: as in training."""

    def __post_init__(self) -> None:
        if self.tile != "auto":
            size("tile", self.tile)
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
    task: Task = "segmentation"
    """What the network learns: classes of voxels, or classes or numbers of whole images (`stimuli`) or volumes
    (`cohort`)."""
    compatibility: Literal["none", "deepmedic"] = "none"
    """`deepmedic` computes exactly what DeepMedic v0.8.4 does: borders, subsampling, statistics, optimizers."""
    seed: int = 0
    """Seed of every random draw."""
    recipe: Literal["inherited", "default"] = "inherited"
    """What a fine-tuning uses where the experiment says nothing: the source's settings, or the defaults."""
    cohort: CohortSection = field(default_factory=lambda: CohortSection(manifest=""))
    """Volumes to learn from."""
    stimuli: StimuliSection | None = None
    """Images to learn from, instead of a cohort."""
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)
    image_preprocess: ImagePreprocessSection = field(default_factory=ImagePreprocessSection)
    sampling: SamplingSection = field(default_factory=SamplingSection)
    augmentation: AugmentationSection = field(default_factory=AugmentationSection)
    image_augmentation: ImageAugmentationSection = field(default_factory=ImageAugmentationSection)
    model: ModelSection = field(default_factory=ModelSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    freeze: FreezeSection = field(default_factory=FreezeSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    losses: LossSection = field(default_factory=LossSection)
    regularization: RegularizationSection = field(default_factory=RegularizationSection)
    validation: ValidationSection = field(default_factory=ValidationSection)
    checkpoints: CheckpointSection = field(default_factory=CheckpointSection)
    prediction: PredictionSection = field(default_factory=PredictionSection)
    transfer: TransferSection | None = None
    """What the network receives from others before it trains; empty: nothing."""
    tracking: TrackingSection = field(default_factory=TrackingSection)

    def __post_init__(self) -> None:
        for name, text in (("name", self.name), ("tracking.experiment", self.tracking.experiment)):
            if text is not None and not (text.strip() and text.isprintable() and len(text) <= _LONGEST_NAME):
                raise ValueError(f"{name} must have 1 to {_LONGEST_NAME} printable characters, got {text[:60]!r}")
        check_task(self)
