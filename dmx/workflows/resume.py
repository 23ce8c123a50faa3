"""Go on with a run that was interrupted."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmx.config.sections import Experiment
from dmx.errors import CheckpointError, ConfigError, RunError
from dmx.evaluation.figures import lr_figure
from dmx.preprocess.contract import Contract
from dmx.tracking.checkpoints import checkpoint_names, set_aside
from dmx.tracking.creation import settle_all
from dmx.tracking.folder import run_folder
from dmx.tracking.lineage import UNTRAINED
from dmx.tracking.location import runs_folder
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.process import require_free
from dmx.tracking.reap import sync
from dmx.tracking.session import ActiveRun, checkpoint_path, resume_run
from dmx.tracking.store import CHANGED, RunInfo, RunReader, RunStore
from dmx.tracking.summary import BATCHES
from dmx.training.checkpoint import read_checkpoint, read_manifest, verify_checkpoint
from dmx.training.progress import ended_early
from dmx.workflows.assemble import assemble, check_training
from dmx.workflows.checked import AnyContract, Checked
from dmx.workflows.identity import read_identity
from dmx.workflows.inputs import log_session, planned_rates, portable
from dmx.workflows.privacy import hiding
from dmx.workflows.reads import own_source, require_same_reads, with_source
from dmx.workflows.restart import start_again
from dmx.workflows.session import Session
from dmx.workflows.train import ENDED_EARLY, Trainee, run_fit
from dmx.workflows.trained import contract_of, require_described, run_experiment

_CURVES = ("keep", "stretch", "restart")
_KINDS = ("train", "finetune", "transfer")
_CHANGEABLE = {"device": "training", "threads": "training", "processes": "training", "workers": "sampling"}


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
    take_over: bool = False,
) -> Trainee:
    """Go on with an interrupted run, exactly where its newest whole checkpoint is.

    Args:
        run_name: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        session: Where the project is and whom to tell.
        uri: Address of the run store; ``None``: as usual.
        changes: ``device``, ``workers``, ``threads`` or ``processes`` to use from now on; ``cohort``, the place of the
            same manifest, or list or folder of images, from now on.
        extension: More epochs, with what becomes of the learning rate.
        take_over: Take the place of a process of another machine without watching whether it still lives.

    Raises:
        RunError: There is no such run, it is complete, or another process works on it.
        CheckpointError: None of its checkpoints is whole.
        CohortError: The training would read something else than before.
    """
    store = open_store(uri, session.root)
    settle_all(store, runs_folder(store.uri, session.root))
    info = store.find_run(run_name)
    replaces = require_free(store, info, take_over=take_over, notify=session.report.say)
    info = _with_all_it_told(store, info, session)
    _require_training(info, extension)
    if info.status == "FINISHED" and extension is None:
        return _complete(store, info, session, uri)
    before = run_experiment(store, info, root=session.root)
    experiment = _changed(before, changes or {})
    if extension is not None:
        experiment = extended(experiment, extension, done=_epochs_done(store, info, session.root))
        for line in rate_lines(before, experiment):
            session.report.say(line)
    own_source(info, experiment)
    checked = check_training(experiment, session, trains=not _untrained(info))
    _require_same_reads(store, info, checked, session)
    with (
        resume_run(store, info, root=session.root, notify=session.report.say, replaces=replaces) as run,
        session.keeping(run, hiding(experiment, checked.data.cohort.cases, session.root)),
    ):
        log_session(run, experiment, session)
        if experiment != before:
            run.set_tags(_changed_params(info, before, experiment, extension))
            count = run.info.tags["dmx.resumed"]
            run.log_text(f"config.resume_{count}.yaml", portable(experiment, session.root))
            run.log_figure(f"figures/learning_rate.resume_{count}.png", lr_figure(planned_rates(experiment)))
        folder = newest_checkpoint(run, session)
        if folder is None or _untrained(run.info):
            return start_again(run, checked, session)
        return _go_on(run, checked, session, folder=folder)


def _changed_params(
    info: RunInfo, before: Experiment, after: Experiment, extension: Extension | None
) -> dict[str, str | None]:
    """Return the tags that say which params are no longer what the run began with."""
    tags: dict[str, str | None] = {}
    if after.training.processes != before.training.processes:
        tags[f"{CHANGED}processes"] = str(after.training.processes)
    if extension is not None:
        schedule = info.params.get("schedule", after.schedule.name)
        tags[f"{CHANGED}epochs"] = str(extension.epochs)
        tags[f"{CHANGED}schedule"] = (
            f"{schedule}, {extension.schedule} for epochs {before.training.epochs} to {extension.epochs - 1}"
        )
    return tags


def _with_all_it_told(store: RunStore, info: RunInfo, session: Session) -> RunInfo:
    """Deliver what the run's journal still holds, among it its settings, and return the run as it is then."""
    folder = run_folder(store, info.id, session.root)
    if not folder.undelivered:
        return info
    sync(store, info, root=session.root, notify=session.report.say)
    return store.get_run(info.id)


