"""Describe the network of an experiment or of a run."""

from dataclasses import dataclass
from pathlib import Path

from dmx.config.sections import Experiment
from dmx.errors import ConfigError
from dmx.geometry import Triple, triple
from dmx.model.build import build_network
from dmx.model.network import Network, TrainableNetwork
from dmx.model.show import ModelReport, describe
from dmx.tracking.mlflow_store import open_store
from dmx.transfer.aliases import known_as
from dmx.workflows.data import read_cohort
from dmx.workflows.trained import open_network


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
    if experiment.task != "segmentation":
        raise ConfigError(
            f"'dmx model show' follows segments through segmentation networks, got task '{experiment.task}'. "
            "'dmx transfer EXPERIMENT --dry-run' lists the layers of any network."
        )
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


@dataclass(frozen=True, kw_only=True)
class NamedLayer:
    """A layer of a network that scores whole images or volumes.

    Attributes:
        name: Its name, without the prefix of a wrapped network.
        short_names: Other names under which it may be given.
        parameters: Trainable numbers.
        is_head: Whether it gives the scores.
    """

    name: str
    short_names: tuple[str, ...]
    parameters: int
    is_head: bool


def describe_run(
    run: str, *, segment: Triple | None = None, batch_size: int | None = None, uri: str | None, root: Path
) -> ModelReport | tuple[NamedLayer, ...]:
    """Say what a run's network is made of: its layers by name, and in segmentation what they cost.

    Args:
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        segment: Size of a segment; that of the training if None.
        batch_size: Segments per pass; that of the training if None.
        uri: Run store.
        root: Folder of the project.

    Raises:
        RunError: There is no such run, or it has no checkpoint.
        ModelError: The network cannot take the segment.
    """
    trained = open_network(open_store(uri, root), run, checkpoint=None, root=root)
    if not isinstance(trained.network, Network):
        return _named_layers(trained.network)
    experiment = trained.experiment
    size = segment or triple(experiment.sampling.segment)
    return describe(trained.network, experiment.model, size, batch_size=batch_size or experiment.training.batch_size)


def _named_layers(network: TrainableNetwork) -> tuple[NamedLayer, ...]:
    layers = []
    for group in network.layer_groups():
        bare = known_as(group.name, {})[-1]
        # A part of a module with a short name is known as that name and more.
        short = [name for name in known_as(group.name, network.aliases) if name in network.aliases]
        layers.append(
            NamedLayer(
                name=bare,
                short_names=tuple(short),
                parameters=sum(parameter.numel() for parameter in group.parameters.values()),
                is_head=group.is_head,
            )
        )
    return tuple(layers)
