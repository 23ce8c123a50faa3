"""From an experiment to cases, contract and network: everything that is known before the first step."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmx.cohort.case import Case, Cohort
from dmx.cohort.check import CheckReport
from dmx.cohort.findings import Finding, labels_hint
from dmx.cohort.manifest import read_manifest
from dmx.cohort.splits import k_fold
from dmx.config.sections import CohortSection, Experiment
from dmx.errors import CohortError, ConfigError, suggest
from dmx.geometry import SegmentPlan, triple
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.preprocess.contract import Contract, resolve_contract
from dmx.workflows.checked import SplitCases
from dmx.workflows.session import Session

_FINDINGS_SHOWN = 5
_CASES_SHOWN = 5
_METRIC_NAME = re.compile(r"^[\w\-.: ]+$")


@dataclass(frozen=True)
class TrainingData(SplitCases):
    """The cases of a training and what the network sees of them."""

    contract: Contract


def read_cohort(path: Path) -> Cohort:
    """Read a manifest, or raise ``CohortError`` that says how to make one."""
    if not path.is_file():
        raise CohortError(
            f"Manifest '{path}' does not exist. Give a CSV file, or make one with 'dmx cohort import' or "
            "'dmx cohort make'."
        )
    return read_manifest(path)


def resolve_data(experiment: Experiment, *, trains: bool = True) -> TrainingData:
    """Choose cases, channels and classes as the experiment says.

    Args:
        experiment: The experiment.
        trains: Whether the network is trained on the cases, which takes cases for training, with label maps.

    Raises:
        CohortError: The manifest lacks what the experiment needs.
        ConfigError: The experiment names something that cannot be used.
    """
    cohort = read_split_cohort(experiment, trains=trains)
    section = with_manifest(experiment.cohort, cohort)
    training, validation = cohort.in_split("training"), cohort.in_split("validation")
    contract = resolve_contract(
        section,
        experiment.preprocess,
        cases=training or cohort.cases,
        channels=known_channels(section.channels, cohort.channels),
        classes=cohort.classes,
        label_values=cohort.label_values,
        compatibility=experiment.compatibility,
    )
    check_names(contract)
    if trains:
        _check_labels(training, validation)
        contract = replace(contract, roi=all(case.roi is not None for case in training))
    return TrainingData(cohort, training, validation, contract)


def with_manifest(section: CohortSection, cohort: Cohort) -> CohortSection:
    """Return the section with the regions, and the label of ignored voxels, that the manifest names."""
    if section.regions is None and cohort.regions:
        section = replace(section, regions=cohort.regions.members, regions_class_order=cohort.regions.order)
    # A label that the experiment makes a class is annotated, whatever the manifest says.
    known = section.ignore is not None or cohort.ignore in section.labels
    return section if known else replace(section, ignore=cohort.ignore)


def _check_regions(contract: Contract) -> None:
    """Require regions of labels that there are, and a network that has a sigmoid for each.

    Raises:
        ConfigError: A region has another label, or DeepMedic's mode is on.
    """
    if contract.regions and contract.compatibility == "deepmedic":
        raise ConfigError(
            "compatibility 'deepmedic' cannot be combined with cohort.regions: DeepMedic predicts one class per voxel. "
            "Leave one of them out (cohort.regions={} turns the manifest's regions off)."
        )
    if contract.regions.highest >= len(contract.classes):
        raise ConfigError(
            f"cohort.regions names the label {contract.regions.highest}, the classes are 0 to "
            f"{len(contract.classes) - 1} ({', '.join(contract.classes)}). Name the class, or leave the label out."
        )
    ignored = None if contract.ignore is None else contract.class_of(contract.ignore)
    if ignored is not None:
        raise ConfigError(
            f"cohort.ignore is {contract.ignore}, which is the class '{contract.classes[ignored]}'. Voxels "
            "that nobody annotated must have a label of their own."
        )


def read_split_cohort(experiment: Experiment, *, trains: bool = True) -> Cohort:
    """Read the cohort of an experiment, split as it says.

    Raises:
        CohortError: The manifest cannot be used, or has no cases to train on.
    """
    section = experiment.cohort
    cohort = read_cohort(Path(section.manifest))
    if section.fold is not None:
        cohort = k_fold(cohort, fold=section.fold, folds=section.folds, seed=experiment.seed)
    if trains and not cohort.in_split("training"):
        raise CohortError(
            f"Cohort '{cohort.name}' has no case in split 'training'. Fill the column 'split' with 'dmx cohort split', "
            "or set cohort.fold."
        )
    return cohort


def known_channels(chosen: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """Return the channels that an experiment names, or all of the manifest.

    Raises:
        ConfigError: The manifest lacks one.
    """
    for name in chosen:
        if name not in known:
            raise ConfigError(
                f"cohort.channels names '{name}', the manifest has {', '.join(known)}.{suggest(name, known)}"
            )
    return chosen or known


def check_names(contract: Contract) -> None:
    """Require names of channels and classes that can be parts of metrics' names, each once.

    Raises:
        ConfigError: A name cannot be used, or there are not two classes.
    """
    if len(contract.classes) < 2:
        raise ConfigError(
            "cohort.classes must name at least two classes, background first, "
            f"got {list(contract.classes)}. The manifest can name them too: '# classes: background, lesion'."
        )
    require_metric_names("channel", contract.channels)
    require_metric_names("class", contract.classes)
    require_metric_names("region", (*contract.regions.members,))
    _check_regions(contract)


def require_metric_names(kind: str, names: Sequence[str]) -> None:
    """Require names that can be parts of metrics' names, each once.

    Raises:
        ConfigError: A name cannot be used.
    """
    for name in names:
        if not _METRIC_NAME.match(name):
            allowed = re.sub(r"[^\w\-.: ]+", "_", name).strip("_") or kind
            raise ConfigError(
                f"The {kind} name '{name}' cannot be part of a metric's name: allowed are letters, digits, blanks "
                f"and _ - . : (for instance '{allowed}')."
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"Two {kind}s have the same name: {', '.join(names)}.")


def _check_labels(training: Sequence[Case], validation: Sequence[Case]) -> None:
    for case in (*training, *validation):
        if case.label_map is None:
            raise CohortError(f"Case '{case.name}' has no label map; cases for {case.split} need one.")


def require_no_errors(findings: CheckReport, session: Session) -> None:
    """Require a cohort that can be used, and show the warnings of its check: one for all cases that share it.

    Raises:
        CohortError: The check found errors; the message has the first ones.
    """
    if findings.errors:
        shown = "; ".join(
            f"{finding.case} {finding.column}: {finding.message.rstrip('.')}"
            for finding in findings.errors[:_FINDINGS_SHOWN]
        )
        more = len(findings.errors) - _FINDINGS_SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        hint = labels_hint(findings.errors)
        count = "1 error" if len(findings.errors) == 1 else f"{len(findings.errors)} errors"
        raise CohortError(
            f"Cohort '{findings.cohort}' has {count}: {shown}{rest}. "
            f"See all of them with 'dmx cohort check'.{f' {hint}' if hint else ''}"
        )
    alike: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings.warnings:
        # What differs in numbers and names alone is said once.
        alike[finding.column, re.sub(r"'[^']*'|\d[\d.e-]*", "", finding.message)].append(finding)
    for (column, _), found in alike.items():
        message, names = found[0].message, [finding.case for finding in found if finding.case]
        if len({finding.message for finding in found}) > 1:
            message = f"{message.rstrip('.')} (the first of them; all are in cohort/check.json)."
        session.warn(_warning(column, message, list(dict.fromkeys(names))))


def _warning(column: str, message: str, cases: Sequence[str]) -> str:
    """Return a warning with the first of the cases that share it."""
    if not cases:
        return message
    shown = ", ".join(f"'{name}'" for name in cases[:_CASES_SHOWN])
    more = f" and {len(cases) - _CASES_SHOWN} more" if len(cases) > _CASES_SHOWN else ""
    return f"{'Case' if len(cases) == 1 else 'Cases'} {shown}{more}: {column} {message}".replace("  ", " ")


def make_network(experiment: Experiment, contract: Contract) -> tuple[Network, SegmentPlan]:
    """Build the experiment's network, and plan how a training segment is read for it.

    Raises:
        ModelError: The network cannot be built, or the segment is too small for it.
    """
    network = build_network(
        experiment.model,
        num_channels=len(contract.channels),
        num_classes=len(contract.outputs),
        compatibility=experiment.compatibility,
        seed=experiment.seed,
    )
    return network, network.segment_plan(triple(experiment.sampling.segment))


def padded(contract: Contract, plan: SegmentPlan) -> Contract:
    """Return the contract with DeepMedic's reflection around the scan in compatibility mode."""
    if contract.compatibility == "none":
        return contract
    return replace(contract, pad_before=plan.margin_before, pad_after=plan.margin_after)
