"""What a training run keeps of its inputs: settings, cohort, machine, code."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dmx.cohort.case import Case
from dmx.config.load import as_yaml
from dmx.config.sections import Experiment
from dmx.evaluation.figures import lr_figure
from dmx.tracking.environment import environment, git_state
from dmx.tracking.privacy import relative
from dmx.tracking.provenance import FOLDER as SESSIONS
from dmx.tracking.provenance import differences, read_sessions, session_record
from dmx.tracking.session import ActiveRun
from dmx.tracking.store import CohortInput
from dmx.training.device import resolve_device, threads_of
from dmx.training.schedules import preview
from dmx.workflows.checked import Checked
from dmx.workflows.identity import IDENTITY, Seen, ancestors_text, identity
from dmx.workflows.privacy import hiding
from dmx.workflows.reads import READS, what_is_read
from dmx.workflows.session import Session

_RATES = "figures/learning_rate.png"


def first_texts(checked: Checked, root: Path, seen: Sequence[Seen]) -> dict[str, str]:
    """Return what a run must have kept before it exists: its settings, to go on with, and whom its sources saw."""
    hide = hiding(checked.experiment, checked.data.cohort.cases, root)
    return {"config.yaml": hide(portable(checked.experiment, root)), **ancestors_text(seen)}


def complete_inputs(run: ActiveRun, checked: Checked, root: Path) -> None:
    """Keep cohort, machine, code and planned learning rate, unless that was done before the process was killed."""
    # It is kept last.
    if (run.files / _RATES).is_file():
        return
    experiment = checked.experiment
    run.log_text("environment.json", json.dumps(environment(), indent=2))
    git = git_state(root)
    run.set_tags(git.tags())
    if git.diff and experiment.tracking.git_diff:
        run.log_text("git.diff", git.diff)
    _log_cohort(run, checked, root)
    run.log_figure(_RATES, lr_figure(planned_rates(experiment, steps=checked.settings.training.steps_per_epoch)))


def log_session(run: ActiveRun, experiment: Experiment, session: Session) -> None:
    """Keep a record of this session of a run, and warn of what is not as it was in the one before and can move bits."""
    number = int(run.info.tags.get("dmx.resumed", "0"))
    with run.guarded("The record of this session"):
        git = git_state(session.root)
        training = experiment.training
        record = session_record(
            number,
            git,
            device=str(resolve_device(training.device)),
            threads=threads_of(training) or torch.get_num_threads(),
        )
        before = read_sessions(run.store, run.info) if number else []
        run.log_text(f"{SESSIONS}/session_{number}.json", json.dumps(record, indent=2))
        if git.diff and experiment.tracking.git_diff:
            run.log_text(f"{SESSIONS}/session_{number}.diff", git.diff)
        if before and (changed := differences(before[-1], record)):
            session.warn(
                f"Session {number} of the run goes on with other code, packages or hardware than session "
                f"{before[-1]['session']}: {', '.join(changed)}. It can learn something else than an uninterrupted "
                f"training would, if only in the last bits. '{SESSIONS}/' of the run has the records."
            )


def planned_rates(experiment: Experiment, *, steps: int | None = None) -> list[dict[str, float]]:
    """Return ``epoch`` (a fraction within it) and ``lr`` of every step of a training.

    Args:
        experiment: The experiment.
        steps: Steps per epoch, where the experiment leaves them to the number of cases.
    """
    training = experiment.training
    steps = steps or training.steps_per_epoch
    rates = preview(
        experiment.schedule,
        lr=experiment.optimizer.lr,
        epochs=training.epochs,
        steps_per_epoch=steps,
        compatibility=experiment.compatibility,
    )
    return [{"epoch": step / steps, "lr": rate} for step, rate in enumerate(rates)]


def _log_cohort(run: ActiveRun, checked: Checked, root: Path) -> None:
    data, contract = checked.data, checked.contract
    summary = {
        "cohort": data.cohort.name,
        "channels": list(contract.channels),
        "classes": list(contract.outputs),
        "training": _counts(data.training),
        "validation": _counts(data.validation),
    }
    run.log_text("cohort/summary.json", json.dumps(summary, indent=2))
    run.log_text("cohort/check.json", run.hide(json.dumps(checked.findings.as_dict(), indent=2)))
    file = data.cohort.manifest or Path(checked.experiment.cohort.manifest)
    name, table = data.table(file)
    run.log_text(f"cohort/{name}", run.hide(table))
    splits = {"training": data.training, "validation": data.validation}
    seen = {**identity(data.cohort.name, splits), READS: what_is_read(data, checked.experiment.task)}
    run.log_text(IDENTITY, json.dumps(seen))
    digest = data.digest()
    source = relative(file, root)
    for context, cases in (("training", data.training), ("validation", data.validation)):
        if cases:
            described = {**_counts(cases), "channels": summary["channels"], "classes": summary["classes"]}
            run.log_cohort(
                CohortInput(name=data.cohort.name, digest=digest, context=context, source=source, summary=described)
            )


def _counts(cases: Sequence[Case]) -> dict[str, int]:
    return {"cases": len(cases), "subjects": len({case.subject for case in cases})}


def portable(experiment: Experiment, root: Path) -> str:
    """Return the resolved configuration as YAML, with files relative to the project where they lie in it."""
    cohort = replace(experiment.cohort, manifest=_within(experiment.cohort.manifest, root))
    stimuli = experiment.stimuli
    if stimuli is not None:
        validation, evaluation = (file and _within(file, root) for file in (stimuli.validation, stimuli.evaluation))
        source = _within(stimuli.source, root)
        stimuli = replace(stimuli, source=source, validation=validation, evaluation=evaluation)
    section = experiment.transfer
    if section is not None:
        sources = {
            name: source if source.file is None else replace(source, file=_within(source.file, root))
            for name, source in section.sources.items()
        }
        section = replace(section, sources=sources)
    return as_yaml(replace(experiment, cohort=cohort, stimuli=stimuli, transfer=section))


def _within(file: str, root: Path) -> str:
    """Return a file relative to the project where it lies in it."""
    path = Path(file)
    return str(path.relative_to(root)) if path.is_relative_to(root) else file
