"""Put the parts of a training together; the same way for a new training and for one that goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmx.cohort.case import Case
from dmx.cohort.check import check_cohort
from dmx.cohort.digest import files_sha256
from dmx.config.sections import Experiment
from dmx.errors import CohortError, ConfigError
from dmx.geometry import SegmentPlan, triple
from dmx.model.network import Network
from dmx.preprocess.contract import Contract, with_written_values
from dmx.sampling.sampler import SegmentSampler
from dmx.training.device import resolve_device, resolve_devices
from dmx.training.losses import Loss
from dmx.training.progress import require_metric
from dmx.training.settings import FitSettings
from dmx.training.state import new_state
from dmx.transfer.freeze import FreezePlan
from dmx.workflows.checked import Assembled, Checked
from dmx.workflows.data import TrainingData, make_network, padded, require_no_errors, resolve_data
from dmx.workflows.freezing import resolve_freezing
from dmx.workflows.handed import Handed
from dmx.workflows.privacy import hiding
from dmx.workflows.scoring import CheckedScoring, assemble_scoring, check_scoring
from dmx.workflows.session import Session
from dmx.workflows.source import case_source, kept_of, prepare_cases
from dmx.workflows.validation import Validation


@dataclass(frozen=True, kw_only=True)
class CheckedSegments(Checked):
    """A training of a segmentation network.

    Attributes:
        data: Cases, channels, classes.
        contract: What the network sees, padding included.
        network: The network, with fresh weights.
        plan: How training segments are read.
    """

    data: TrainingData
    contract: Contract
    network: Network
    plan: SegmentPlan


def check_training(
    experiment: Experiment, session: Session, *, trains: bool = True, handed: Handed | None = None
) -> Checked:
    """Check everything that can be checked before anything is written.

    Args:
        experiment: The experiment.
        session: Whom to tell.
        trains: Whether it is trained now; a network that only receives weights needs no label maps.
        handed: A network that was made in Python, which takes the place of the experiment's.

    Raises:
        DmxError: The first thing that keeps the training from starting, or all findings about the cohort.
    """
    _require_measured(experiment)
    _require_processes(experiment, handed)
    if experiment.task != "segmentation":
        if handed is not None:
            raise ConfigError(
                f"A network that was made in Python learns task 'segmentation' from a manifest, got "
                f"'{experiment.task}'. Give batches instead, or name the network in the settings."
            )
        return check_scoring(experiment, session, trains=trains)
    return _check_segments(experiment, session, trains=trains, handed=handed)


def _check_segments(
    experiment: Experiment, session: Session, *, trains: bool, handed: Handed | None
) -> CheckedSegments:
    device = resolve_device(experiment.training.device)
    data = resolve_data(experiment, trains=trains)
    require_metric(experiment.checkpoints, validated=bool(data.validation))
    if merged := data.contract.regions.merged():
        session.warn(
            f"Label maps cannot tell all regions apart: label {'; label '.join(merged)}. Scores are those of label "
            "maps; set another cohort.regions_class_order, or look at the probability maps."
        )
    if handed is None:
        network, plan = make_network(experiment, data.contract)
    else:
        network = handed.network(data.contract)
        plan = network.segment_plan(triple(experiment.sampling.segment))
    freeze = resolve_freezing(experiment, network)
    if experiment.validation.segment is not None:
        network.segment_plan(triple(experiment.validation.segment))
    findings = check_cohort(
        data.cohort,
        num_classes=len(data.contract.classes),
        classes=data.contract.scored,
        fill=experiment.cohort.fill,
        labels=data.contract.labels,
        complete=data.contract.labels_complete,
        channels=data.contract.channels,
        ignore=data.contract.ignore,
        progress=session.progress("checking files"),
    )
    require_no_errors(findings, session)
    return CheckedSegments(
        experiment=experiment,
        data=data,
        contract=with_written_values(padded(data.contract, plan), findings.label_counts),
        network=network,
        plan=plan,
        settings=_settings(experiment, data.contract, freeze),
        device=device,
        findings=findings,
        optimizer=None if handed is None else handed.optimizer,
    )


def _settings(experiment: Experiment, contract: Contract, freeze: FreezePlan) -> FitSettings:
    """Return what the training core needs, its losses tried.

    Raises:
        ConfigError: A loss cannot judge the outputs, or cannot leave voxels out that nobody annotated.
    """
    settings = FitSettings.of(experiment, contract.classes, regions=contract.regions, freeze=freeze)
    loss = Loss.of(settings)
    if loss.of_shapes and contract.ignore is not None:
        raise ConfigError(
            f"losses.monai: {loss.of_shapes[0]} measures shapes and cannot leave out voxels that nobody annotated "
            f"(cohort.ignore: {contract.ignore}). Use a loss of voxels, such as DiceLoss or FocalLoss."
        )
    return settings


def _require_processes(experiment: Experiment, handed: Handed | None) -> None:
    """Raise ``ConfigError`` where there are too few GPUs, or the other processes cannot build the network."""
    resolve_devices(experiment.training)
    if handed is not None and experiment.training.processes > 1:
        raise ConfigError(
            "training.processes must be 1 for a network that was made in Python, which other processes cannot build, "
            f"got {experiment.training.processes}. Name a function that builds it as model.name."
        )


def _require_measured(experiment: Experiment) -> None:
    """Raise ``ConfigError`` when the metric that names the best checkpoint is switched off."""
    family = experiment.checkpoints.best_metric.partition("/")[0]
    switch = {"val": "every_epochs", "val_volume": "volumes_every_epochs"}.get(family)
    if switch and getattr(experiment.validation, switch) == 0:
        raise ConfigError(
            f"checkpoints.best_metric '{experiment.checkpoints.best_metric}' is never measured with "
            f"validation.{switch}: 0. Set it above 0, or choose another metric."
        )


def _require_unchanged(cases: Sequence[Case], known: Mapping[Path, str]) -> None:
    """Require the files that were checked.

    Raises:
        CohortError: A file holds something else by now, or is gone.
    """
    used = {path: case.name for case in cases for path in case.files().values() if path in known}
    for path, digest in files_sha256(used).items():
        if digest != known[path]:
            raise CohortError(
                f"'{path}' of case '{used[path]}' has changed since it was checked a moment ago (its SHA-256 differs). "
                "Start again when nobody writes to it."
            )


def assemble(checked: Checked, session: Session, *, received: Mapping[str, str] | None = None) -> Assembled:
    """Prepare the cases and make sampler, state and validation.

    Args:
        checked: The training; its network has the weights it begins with.
        session: Where the project is and whom to tell.
        received: Parameter → how it came from a source; ``None``: none did, or a checkpoint will tell.
    """
    if isinstance(checked, CheckedScoring):
        return assemble_scoring(checked, session, received=received)
    assert isinstance(checked, CheckedSegments)
    experiment, device = checked.experiment, checked.device
    data = checked.data
    cases = (*data.training, *data.validation)
    _require_unchanged(cases, checked.findings.sha256)
    cached = prepare_cases(cases, checked.contract, root=session.root, progress=session.progress("preparing cases"))
    training, held_out = cached[: len(data.training)], cached[len(data.training) :]
    memory = experiment.sampling.memory_gb
    sampler = SegmentSampler(
        case_source(training, device=device, memory_gb=memory),
        checked.plan,
        experiment.sampling,
        experiment.augmentation,
        batch_size=experiment.training.batch_size,
        accumulate=experiment.training.accumulate,
        steps_per_epoch=experiment.training.steps_per_epoch,
        num_classes=1 + len(checked.contract.scored),
        seed=experiment.seed,
        device=device,
        compatibility=experiment.compatibility,
    )
    if sampler.missing:
        session.warn(
            f"No training case has a voxel of {', '.join(sampler.missing)}; the share goes to the other sampling "
            "categories."
        )
    validate = Validation(
        experiment=experiment,
        settings=checked.settings,
        network=checked.network,
        cases=held_out,
        source=case_source(held_out, device=device, memory_gb=memory / 4),
        channels=checked.contract.channels,
        device=device,
        hide=hiding(experiment, data.cohort.cases, session.root),
    )
    return Assembled(
        checked=checked,
        state=new_state(checked.network, checked.settings, received=received, optimizer=checked.optimizer),
        sampler=sampler,
        validate=validate if held_out else None,
        kept=kept_of(cached, checked.contract, session),
    )