def _complete(store: RunStore, info: RunInfo, session: Session, uri: str | None) -> Trainee:
    """Say that a run has come to its end: whoever resumes until nothing is left is done then."""
    with suppress(RunError):
        folder = run_folder(store, info.id, session.root)
        folder.lock()
        folder.sweep()
        folder.unlock()
    early = info.tags.get("dmx.end_reason") == ENDED_EARLY
    why = "no improvement for too long" if early else "all epochs were done already"
    session.report.say(
        f"Run {info.experiment}/{info.name} ({info.id[:8]}) is complete: {why}; nothing is left to train."
    )
    reason = "early_stopping" if early else "finished"
    return Trainee(run=info, reason=reason, best_metric="", best_value=None, store=uri)


def _same_labels(ours: AnyContract, trained: AnyContract) -> AnyContract:
    """Return the contract of a checkpoint, whose label maps must still mean what they meant.

    Raises:
        RunError: Regions, or the label of ignored voxels, are others by now.
    """
    if isinstance(ours, Contract) and isinstance(trained, Contract):
        for name, here, there in (
            ("regions", ours.regions.as_dict(), trained.regions.as_dict()),
            ("ignore", ours.ignore, trained.ignore),
        ):
            if here != there:
                raise RunError(
                    f"cohort.{name} is {here} by now and was {there} when the training began, so it cannot go on with "
                    "the same numbers. Put the manifest's notes or the settings back, or fine-tune."
                )
    return trained


def _go_on(run: ActiveRun, checked: Checked, session: Session, *, folder: Path) -> Trainee:
    """Train from a checkpoint on."""
    content = read_checkpoint(folder)
    require_described(content.manifest, folder)
    run.set_tags({"dmx.optimizer_state": "restored: resumed"})
    checked = replace(checked, contract=_same_labels(checked.contract, contract_of(content.manifest)))
    assembled = assemble(checked, session)
    assembled.state.load_state_dict(content.as_state())
    assembled.state.last_checkpoint = folder.name
    _name_again(run, folder, content.manifest, checked)
    position, epochs = assembled.state.position, checked.experiment.training.epochs
    place = f"Run {run.info.experiment}/{run.info.name} ({run.info.id[:8]})"
    if position.global_step:
        goes = f"goes on after step {position.global_step} (epoch {position.epoch}, step {position.step} of it)."
    else:
        origin = "seed" if content.manifest["source"] is None else "source"
        goes = f"was ended before its first checkpoint after 'initial'; it begins again from its {origin}."
    session.report.say(f"{place} {goes}")
    if ended_early(assembled.state, epochs=epochs):
        session.report.say("It had ended early already: no improvement for too long; nothing is left to train.")
    elif position.epoch >= epochs:
        session.report.say(f"All {epochs} epochs were done already; nothing is left to train.")
    restored = "Optimizer state restored. Uninitialized: no. Reset requested: no."
    run.log_line(restored)
    session.report.say(restored)
    return run_fit(run, assembled, session, source=content.manifest["source"])


