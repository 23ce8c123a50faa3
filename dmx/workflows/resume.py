"""Go on with a run that was interrupted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmx.config.sections import Experiment
from dmx.errors import CheckpointError, CohortError, ConfigError, RunError
from dmx.evaluation.figures import lr_figure
from dmx.preprocess.contract import Contract
from dmx.tracking.catalog import find_training
from dmx.tracking.checkpoints import checkpoint_names
from dmx.tracking.lineage import SOURCE_RUN
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, checkpoint_path, resume_run
from dmx.tracking.store import RunInfo, RunReader, RunStore
from dmx.training.checkpoint import read_checkpoint, read_manifest, verify_checkpoint
from dmx.workflows.assemble import Checked, assemble, check_training
from dmx.workflows.finetune import paired
from dmx.workflows.identity import identity, read_identity
from dmx.workflows.inputs import planned_rates, portable
from dmx.workflows.privacy import hiding
from dmx.workflows.session import Session
from dmx.workflows.start import Start, described_source
from dmx.workflows.train import Trainee, run_fit
from dmx.workflows.trained import open_trained, run_experiment

_CURVES = ("keep", "stretch", "restart")
_KINDS = ("train", "finetune", "transfer")
_CHANGEABLE = {"device": "training", "threads": "training", "workers": "sampling"}


@dataclass(frozen=True, kw_only=True)
class Extension:
    """More epochs for a training.

    Attributes:
        epochs: Epochs in all from now on.
        schedule: ``keep`` goes through the old curve and stays at its end, ``stretch`` makes one curve of all epochs,
            ``restart`` begins the curve anew for the epochs that remain.
    """

    epochs: int
    schedule: str

    def __post_init__(self) -> None:
        if self.schedule not in _CURVES:
            raise ConfigError(f"--schedule must be {', '.join(_CURVES)}, got '{self.schedule}'.")


def resume(
    run_name: str,
    session: Session,
    *,
    uri: str | None = None,
    changes: Mapping[str, object] | None = None,
    extension: Extension | None = None,
) -> Trainee:
    """Go on with an interrupted run, exactly where its newest whole checkpoint is.

    Args:
        run_name: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        session: Where the project is and whom to tell.
        uri: Address of the run store; ``None``: as usual.
        changes: ``device``, ``workers`` or ``threads`` to use from now on.
        extension: More epochs, with what becomes of the learning rate.

    Raises:
        RunError: There is no such run, it is complete, or another process works on it.
        CheckpointError: None of its checkpoints is whole.
        CohortError: The cases are no longer those of the run.
    """
    store = open_store(uri, session.root)
    info = find_training(store, run_name)
    if info.kind not in _KINDS:
        raise RunError(f"Run '{info.experiment}/{info.name}' is no training ({info.kind or 'of another program'}).")
    _require_a_training(store, info)
    before = run_experiment(store, info)
    experiment = _changed(before, changes or {})
    if extension is not None:
        experiment = extended(experiment, extension, done=_epochs_done(store, info, session.root))
        for line in rate_lines(before, experiment):
            session.report.say(line)
    checked = check_training(experiment, session)
    _require_same_cases(store, info, checked)
    with resume_run(store, info, root=session.root, notify=session.report.say) as run:
        run.hide = hiding(experiment, checked.data.cohort.cases, session.root)
        begin = _beginning(run, checked, session)
        assembled = assemble(begin.checked, session, received=begin.received)
        if begin.state is not None:
            assembled.state.load_state_dict(begin.state)
        assembled.state.last_checkpoint = begin.name
        position = assembled.state.position
        session.report.say(
            f"Run {info.experiment}/{info.name} ({info.id[:8]}) goes on after step {position.global_step} "
            f"(epoch {position.epoch}, step {position.step} of it)."
        )
        if position.epoch >= experiment.training.epochs:
            session.report.say(f"All {experiment.training.epochs} epochs were done already; nothing is left to train.")
        if experiment != before:
            count = run.info.tags["dmx.resumed"]
            run.log_text(f"config.resume_{count}.yaml", portable(experiment, session.root))
            run.log_figure(f"figures/learning_rate.resume_{count}.png", lr_figure(planned_rates(experiment)))
        run.log_line(begin.optimizer)
        session.report.say(begin.optimizer)
        return run_fit(run, assembled, session, source=begin.source)


@dataclass(frozen=True, kw_only=True)
class _Beginning:
    """Where a resumed run goes on.

    Attributes:
        checked: The training, as the checkpoint says where there is one.
        state: State to load; ``None``: from the start.
        name: Name of the checkpoint.
        source: Where the run's first weights came from.
        optimizer: What to say about the optimizer.
        received: Parameter → how it came from the source, where the run begins again from it.
    """

    checked: Checked
    state: Mapping[str, Any] | None = None
    name: str | None = None
    source: Mapping[str, Any] | None = None
    optimizer: str
    received: Mapping[str, str] | None = None


def _beginning(run: ActiveRun, checked: Checked, session: Session) -> _Beginning:
    """Find the newest whole checkpoint; without any the run begins again from its seed or its source."""
    folder = newest_checkpoint(run, session)
    if folder is None:
        return _from_the_start(run, checked, session)
    content = read_checkpoint(folder)
    run.set_tags({"dmx.optimizer_state": "restored: resumed"})
    return _Beginning(
        checked=replace(checked, contract=Contract.from_dict(content.manifest["contract"])),
        state=content.as_state(),
        name=folder.name,
        source=content.manifest["source"],
        optimizer="Optimizer state restored. Uninitialized: no. Reset requested: no.",
    )


def _require_a_training(store: RunStore, info: RunInfo) -> None:
    """Require a run that trains; a transfer can only go on once its received weights are in a checkpoint.

    Raises:
        RunError: It holds an untrained network, or was ended before anything of it was saved.
    """
    place = f"'{info.experiment}/{info.name}'"
    if info.tags.get("dmx.optimizer_state", "").startswith("none"):
        raise RunError(
            f"Run {place} holds a network that was transferred and not trained. Train it with "
            f"'dmx train EXPERIMENT --from-run {info.id[:8]}'."
        )
    if (
        info.kind == "transfer"
        and not checkpoint_names(info.tags)
        and "checkpoints" not in store.list_artifacts(info.id)
    ):
        raise RunError(f"Run {place} was ended before its first checkpoint. Start it again with 'dmx train'.")


def _from_the_start(run: ActiveRun, checked: Checked, session: Session) -> _Beginning:
    source = run.info.tags.get(SOURCE_RUN)
    where = "its seed" if source is None else f"run {source[:8]}, its source"
    session.report.say(f"The run was ended before its first checkpoint; it begins again from {where}.")
    if source is None:
        words = Start(words="").optimizer_sentence
        return _Beginning(checked=checked, optimizer=words)
    trained = open_trained(run.store, source, checkpoint=run.info.params["source.checkpoint"], root=session.root)
    checked.network.load_state_dict(trained.network.state_dict())
    return _Beginning(
        checked=replace(checked, contract=paired(checked.contract, trained, [])),
        source=described_source(trained),
        optimizer=Start(words="", uninitialized=False, reset=True).optimizer_sentence,
        received={name: "copied" for name, _ in checked.network.named_parameters()},
    )


def _require_same_cases(store: RunReader, info: RunInfo, checked: Checked) -> None:
    """Require the cases with which the run began.

    Raises:
        CohortError: Cases were added, taken away or changed.
    """
    known = read_identity(store, info)
    data = checked.data
    now = identity(data.cohort.name, {"training": data.training, "validation": data.validation})
    if known is not None and known != now:
        raise CohortError(
            f"The cases of cohort '{data.cohort.name}' are not those with which run '{info.experiment}/{info.name}' "
            "began, so it cannot go on exactly. Restore them, or begin a new run with 'dmx finetune'."
        )


def newest_checkpoint(run: ActiveRun, session: Session) -> Path | None:
    """Return the newest checkpoint of a run that is whole, and say which ones had to be skipped.

    Returns:
        ``None`` when the run was ended before its first checkpoint.

    Raises:
        CheckpointError: There are checkpoints and none is whole.
    """
    folders = sorted((run.files / "checkpoints").glob("step_*"), reverse=True)
    if not folders and "last" in run.checkpoints.names:
        folders = [checkpoint_path(run.store, run.info, "last", root=session.root)]
    for folder in folders:
        problems = verify_checkpoint(folder)
        if not problems:
            return folder
        session.report.say(f"Checkpoint {folder.name} is skipped: {'; '.join(problems)}.")
    if folders:
        raise CheckpointError(
            f"None of the {len(folders)} checkpoints of run '{run.info.experiment}/{run.info.name}' is whole. "
            "Train anew with its config.yaml."
        )
    return None


def _epochs_done(store: RunStore, info: RunInfo, root: Path) -> int:
    """Return the complete epochs of a run, from its last checkpoint."""
    if "last" not in checkpoint_names(info.tags):
        return 0
    epoch: int = read_manifest(checkpoint_path(store, info, "last", root=root))["epoch"]
    return epoch


def extended(experiment: Experiment, extension: Extension, *, done: int) -> Experiment:
    """Return the settings of a longer training.

    Args:
        experiment: Settings so far.
        extension: Epochs and schedule.
        done: Complete epochs.

    Raises:
        ConfigError: There is nothing to add, or nothing would be learned in what is added.
    """
    epochs, section = experiment.training.epochs, experiment.schedule
    if extension.epochs <= epochs:
        raise ConfigError(f"--epochs must be above the {epochs} epochs of the run, got {extension.epochs}.")
    if extension.schedule == "keep":
        section = replace(section, span_epochs=section.span_epochs or epochs - section.begin_epoch)
    elif extension.schedule == "stretch":
        section = replace(section, span_epochs=None)
    else:
        section = replace(section, span_epochs=None, begin_epoch=done)
    longer = replace(experiment, training=replace(experiment.training, epochs=extension.epochs), schedule=section)
    if planned_rates(longer)[-experiment.training.steps_per_epoch]["lr"] == 0.0:
        raise ConfigError(
            f"With --schedule keep the learning rate stays 0 after epoch {epochs}, so nothing would be learned. Use "
            "stretch or restart."
        )
    return longer


def rate_lines(before: Experiment, after: Experiment) -> list[str]:
    """Return the learning rate of about ten epochs before and after an extension, one line each."""
    steps = after.training.steps_per_epoch
    old, new = planned_rates(before), planned_rates(after)
    every = max(1, after.training.epochs // 10)
    lines = ["Learning rate at the start of an epoch, before and with the extension:"]
    for epoch in range(0, after.training.epochs, every):
        was = f"{old[epoch * steps]['lr']:.3g}" if epoch < before.training.epochs else "-"
        lines.append(f"  epoch {epoch:>4}  {was:>9}  {new[epoch * steps]['lr']:>9.3g}")
    return lines


def _changed(experiment: Experiment, changes: Mapping[str, object]) -> Experiment:
    """Return the settings with what may change on a resume."""
    for key, value in changes.items():
        if key not in _CHANGEABLE:
            raise ConfigError(
                f"A resume may change {', '.join(_CHANGEABLE)}, got '{key}'. Other settings need a new run."
            )
        name = _CHANGEABLE[key]
        experiment = replace(experiment, **{name: replace(getattr(experiment, name), **{key: value})})
    return experiment
