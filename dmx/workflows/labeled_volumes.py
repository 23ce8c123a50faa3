"""Volumes that have a label or numbers as a whole, and what a network sees of them."""

from collections.abc import Sequence
from dataclasses import replace

from dmx.cohort.case import Case, Cohort
from dmx.cohort.check import CheckReport, check_cohort
from dmx.config.sections import Experiment
from dmx.errors import CohortError, suggest
from dmx.preprocess.contract import resolve_contract
from dmx.workflows.data import TrainingData, known_channels, read_split_cohort, require_metric_names, require_no_errors
from dmx.workflows.session import Session
from dmx.workflows.stimuli import require_classes


def resolve_volumes(experiment: Experiment, *, trains: bool = True) -> TrainingData:
    """Choose cases, channels, and classes or targets as the experiment says; their label maps are left out.

    Args:
        experiment: The experiment.
        trains: Whether a network is trained on the cases, which takes labels or targets.

    Raises:
        CohortError: The manifest lacks what the experiment needs.
        ConfigError: The experiment names something that cannot be used.
    """
    section = experiment.cohort
    cohort = unmapped(read_split_cohort(experiment, trains=trains))
    training, validation = cohort.in_split("training"), cohort.in_split("validation")
    outputs = section.targets or class_names(cohort)
    if not section.targets:
        require_classes(outputs, owner=f"cohort '{cohort.name}' (column 'label')")
    contract = resolve_contract(
        section,
        experiment.preprocess,
        cases=training or cohort.cases,
        channels=known_channels(section.channels, cohort.channels),
        classes=outputs,
    )
    require_metric_names("target" if section.targets else "class", outputs)
    if trains:
        _require_said((*training, *validation), cohort, section.targets)
        if not section.targets:
            _require_all_classes(training, cohort, outputs)
    return TrainingData(cohort, training, validation, contract)


def unmapped(cohort: Cohort) -> Cohort:
    """Return a cohort without label maps and weight maps, which whole volumes do not need."""
    return replace(cohort, cases=tuple(case.unmapped() for case in cohort.cases))


def class_names(cohort: Cohort) -> tuple[str, ...]:
    """Return what cases can be: the manifest's names, or the integers of its column ``label``."""
    found = sorted({case.label for case in cohort.cases if case.label is not None})
    return cohort.label_classes or tuple(str(label) for label in found)


def _require_said(cases: Sequence[Case], cohort: Cohort, targets: Sequence[str]) -> None:
    for case in cases:
        if not targets and case.label is None:
            raise CohortError(
                f"Case '{case.name}' of cohort '{cohort.name}' has no label; cases for {case.split} need one."
            )
        for target in targets:
            if target not in case.targets:
                raise CohortError(
                    f"Case '{case.name}' of cohort '{cohort.name}' has no number in column 'target_{target}'."
                    f"{suggest(target, case.targets)}"
                )


def _require_all_classes(training: Sequence[Case], cohort: Cohort, classes: Sequence[str]) -> None:
    found = {
        cohort.label_classes[case.label] if cohort.label_classes else str(case.label)
        for case in training
        if case.label is not None
    }
    for name in classes:
        if name not in found:
            raise CohortError(f"Class '{name}' of cohort '{cohort.name}' has no cases for training.")


def check_volumes(experiment: Experiment, data: TrainingData, session: Session) -> CheckReport:
    """Check all files of the cases.

    Raises:
        CohortError: The first findings.
    """
    findings = check_cohort(
        data.cohort,
        fill=experiment.cohort.fill,
        channels=data.contract.channels,
        progress=session.progress("checking files"),
    )
    # Label maps, which a segmentation would need, are not missed.
    findings = replace(findings, findings=tuple(one for one in findings.findings if one.column != "label_map"))
    require_no_errors(findings, session)
    return findings
