"""What a training needs of an experiment."""

from dataclasses import dataclass, field
from typing import Literal

from dmx.cohort.regions import Regions
from dmx.config.optimization import LossSection, OptimizerSection, RegularizationSection, ScheduleSection
from dmx.config.sections import CheckpointSection, Experiment, TrainingSection
from dmx.config.tasks import Task
from dmx.transfer.freeze import FreezePlan

Compatibility = Literal["none", "deepmedic"]
Unit = Literal["segments", "images", "volumes"]


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """The sections that the training core reads.

    Attributes:
        classes: Names of the classes, in segmentation background first; empty for a regression.
        regions: Regions of these classes, one output of the network for each; without any, the classes are its outputs.
        task: What the network learns.
        unit: What its batches hold, for whoever shows how fast it goes.
        seed: Seed of the random draws of a step (dropout).
        freeze: What stays as it is, and until when.
        compatibility: ``deepmedic`` computes losses, updates and schedules as DeepMedic v0.8.4 does.
    """

    classes: tuple[str, ...]
    regions: Regions = field(default_factory=Regions)
    training: TrainingSection = field(default_factory=TrainingSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    losses: LossSection = field(default_factory=LossSection)
    regularization: RegularizationSection = field(default_factory=RegularizationSection)
    checkpoints: CheckpointSection = field(default_factory=CheckpointSection)
    freeze: FreezePlan = field(default_factory=FreezePlan)
    task: Task = "segmentation"
    unit: Unit = "segments"
    seed: int = 0
    compatibility: Compatibility = "none"

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        classes: tuple[str, ...],
        *,
        regions: Regions | None = None,
        freeze: FreezePlan | None = None,
    ) -> "FitSettings":
        """Return the sections of an experiment, whose section of freezing needs the network to become a plan."""
        return cls(
            classes=classes,
            regions=regions or Regions(),
            training=experiment.training,
            optimizer=experiment.optimizer,
            schedule=experiment.schedule,
            losses=experiment.losses,
            regularization=experiment.regularization,
            checkpoints=experiment.checkpoints,
            freeze=FreezePlan() if freeze is None else freeze,
            task=experiment.task,
            unit=_unit(experiment),
            seed=experiment.seed,
            compatibility=experiment.compatibility,
        )


def _unit(experiment: Experiment) -> Unit:
    if experiment.stimuli is not None:
        return "images"
    return "segments" if experiment.task == "segmentation" else "volumes"
