"""Describe the network of an experiment."""

from pathlib import Path

from dmx.config.sections import Experiment
from dmx.geometry import Triple, triple
from dmx.model.build import build_network
from dmx.model.show import ModelReport, describe
from dmx.workflows.data import read_cohort


def describe_experiment(
    experiment: Experiment, *, segment: Triple | None = None, batch_size: int | None = None
) -> ModelReport:
    """Build an experiment's network and say what it is made of and what it costs.

    Only names of channels and classes are needed: the manifest is read where the experiment does not name both, and no
    scan is opened.

    Args:
        experiment: The experiment.
        segment: Size of a segment; that of the training if None.
        batch_size: Segments per pass; that of the training if None.

    Raises:
        ModelError: The network cannot be built, or cannot take the segment.
        CohortError: The manifest is needed and cannot be read.
    """
    channels, classes = experiment.cohort.channels, experiment.cohort.classes
    if not (channels and classes):
        cohort = read_cohort(Path(experiment.cohort.manifest))
        channels, classes = channels or cohort.channels, classes or cohort.classes
    network = build_network(
        experiment.model,
        num_channels=len(channels),
        num_classes=len(classes),
        compatibility=experiment.compatibility,
        seed=experiment.seed,
    )
    size = segment or triple(experiment.sampling.segment)
    return describe(network, experiment.model, size, batch_size=batch_size or experiment.training.batch_size)
