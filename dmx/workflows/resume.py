"""Go on with a run that was interrupted."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dmx.config.sections import Experiment
from dmx.errors import CheckpointError, ConfigError, RunError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, checkpoint_path, resume_run
from dmx.training.checkpoint import read_checkpoint, verify_checkpoint
from dmx.workflows.assemble import assemble, check_training
from dmx.workflows.inputs import portable
from dmx.workflows.privacy import hiding
from dmx.workflows.session import Session
from dmx.workflows.train import Trainee, run_fit, say_optimizer
from dmx.workflows.trained import run_experiment

_CHANGEABLE = {"device": "training", "threads": "training", "workers": "sampling"}


def resume(
    run_name: str, session: Session, *, uri: str | None = None, changes: Mapping[str, object] | None = None
) -> Trainee:
    """Go on with an interrupted run, exactly where its newest whole checkpoint is.

    Args:
        run_name: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        session: Where the project is and whom to tell.
        uri: Address of the run store; ``None``: as usual.
        changes: ``device``, ``workers`` or ``threads`` to use from now on.

    Raises:
        RunError: There is no such run, it is complete, or another process works on it.
        CheckpointError: None of its checkpoints is whole.
    """
    store = open_store(uri, session.root)
    info = store.find_run(run_name)
    if info.kind != "train":
        raise RunError(f"Run '{info.experiment}/{info.name}' is no training ({info.kind or 'of another program'}).")
    experiment = _changed(run_experiment(store, info), changes or {})
    checked = check_training(experiment, session)
    assembled = assemble(checked, session)
    with resume_run(store, info, root=session.root, notify=session.report.say) as run:
        run.hide = hiding(experiment, checked.data.cohort.cases, session.root)
        folder = newest_checkpoint(run, session)
        if folder is not None:
            assembled.state.load_state_dict(read_checkpoint(folder).as_state())
            assembled.state.last_checkpoint = folder.name
        position = assembled.state.position
        session.report.say(
            f"Run {info.experiment}/{info.name} ({info.id[:8]}) goes on after step {position.global_step} "
            f"(epoch {position.epoch}, step {position.step} of it)."
        )
        if position.epoch >= experiment.training.epochs:
            session.report.say(f"All {experiment.training.epochs} epochs were done already; nothing is left to train.")
        if changes:
            run.log_text(
                f"config.resume_{run.info.tags.get('dmx.resumed', '1')}.yaml", portable(experiment, session.root)
            )
        say_optimizer(run, session, uninitialized=folder is None)
        return run_fit(run, assembled, session)


def newest_checkpoint(run: ActiveRun, session: Session) -> Path | None:
    """Return the newest checkpoint of a run that is whole, and say which ones had to be skipped.

    Returns:
        ``None`` when the run was ended before its first checkpoint, so that it begins anew from its seed.

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
    session.report.say("The run was ended before its first checkpoint; it begins again from its seed.")
    return None


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
