"""Train a network: a new run from an experiment, or a run that goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmx.config.sections import Experiment
from dmx.evaluation.figures import curves_figure
from dmx.preprocess.kept import kept_csv
from dmx.tracking.history import History, as_numbers
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.recorder import Recorder, Save
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.training.loop import Batches, FitResult, Validate, fit
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState
from dmx.training.step import Helpers
from dmx.workflows.assemble import assemble, check_training
from dmx.workflows.checked import Assembled, Checked
from dmx.workflows.course_figures import log_course
from dmx.workflows.freezing import FreezeFile, check_origin
from dmx.workflows.inputs import complete_inputs, first_texts, log_session
from dmx.workflows.lineage import log_lineage
from dmx.workflows.memory import advised
from dmx.workflows.params import training_params
from dmx.workflows.privacy import hiding
from dmx.workflows.processes import helping
from dmx.workflows.received import origin_params
from dmx.workflows.saving import saver
from dmx.workflows.session import Session
from dmx.workflows.space import require_space
from dmx.workflows.start import Start, log_start

ENDED_EARLY = "No improvement for too long."


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """What a training has come to.

    Attributes:
        run: The run, as it was when it began.
        reason: ``finished``, ``stopped`` or ``early_stopping``; ``transferred`` for a transfer that was begun again.
        best_metric: Metric that names the best checkpoint; empty without one.
        best_value: Its value.
        store: Address of the run store where the experiment names one.
        delivered: Whether the run store has all that the run told.
    """

    run: RunInfo
    reason: str
    best_metric: str
    best_value: float | None
    store: str | None
    delivered: bool = True


def train(experiment: Experiment, session: Session, *, name: str | None = None, strict: bool = False) -> Trainee:
    """Train a fresh network as one run.

    Args:
        experiment: Settings.
        session: Where the project is and whom to tell.
        name: Name of the run; ``None``: made from the experiment's network.
        strict: Refuse to freeze what is still as it was initialized.

    Raises:
        DmxError: Something that the user can mend; before the run exists whenever it can be known before.
    """
    checked = check_training(experiment, session)
    return run_training(checked, session, start=Start(words=experiment.model.name), name=name, strict=strict)


def run_training(
    checked: Checked, session: Session, *, start: Start, name: str | None = None, strict: bool = False
) -> Trainee:
    """Train as a new run, from wherever the weights come.

    Raises:
        DmxError: A case cannot be prepared, the store refuses, or the training cannot go on.
    """
    experiment = checked.experiment
    notes = check_origin(experiment, checked.settings, checked.network, received=start.received, strict=strict)
    # Before cases are prepared, which can take long.
    store = open_store(experiment.tracking.uri, session.root)
    assembled = assemble_from(start, checked, session)
    new = NewRun(
        experiment=experiment.tracking.experiment or experiment.name,
        kind=start.kind,
        words=start.words,
        name=name,
        params={
            **training_params(checked),
            **origin_params(checked, start.received),
            "optimizer_state": start.reason,
            "network.received_parameters": 0,
            **start.params,
        },
        tags={"dmx.task": experiment.task, "dmx.optimizer_state": start.reason, **start.tags},
        note=experiment.description,
        texts=first_texts(checked, session.root, start.seen),
    )
    with (
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hiding(experiment, checked.data.cohort.cases, session.root)),
    ):
        session.report.say(f"Run {run.info.experiment}/{run.info.name} ({run.info.id[:8]}).")
        complete_inputs(run, checked, session.root)
        log_session(run, experiment, session)
        return begin(run, assembled, session, start=start, notes=notes)


def assemble_from(start: Start, checked: Checked, session: Session) -> Assembled:
    """Put a training together that begins with the weights, and the optimizer's state, that `start` gives."""
    if start.weights is not None:
        checked.network.load_state_dict(dict(start.weights))
    assembled = assemble(checked, session, received=start.received)
    if start.optimizer is not None:
        assembled.state.optimizer.load_state_dict(dict(start.optimizer))
    return assembled


def begin(
    run: ActiveRun, assembled: Assembled, session: Session, *, start: Start, notes: Sequence[str] = ()
) -> Trainee:
    """Say where the training begins, then train."""
    log_start(run, start)
    for sentence in start.warnings:
        session.warn(sentence)
    said = (*notes, start.optimizer_sentence)
    for sentence in said:
        run.log_line(sentence)
    for sentence in (*start.sentences, *said):
        session.report.say(sentence)
    return run_fit(run, assembled, session, source=start.source)


def run_fit(
    run: ActiveRun, assembled: Assembled, session: Session, *, source: Mapping[str, Any] | None = None
) -> Trainee:
    """Train, record, and end the run."""
    checked = assembled.checked
    if assembled.kept:
        run.log_text("cohort/kept_volumes.csv", kept_csv(assembled.kept))
    with assembled.batches() as batches, advised(checked), helping(assembled, session) as helpers:
        result = fit_in_run(
            run,
            assembled.state,
            lambda epoch, step, part: batches.get((epoch, step, part)),
            settings=checked.settings,
            validate=assembled.validate,
            save=saver(checked, run_id=run.info.id, source=source),
            session=session,
            helpers=helpers,
        )
    log_lineage(run, checked, result)
    end_run(run, result)
    return Trainee(
        run=run.info,
        reason=result.reason,
        best_metric=result.best.metric,
        best_value=result.best.value,
        store=checked.experiment.tracking.uri,
        delivered=run.delivered,
    )


def fit_in_run(  # noqa: PLR0913  # what fit takes, and where it is recorded
    run: ActiveRun,
    state: TrainState,
    batches: Batches,
    *,
    settings: FitSettings,
    validate: Validate | None,
    save: Save,
    session: Session,
    helpers: Helpers | None = None,
) -> FitResult:
    """Train, and keep in the run what the training tells."""
    training = settings.training
    require_space(run.files, state, settings)
    recorder = Recorder(
        run, total_steps=training.epochs * training.steps_per_epoch, save=save, keep=settings.checkpoints
    )
    result = fit(
        state,
        batches,
        settings,
        validate=validate,
        listeners=(lambda _: run.require_own(), recorder, FreezeFile(run, settings.freeze), *session.listeners),
        stop=session.stop,
        helpers=helpers,
    )
    _log_curves(run)
    if settings.task != "segmentation":
        log_course(run, task=settings.task)
    return result


def _log_curves(run: ActiveRun) -> None:
    """Draw how losses and scores went on, from the table of epochs."""
    with run.guarded("figures/learning_curves.png"):
        rows = as_numbers(History(run.files / "history" / "epochs.csv").rows())
        if rows:
            run.log_figure("figures/learning_curves.png", curves_figure(rows))


def end_run(run: ActiveRun, result: FitResult) -> None:
    """End the run as its training has ended."""
    if result.reason == "stopped":
        run.end("KILLED", f"Stopped on request after step {result.position.global_step}.")
    else:
        run.end("FINISHED", "All epochs done." if result.reason == "finished" else ENDED_EARLY)
