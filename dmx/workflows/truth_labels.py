"""Which class of a network each value in the label maps of a cohort is: by name, and said where it is otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dmx.cohort.case import Cohort
from dmx.cohort.label_values import class_index, named_values, parse_label_values, values_text
from dmx.cohort.labels import ClassPairing, pair_classes
from dmx.errors import CohortError
from dmx.preprocess.contract import Contract, resolve_labels
from dmx.workflows.predict import is_own_cohort
from dmx.workflows.session import Session
from dmx.workflows.trained import Trained
from dmx.workflows.volumes import check_scans

GivenLabels = Mapping[int, str]
"""Value in the label maps: class of the network, by name or index."""


@dataclass(frozen=True, kw_only=True)
class TruthLabels:
    """How the label maps of a cohort are read for a network.

    Attributes:
        contract: The network's contract, with the values of these label maps.
        by: ``names`` of the classes; ``position`` where no name is the same; ``given`` by the user; ``training``: as in
            the training, because the cohort names no classes.
        notes: What a user should know of it, a sentence each.
    """

    contract: Contract
    by: Literal["names", "position", "given", "training"]
    notes: tuple[str, ...]

    @property
    def values(self) -> dict[int, str]:
        """Return the name of the class that each value is."""
        contract = self.contract
        known = contract.labels if contract.labels_complete else {*range(len(contract.classes)), *contract.labels}
        found = {value: contract.class_of(value) for value in sorted(known)}
        return {value: contract.classes[index] for value, index in found.items() if index is not None}

    def params(self) -> dict[str, object]:
        """Return the params of the run that scores them."""
        values = ", ".join(f"{value}={name}" for value, name in self.values.items())
        return {"labels.paired_by": self.by, "labels.values": values}


def read_truth(
    trained: Trained, cohort: Cohort, manifest: Path | None, *, given: Mapping[str, str] | None, session: Session
) -> TruthLabels:
    """Pair the classes of a cohort with the network's, say how, and check the files.

    Args:
        trained: The network.
        cohort: Cases with label maps.
        manifest: What the user named; ``None``: the cohort of the run.
        given: What the user says of the values in its label maps.
        session: Whom to tell.

    Raises:
        CohortError: The classes cannot be paired, or the first findings about the files.
    """
    values = None if given is None else parse_label_values((f"{k}={v}" for k, v in given.items()), "--labels")
    truth = truth_labels(trained, cohort, own=is_own_cohort(manifest, trained), given=values)
    check_scans(cohort, truth.contract, session, with_labels=True)
    for note in truth.notes:
        session.report.say(note)
    return truth


def truth_labels(trained: Trained, cohort: Cohort, *, own: bool, given: GivenLabels | None = None) -> TruthLabels:
    """Pair the values in the label maps of a cohort with the classes of a network.

    Args:
        trained: The network.
        cohort: The cohort.
        own: Whether it is the cohort that the network was trained on, as its experiment reads it.
        given: What the user says of its values.

    Raises:
        CohortError: Neither the names of the classes nor their number say which is which.
    """
    contract, section = trained.contract, trained.experiment.cohort
    if cohort.ignore is not None and cohort.ignore not in contract.labels:
        contract = replace(contract, ignore=cohort.ignore)
    if own and (cohort.classes or section.classes):
        cohort_labels, complete = resolve_labels(section, cohort.classes, cohort.label_values)
        names = section.classes or cohort.classes
    else:
        cohort_labels, complete = dict(cohort.label_values), bool(cohort.label_values)
        names = cohort.classes
    pairing = pair_classes(names, contract.classes) if names else None
    if given:
        return _given(contract, cohort, given, _values(cohort_labels, complete, pairing))
    if pairing is None:
        return _as_trained(contract, cohort)
    if not pairing.by:
        raise CohortError(_undecided(cohort, names, contract, pairing))
    if not own and not complete:
        cohort_labels = _beyond(trained, cohort, pairing)
    notes = _notes(cohort, names, contract, pairing)
    if pairing.index == tuple(range(len(contract.classes))):
        read = replace(contract, labels=cohort_labels, labels_complete=complete)
    else:
        read = replace(contract, labels=_values(cohort_labels, complete, pairing), labels_complete=True)
    if read.labels != contract.labels and not notes:
        notes = (f"The label values of cohort '{cohort.name}' are read as {_text(read)}.",)
    return TruthLabels(contract=read, by=pairing.by, notes=notes)


def _values(labels: Mapping[int, int], complete: bool, pairing: ClassPairing | None) -> dict[int, int]:
    """Return the network's class of each value, from the cohort's class of each; classes without partner are left."""
    if pairing is None or not pairing.by:
        return {0: 0}
    base = dict(labels) if complete else {k: k for k in range(len(pairing.index))} | dict(labels)
    pairs = ((value, pairing.index[k]) for value, k in base.items() if 0 <= k < len(pairing.index))
    return {value: index for value, index in pairs if index is not None}


def _given(contract: Contract, cohort: Cohort, given: GivenLabels, base: Mapping[int, int]) -> TruthLabels:
    stated = {value: class_index(name, contract.classes, "--labels") for value, name in given.items()}
    labels = named_values(base, stated)
    read = replace(contract, labels=labels, labels_complete=True)
    notes = [f"The label values of cohort '{cohort.name}' are read as {values_text(labels, contract.classes)}."]
    missing = [name for k, name in enumerate(contract.classes) if k not in labels.values()]
    return TruthLabels(contract=read, by="given", notes=(*notes, *_without(missing, cohort)))


def _as_trained(contract: Contract, cohort: Cohort) -> TruthLabels:
    read = TruthLabels(contract=contract, by="training", notes=())
    note = f"Cohort '{cohort.name}' names no classes: its label values are read as in the training, {_text(contract)}."
    return replace(read, notes=(note,))


def _text(contract: Contract) -> str:
    values = TruthLabels(contract=contract, by="names", notes=()).values
    return ", ".join(f"{value}={name}" for value, name in values.items())


def _beyond(trained: Trained, cohort: Cohort, pairing: ClassPairing) -> dict[int, int]:
    """Return the cohort's class of values that its manifest does not know but that the training did.

    Raises:
        CohortError: The experiment of the training gave a value another class than the cohort's manifest does.
    """
    contract, section = trained.contract, trained.experiment.cohort
    back = {index: k for k, index in enumerate(pairing.index)}
    labels = {}
    for value, index in contract.labels.items():
        if value >= len(cohort.classes) and index in back:
            labels[value] = back[index]
        elif value in section.labels and pairing.by == "names" and pairing.index[value] != index:
            raise CohortError(
                f"The value {value} was {contract.classes[index]} in the training of run "
                f"'{trained.run.experiment}/{trained.run.name}' (cohort.labels), and is {cohort.classes[value]} in "
                f"the manifest of cohort '{cohort.name}'. Say what it is: --labels "
                f"{value}={contract.classes[index]}, or another class."
            )
    return labels


def _undecided(cohort: Cohort, names: tuple[str, ...], contract: Contract, pairing: ClassPairing) -> str:
    strange = [name for name, index in zip(names, pairing.index, strict=True) if index is None]
    unknown = f" The network has no '{strange[0]}'." if strange else ""
    return (
        f"Cohort '{cohort.name}' has the classes {', '.join(names)}, the network {', '.join(contract.classes)}: "
        f"neither names nor number say which is which.{unknown} Say it with --labels VALUE=CLASS,…, e.g. --labels "
        f"1={contract.classes[1]}; a value that is no class of the network can be {contract.classes[0]}."
    )


def _notes(cohort: Cohort, names: tuple[str, ...], contract: Contract, pairing: ClassPairing) -> tuple[str, ...]:
    pairs = [(name, contract.classes[k]) for name, k in zip(names, pairing.index, strict=True) if k is not None]
    arrows = ", ".join(f"{theirs} → {ours}" for theirs, ours in pairs[1:])
    if pairing.by == "position":
        return (
            f"Warning: the classes of cohort '{cohort.name}' have other names than the network's and are paired by "
            f"position: {arrows}. Where that is wrong, give --labels VALUE=CLASS,….",
        )
    missing = [name for k, name in enumerate(contract.classes) if k not in pairing.index]
    same = pairing.index == tuple(range(len(pairing.index)))
    said = () if same else (f"The classes of cohort '{cohort.name}' are paired with the network's by name: {arrows}.",)
    return (*said, *_without(missing, cohort))


def _without(missing: list[str], cohort: Cohort) -> tuple[str, ...]:
    if not missing:
        return ()
    return (
        f"Warning: no label map of cohort '{cohort.name}' can have the class {', '.join(missing)} of the network; "
        "where it is predicted, that counts as wrong.",
    )
