"""Describe the network of an experiment or of a run."""

from collections.abc import Sequence
from pathlib import Path

from dmx.cohort.gather import gather_stimuli
from dmx.config.sections import CohortSection, Experiment
from dmx.geometry import Triple, triple
from dmx.model.build import build_network
from dmx.model.classifier import build_classifier
from dmx.model.image_facts import image_facts
from dmx.model.network import Network, TrainableNetwork
from dmx.model.show import ModelReport, describe
from dmx.model.show_scores import ScoringReport, describe_scoring
from dmx.preprocess.image_contract import ImageContract, resolve_image_contract
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.data import known_channels, read_cohort, with_manifest
from dmx.workflows.freezing import resolve_freezing
from dmx.workflows.labeled_volumes import class_names
from dmx.workflows.stimuli import require_classes
from dmx.workflows.trained import open_network

AnyReport = ModelReport | ScoringReport


def describe_experiment(
    experiment: Experiment, *, segment: Triple | None = None, batch_size: int | None = None
) -> AnyReport:
    """Build an experiment's network and say what it is made of and what it costs.

    Only names of channels and classes are needed: the manifest or the list of images is read where the experiment does
    not name them, and no scan or image is opened.

    Args:
        experiment: The experiment.
        segment: Size of a segment, an image (its first two numbers) or a volume; that of the training if None, and for
            volumes, whose sizes differ, one that the network can take.
        batch_size: Segments, images or volumes per pass; that of the training if None.

    Raises:
        ModelError: The network cannot be built, or cannot take the size.
        CohortError: The manifest or the list of images is needed and cannot be read.
    """
    batch_size = batch_size or experiment.training.batch_size
    if experiment.task != "segmentation":
        return _scoring_experiment(experiment, segment, batch_size=batch_size)
    channels, outputs = _segmentation(experiment.cohort)
    network = build_network(
        experiment.model,
        num_channels=len(channels),
        num_classes=len(outputs),
        compatibility=experiment.compatibility,
        seed=experiment.seed,
    )
    size = segment or triple(experiment.sampling.segment)
    return describe(network, experiment.model, size, batch_size=batch_size)


def _segmentation(section: CohortSection) -> tuple[Sequence[str], Sequence[str]]:
    """Return channels, and regions or classes; the manifest is read where it may name one of them."""
    channels, classes, manifest = section.channels, section.classes, Path(section.manifest)
    if not (channels and (classes or section.regions)) or (section.regions is None and manifest.is_file()):
        cohort = read_cohort(manifest)
        section = with_manifest(section, cohort)
        channels, classes = channels or cohort.channels, classes or cohort.classes
    return channels, [*(section.regions or classes)]


def _scoring_experiment(experiment: Experiment, size: Triple | None, *, batch_size: int) -> ScoringReport:
    crop = None
    if experiment.stimuli is not None:
        contract = _image_contract(experiment)
        channels, outputs, crop = contract.channels, contract.outputs, contract.crop
    else:
        channels, outputs = _volumes(experiment)
    network = build_classifier(
        experiment.model,
        num_channels=len(channels),
        num_outputs=len(outputs),
        seed=experiment.seed,
        spatial_dims=3 if experiment.stimuli is None else 2,
    )
    return _scoring(network, experiment, size, outputs=outputs, crop=crop, batch_size=batch_size)


def _image_contract(experiment: Experiment) -> ImageContract:
    """Return what the network sees of images; their list is read only where it has to name the classes."""
    section = experiment.stimuli
    assert section is not None
    classes: tuple[str, ...] = ()
    if not section.targets:
        classes = section.classes or gather_stimuli(section, seed=experiment.seed).classes
        require_classes(classes, owner=f"'{section.source}'")
    return resolve_image_contract(
        experiment.image_preprocess, image_facts(experiment.model.name), classes=classes, targets=section.targets
    )


def _volumes(experiment: Experiment) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return channels, and classes or targets, of an experiment on volumes."""
    section = experiment.cohort
    cohort = read_cohort(Path(section.manifest))
    outputs = section.targets or class_names(cohort)
    if not section.targets:
        require_classes(outputs, owner=f"cohort '{cohort.name}' (column 'label')")
    return tuple(known_channels(section.channels, cohort.channels)), tuple(outputs)


def _scoring(
    network: TrainableNetwork,
    experiment: Experiment,
    size: Triple | None,
    *,
    outputs: tuple[str, ...],
    crop: tuple[int, int] | None,
    batch_size: int,
) -> ScoringReport:
    if crop is not None:
        chosen: tuple[int, ...] = size[:2] if size else crop
    else:
        chosen = size or network.example_shape
    return describe_scoring(
        network,
        chosen,
        name=experiment.model.name,
        outputs=outputs,
        freeze=resolve_freezing(experiment, network),
        batch_size=batch_size,
    )


def describe_run(
    run: str, *, segment: Triple | None = None, batch_size: int | None = None, uri: str | None, root: Path
) -> AnyReport:
    """Say what a run's network is made of and what it costs.

    Args:
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        segment: Size, as for :func:`describe_experiment`.
        batch_size: Segments, images or volumes per pass; that of the training if None.
        uri: Run store.
        root: Folder of the project.

    Raises:
        RunError: There is no such run, or it has no checkpoint.
        ModelError: The network cannot take the size.
    """
    trained = open_network(open_store(uri, root), run, checkpoint=None, root=root)
    experiment, contract = trained.experiment, trained.contract
    batch_size = batch_size or experiment.training.batch_size
    if not isinstance(trained.network, Network):
        crop = contract.crop if isinstance(contract, ImageContract) else None
        return _scoring(
            trained.network, experiment, segment, outputs=contract.outputs, crop=crop, batch_size=batch_size
        )
    size = segment or triple(experiment.sampling.segment)
    return describe(trained.network, experiment.model, size, batch_size=batch_size)