def _name_again(run: ActiveRun, folder: Path, manifest: Mapping[str, Any], checked: Checked) -> None:
    """Let the names point to a checkpoint that they did not reach before the process was killed."""
    path = f"checkpoints/{folder.name}"
    named = [name for name, place in run.checkpoints.names.items() if place == path]
    keep = checked.experiment.checkpoints
    names = (*manifest.get("names", ()), *named) or ("last",)
    run.checkpoints.publish(folder, names, keep_last=keep.keep_last, keep_epochs=keep.keep_epochs)


def _untrained(info: RunInfo) -> bool:
    """Return whether a run is there to hold a network that others train."""
    return info.tags.get("dmx.optimizer_state") == UNTRAINED


def _require_training(info: RunInfo, extension: Extension | None) -> None:
    """Require a run that trains, or a transfer that was ended before its network was saved.

    Raises:
        RunError: It is no training, holds an untrained network, complete, or does not know its data.
    """
    place = f"'{info.experiment}/{info.name}'"
    if info.kind not in _KINDS:
        raise RunError(f"Run {place} is no training ({info.kind or 'of another program'}).")
    if BATCHES in info.tags:
        raise RunError(
            f"Run {place} was trained on batches that were given in Python and that it does not keep. Load its network "
            "with dmx.load_model and train it further with dmx.train, as a new run."
        )
    if _untrained(info) and (checkpoint_names(info.tags) or extension is not None):
        raise RunError(
            f"Run {place} holds a network that was transferred and not trained. Train it with "
            f"'dmx train EXPERIMENT --from-run {info.id[:8]}'."
        )


def _require_same_reads(store: RunReader, info: RunInfo, checked: Checked, session: Session) -> None:
    """Require what the run has read until now; where it does not say that, say so.

    Raises:
        CohortError: A case or a file was added, taken away or changed.
    """
    known = read_identity(store, info)
    if known is not None:
        require_same_reads(info, known, checked.data, checked.experiment.task)
    elif checkpoint_names(info.tags):
        session.warn(
            "The run does not say what it has read, so that nobody can tell whether its cases are still the same."
        )


def newest_checkpoint(run: ActiveRun, session: Session) -> Path | None:
    """Return the newest checkpoint of a run that is whole, and say which ones had to be skipped.

    Those get another name, so that the training can save anew at their steps.

    Returns:
        ``None`` when the run was ended before its first checkpoint.

    Raises:
        CheckpointError: There are checkpoints and none is whole.
    """
    folders = sorted((run.files / "checkpoints").glob("step_*"), reverse=True)
    if not folders and "last" in run.checkpoints.names:
        folders = [checkpoint_path(run.store, run.info, "last", root=session.root)]
    damaged: list[Path] = []
    for folder in folders:
        problems = verify_checkpoint(folder)
        if not problems:
            for skipped in damaged:
                set_aside(skipped)
                # At once: from the journal it could be deleted after the training has saved there anew.
                with run.guarded(skipped.name):
                    run.store.delete_artifacts(run.info.id, f"checkpoints/{skipped.name}")
            return folder
        session.report.say(f"Checkpoint {folder.name} is skipped: {'; '.join(problems)}.")
        damaged.append(folder)
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
        if key == "cohort":
            experiment = with_source(experiment, Path(str(value)))
            continue
        if key not in _CHANGEABLE:
            raise ConfigError(
                f"A resume may change cohort, {', '.join(_CHANGEABLE)}, got '{key}'. With other settings, "
                "'dmx finetune' trains its network as a new run."
            )
        name = _CHANGEABLE[key]
        try:
            section = replace(getattr(experiment, name), **{key: value})
        except ValueError as error:
            raise ConfigError(f"{name}: {error}.") from None
        experiment = replace(experiment, **{name: section})
    return experiment
