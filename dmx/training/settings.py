"""What a training needs of an experiment."""

from dataclasses import dataclass, field
from typing import Literal

from dmx.config.optimization import LossSection, OptimizerSection, RegularizationSection, ScheduleSection
from dmx.config.sections import CheckpointSection, Experiment, TrainingSection

Compatibility = Literal["none", "deepmedic"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The sections that the training core reads.

    Attributes:
        classes: Names of the classes, background first.
        seed: Seed of the random draws of a step (dropout).
        compatibility: ``deepmedic`` computes losses, updates and schedules as DeepMedic v0.8.4 does.
    """

    classes: tuple[str, ...]
    training: TrainingSection = field(default_factory=TrainingSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    losses: LossSection = field(default_factory=LossSection)
    regularization: RegularizationSection = field(default_factory=RegularizationSection)
    checkpoints: CheckpointSection = field(default_factory=CheckpointSection)
    seed: int = 0
    compatibility: Compatibility = "none"

    @classmethod
    def of(cls, experiment: Experiment, classes: tuple[str, ...]) -> "FitSettings":
        """Return the sections of an experiment."""
        return cls(
            classes=classes,
            training=experiment.training,
            optimizer=experiment.optimizer,
            schedule=experiment.schedule,
            losses=experiment.losses,
            regularization=experiment.regularization,
            checkpoints=experiment.checkpoints,
            seed=experiment.seed,
            compatibility=experiment.compatibility,
        )
