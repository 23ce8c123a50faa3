"""Trainings of networks that score whole images or volumes: checked, and with their data prepared."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from dmx.cohort.check import CheckReport
from dmx.cohort.check_images import check_images
from dmx.config.sections import Experiment
from dmx.errors import ModelError
from dmx.model.classifier import build_classifier
from dmx.model.meta import meta_call, meta_state, mode
from dmx.model.module import first_sentence
from dmx.model.network import TrainableNetwork
from dmx.preprocess.image_cache import ImageCache
from dmx.sampling.batch import Batch
from dmx.sampling.images import ImageSampler, ImagesInOrder
from dmx.sampling.order import DrawnOrder, Key
from dmx.sampling.prefetch import Prefetcher
from dmx.sampling.volumes import VolumeSampler, VolumesInOrder
from dmx.training.device import resolve_device
from dmx.training.losses import Loss
from dmx.training.progress import require_metric
from dmx.training.settings import FitSettings
from dmx.training.state import new_state
from dmx.workflows.checked import Assembled, Checked, Sampler, prefetched
from dmx.workflows.data import TrainingData, require_no_errors
from dmx.workflows.fixed_features import FixedFeatures
from dmx.workflows.freezing import resolve_freezing
from dmx.workflows.labeled_volumes import check_volumes, resolve_volumes
from dmx.workflows.score_validation import ScoreValidation
from dmx.workflows.session import Session
from dmx.workflows.source import cache_folder, case_source, prepare_cases
from dmx.workflows.stimuli import ImageData, case_targets, image_source, resolve_images

_BEST = {"classification": "val/accuracy", "regression": "val/loss"}


@dataclass(frozen=True, kw_only=True)
class CheckedScoring(Checked):
    """A training of a network that scores whole images or volumes.

    Attributes:
        data: Images, or volumes with a label.
        order: Which of them comes when.
    """

    data: ImageData | TrainingData
    order: DrawnOrder | None


@dataclass(frozen=True, kw_only=True)
class AssembledScoring(Assembled):
    """A training whose images or volumes are prepared.

    Attributes:
        scores: Scores the network.
        fixed: Computes features once where only the head is trained.
    """

    scores: ScoreValidation
    fixed: FixedFeatures

    def batches(self) -> AbstractContextManager[Prefetcher[Key, Batch]]:
        """Return the batches; where only the head is trained they are features, which are computed now."""
        found = self.fixed.computed(self.state, self.scores)
        if found is None:
            return super().batches()
        return prefetched(found, workers=0)


def check_scoring(experiment: Experiment, session: Session, *, trains: bool = True) -> CheckedScoring:
    """Check everything that can be checked before anything is written.

    Raises:
        DmxError: The first thing that keeps the training from starting.
    """
    device = resolve_device(experiment.training.device)
    data: ImageData | TrainingData
    if experiment.stimuli is not None:
        data = resolve_images(experiment, trains=trains)
        findings = _checked_images(data, session)
    else:
        data = resolve_volumes(experiment, trains=trains)
        findings = check_volumes(experiment, data, session)
    validated = bool(data.validation) and experiment.validation.every_epochs > 0
    require_metric(experiment.checkpoints, validated=validated)
    outputs = data.contract.outputs
    network = build_classifier(
        experiment.model,
        num_channels=len(data.contract.channels),
        num_outputs=len(outputs),
        seed=experiment.seed,
        spatial_dims=data.contract.spatial_dims,
    )
    if isinstance(data, ImageData):
        _require_readable(network, experiment.model.name, data.contract.crop)
    freeze = resolve_freezing(experiment, network)
    order = drawn_order(experiment, data) if data.training else None
    settings = FitSettings.of(experiment, outputs if experiment.task == "classification" else (), freeze=freeze)
    settings = _resolved(settings, order, validated=validated)
    Loss.of(settings)
    return CheckedScoring(
        experiment=experiment,
        data=data,
        contract=data.contract,
        network=network,
        settings=settings,
        device=device,
        findings=findings,
        order=order,
    )


def _checked_images(data: ImageData, session: Session) -> CheckReport:
    """Check all images.

    Raises:
        CohortError: The first findings.
    """
    stimuli = data.stimuli
    if data.contract.targets:
        # Labels that a regression does not learn need no images.
        stimuli = replace(stimuli, classes=(), labels=())
    findings = check_images(stimuli, progress=session.progress("checking images"))
    require_no_errors(findings, session)
    return findings


def _require_readable(network: TrainableNetwork, name: str, size: tuple[int, int]) -> None:
    """Raise ``ModelError`` where a network cannot take images of a size."""
    images = torch.empty(2, network.num_channels, *size, device="meta")
    try:
        with mode(network, training=False), torch.no_grad():
            meta_call(network, meta_state(network), [images])
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            f"Network {name} cannot take images of {size[0]} x {size[1]} pixels ({first_sentence(error)}). Set another "
            "image_preprocess.crop."
        ) from error


def _resolved(settings: FitSettings, order: DrawnOrder | None, *, validated: bool) -> FitSettings:
    """Return the settings with the number of steps, and the metric that names the best checkpoint."""
    training, checkpoints = settings.training, settings.checkpoints
    steps = training.steps_per_epoch or (1 if order is None else order.steps_per_epoch)
    if validated and checkpoints.best_metric == "auto":
        checkpoints = replace(checkpoints, best_metric=_BEST[settings.task])
    return replace(settings, training=replace(training, steps_per_epoch=steps), checkpoints=checkpoints)


def drawn_order(experiment: Experiment, data: ImageData | TrainingData) -> DrawnOrder:
    """Return which training image or volume comes when."""
    training = experiment.training
    return DrawnOrder(
        case_targets(data.training, data.cohort.label_classes, data.contract.outputs, task=experiment.task),
        [case.name for case in data.training],
        data.contract.outputs,
        batch_size=training.batch_size,
        accumulate=training.accumulate,
        steps_per_epoch=training.steps_per_epoch or None,
        balanced=experiment.sampling.balanced,
        seed=experiment.seed,
    )


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """Cases that can be read.

    Attributes:
        sampler: Gives them for training.
        training: Gives those of the training as in prediction.
        held_out: The same for validation.
    """

    sampler: Sampler
    training: Iterable[Batch]
    held_out: Iterable[Batch] | None


def assemble_scoring(
    checked: CheckedScoring, session: Session, *, received: Mapping[str, str] | None = None
) -> AssembledScoring:
    """Prepare the images or volumes and make sampler, state and validation.

    Args:
        checked: The training; its network has the weights it begins with.
        session: Where the project is and whom to tell.
        received: Parameter → how it came from a source; ``None``: none did, or a checkpoint will tell.
    """
    assert checked.order is not None
    experiment, outputs = checked.experiment, checked.contract.outputs
    if left := checked.order.left_over:
        session.report.say(
            f"{left} of {len(checked.order)} training cases are too few for the {experiment.training.accumulate} "
            "batches of a last step; each epoch leaves so many for the next one, which begins with them."
        )
    found = _images(checked, session) if isinstance(checked.data, ImageData) else _volumes(checked, session)
    scores = ScoreValidation(experiment, checked.settings, outputs, held_out=found.held_out, training=found.training)
    fixed = FixedFeatures(
        experiment=experiment,
        settings=checked.settings,
        order=checked.order,
        training=found.training,
        held_out=found.held_out,
        say=session.report.say,
    )
    return AssembledScoring(
        checked=checked,
        state=new_state(checked.network, checked.settings, received=received, optimizer=checked.optimizer),
        sampler=found.sampler,
        validate=scores if scores.measures else None,
        scores=scores,
        fixed=fixed,
    )


def _images(checked: CheckedScoring, session: Session) -> _Prepared:
    experiment, data, device = checked.experiment, checked.data, checked.device
    assert isinstance(data, ImageData)
    cache = ImageCache(cache_folder(session.root))
    memory = experiment.sampling.memory_gb
    told = session.progress("preparing images")
    size = max(experiment.prediction.batch_size, experiment.training.batch_size)
    sources = {}
    for split, share, cases in (("training", 1.0, data.training), ("validation", 0.25, data.validation)):
        if cases:
            cached = cache.prepare(data.stimuli.in_split(split), data.contract, progress=told)
            target = case_targets(cases, data.cohort.label_classes, checked.contract.outputs, task=experiment.task)
            sources[split] = image_source(cached, target, device=device, memory_gb=memory * share)
    in_order = {
        split: ImagesInOrder(source, data.contract, batch_size=size, device=device) for split, source in sources.items()
    }
    training = experiment.training
    sampler = ImageSampler(
        sources["training"],
        data.contract,
        experiment.image_augmentation,
        batch_size=training.batch_size,
        accumulate=training.accumulate,
        steps_per_epoch=training.steps_per_epoch or None,
        balanced=experiment.sampling.balanced,
        seed=experiment.seed,
        device=device,
    )
    return _Prepared(sampler=sampler, training=in_order["training"], held_out=in_order.get("validation"))


def _volumes(checked: CheckedScoring, session: Session) -> _Prepared:
    experiment, data, device = checked.experiment, checked.data, checked.device
    assert isinstance(data, TrainingData)
    assert checked.order is not None
    cases = (*data.training, *data.validation)
    told = session.progress("preparing cases")
    cached = prepare_cases(cases, data.contract, root=session.root, progress=told)
    target = case_targets(cases, data.cohort.label_classes, checked.contract.outputs, task=experiment.task)
    count, memory = len(data.training), experiment.sampling.memory_gb
    training = case_source(cached[:count], device=device, memory_gb=memory)
    held_out = case_source(cached[count:], device=device, memory_gb=memory / 4)
    size = experiment.prediction.batch_size
    return _Prepared(
        sampler=VolumeSampler(
            training, target[:count], checked.order, augmentation=experiment.augmentation, device=device
        ),
        training=VolumesInOrder(training, target[:count], batch_size=size, device=device),
        held_out=VolumesInOrder(held_out, target[count:], batch_size=size, device=device) if cached[count:] else None,
    )
