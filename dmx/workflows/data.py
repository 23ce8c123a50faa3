"""From an experiment to cases, contract and network: everything that is known before the first step."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmx.cohort.case import Case, Cohort
from dmx.cohort.manifest import read_manifest
from dmx.cohort.splits import k_fold
from dmx.config.sections import Experiment
from dmx.errors import CohortError, ConfigError, suggest
from dmx.geometry import SegmentPlan, triple
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.preprocess.contract import Contract, resolve_contract

_METRIC_NAME = re.compile(r"^[\w\-.: ]+$")


@dataclass(frozen=True)
class TrainingData:
    """The cases of a training and what the network sees of them."""

    cohort: Cohort
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
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
    section = experiment.cohort
    cohort = read_cohort(Path(section.manifest))
    if section.fold is not None:
        cohort = k_fold(cohort, fold=section.fold, folds=section.folds, seed=experiment.seed)
    training, validation = cohort.in_split("training"), cohort.in_split("validation")
    if trains and not training:
        raise CohortError(
            f"Cohort '{cohort.name}' has no case in split 'training'. Fill the column 'split' with 'dmx cohort split', "
            "or set cohort.fold."
        )
    contract = resolve_contract(
        section,
        experiment.preprocess,
        cases=training or cohort.cases,
        channels=_known(section.channels, cohort.channels, "channels"),
        classes=section.classes or cohort.classes,
        compatibility=experiment.compatibility,
    )
    check_names(contract)
    if trains:
        _check_labels(training, validation)
    return TrainingData(cohort, training, validation, contract)


def _known(chosen: Sequence[str], known: Sequence[str], what: str) -> Sequence[str]:
    for name in chosen:
        if name not in known:
            raise ConfigError(
                f"cohort.{what} names '{name}', the manifest has {', '.join(known)}.{suggest(name, known)}"
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
    for kind, names in (("channel", contract.channels), ("class", contract.classes)):
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


def make_network(experiment: Experiment, contract: Contract) -> tuple[Network, SegmentPlan]:
    """Build the experiment's network, and plan how a training segment is read for it.

    Raises:
        ModelError: The network cannot be built, or the segment is too small for it.
    """
    network = build_network(
        experiment.model,
        num_channels=len(contract.channels),
        num_classes=len(contract.classes),
        compatibility=experiment.compatibility,
        seed=experiment.seed,
    )
    return network, network.segment_plan(triple(experiment.sampling.segment))


def padded(contract: Contract, plan: SegmentPlan) -> Contract:
    """Return the contract with DeepMedic's reflection around the scan in compatibility mode."""
    if contract.compatibility == "none":
        return contract
    return replace(contract, pad_before=plan.margin_before, pad_after=plan.margin_after)
