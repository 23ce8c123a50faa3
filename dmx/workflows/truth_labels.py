"""Which class of a network each label of a cohort is: by name, and said where it is otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dmx.cohort.case import Cohort
from dmx.cohort.label_values import class_index, named_values, parse_label_values, values_text
from dmx.cohort.labels import ClassPairing, pair_classes, parse_integer, position
from dmx.errors import CohortError, suggest
from dmx.preprocess.contract import Contract, resolve_labels
from dmx.workflows.predict import is_own_cohort
from dmx.workflows.session import Session
from dmx.workflows.trained import Trained, TrainedNetwork
from dmx.workflows.volumes import check_scans

GivenLabels = Mapping[int, str]
"""Value in the label maps: class of the network, by name or index."""

PairedBy = Literal["names", "position", "given", "training"]


@dataclass(frozen=True, kw_only=True)
class TruthLabels:
    """How the label maps of a cohort are read for a network.

    Attributes:
        contract: The network's contract, with the values of these label maps.
        by: ``names`` of the classes; ``position`` where no name is the same; ``given`` by the user; ``training``: as in
            the training, because the cohort names no classes.
        notes: What a user should know of it, a sentence each.
        warnings: What may be wrong, a sentence each.
    """

    contract: Contract
    by: PairedBy
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

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
    _tell(truth, session)
    return truth


def _tell(truth: "TruthLabels | TruthOutputs", session: Session) -> None:
    for note in truth.notes:
        session.report.say(note)
    for warning in truth.warnings:
        session.warn(warning)


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
    notes, warnings = _remarks(cohort, names, contract, pairing)
    if pairing.index == tuple(range(len(contract.classes))):
        read = replace(contract, labels=cohort_labels, labels_complete=complete)
    else:
        read = replace(contract, labels=_values(cohort_labels, complete, pairing), labels_complete=True)
    if read.labels != contract.labels and not (notes or warnings):
        notes = (f"The label values of cohort '{cohort.name}' are read as {_text(read)}.",)
    return TruthLabels(contract=read, by=pairing.by, notes=notes, warnings=warnings)


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
    notes = (f"The label values of cohort '{cohort.name}' are read as {values_text(labels, contract.classes)}.",)
    missing = [name for k, name in enumerate(contract.classes) if k not in labels.values()]
    return TruthLabels(contract=read, by="given", notes=notes, warnings=_without(missing, cohort))


def _as_trained(contract: Contract, cohort: Cohort) -> TruthLabels:
    note = f"Cohort '{cohort.name}' names no classes: its label values are read as in the training, {_text(contract)}."
    return TruthLabels(contract=contract, by="training", notes=(note,))


def _text(contract: Contract) -> str:
    values = TruthLabels(contract=contract, by="names").values
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


def _remarks(
    cohort: Cohort, names: tuple[str, ...], contract: Contract, pairing: ClassPairing
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return notes and warnings about a pairing."""
    pairs = [(name, contract.classes[k]) for name, k in zip(names, pairing.index, strict=True) if k is not None]
    arrows = ", ".join(f"{theirs} → {ours}" for theirs, ours in pairs[1:])
    if pairing.by == "position":
        return (), (_by_position(cohort.name, arrows),)
    missing = [name for k, name in enumerate(contract.classes) if k not in pairing.index]
    same = pairing.index == tuple(range(len(pairing.index)))
    said = () if same else (_by_name(cohort.name, arrows),)
    return said, _without(missing, cohort)


def _by_position(cohort: str, arrows: str) -> str:
    return (
        f"The classes of cohort '{cohort}' have other names than the network's and are paired by position: {arrows}. "
        "Where that is wrong, give --labels."
    )


def _by_name(cohort: str, arrows: str) -> str:
    return f"The classes of cohort '{cohort}' are paired with the network's by name: {arrows}."


def _without(missing: list[str], cohort: Cohort) -> tuple[str, ...]:
    if not missing:
        return ()
    return (
        f"No label map of cohort '{cohort.name}' can have the class {', '.join(missing)} of the network; where it is "
        "predicted, that counts as wrong.",
    )


@dataclass(frozen=True, kw_only=True)
class CaseLabels:
    """What whole images or volumes are labeled with.

    Attributes:
        cohort: Name of the cohort or of the list of images.
        names: What they can be: names of classes, or integers where the file names none.
        numbers: The integer of each in the file.
        found: Those of the names that the cases to score have.
    """

    cohort: str
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    found: frozenset[str]

    @property
    def bare(self) -> bool:
        """Return whether they are integers that name no class."""
        return self.names == tuple(map(str, self.numbers))


@dataclass(frozen=True, kw_only=True)
class TruthOutputs:
    """Which output of a network each label of whole images or volumes is, or each column of numbers.

    Attributes:
        outputs: Label or column: name of the output.
        by: As for :class:`TruthLabels`.
        notes: What a user should know of it, a sentence each.
        warnings: What may be wrong, a sentence each.
    """

    outputs: Mapping[str, str]
    by: PairedBy
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def params(self) -> dict[str, object]:
        """Return the params of the run that scores them."""
        values = ", ".join(f"{label}={name}" for label, name in self.outputs.items())
        return {"labels.paired_by": self.by, "labels.values": values}


def read_case_labels(
    trained: TrainedNetwork, labels: CaseLabels, *, given: Mapping[str, str] | None, session: Session
) -> TruthOutputs:
    """Pair what whole images or volumes are labeled with with the classes of a network, and say how.

    Raises:
        CohortError: Neither names nor numbers say which is which.
    """
    truth = case_label_outputs(labels, trained.contract.outputs, numbered=trained.contract.labels, given=given)
    _tell(truth, session)
    return truth


def case_label_outputs(
    labels: CaseLabels, outputs: Sequence[str], *, numbered: Mapping[int, int], given: Mapping[str, str] | None = None
) -> TruthOutputs:
    """Pair labels with outputs: as the user says, by name, by the training's numbers, or by position.

    Args:
        labels: The labels.
        outputs: Classes of the network.
        numbered: Label in the training: index of its class; empty: the index.
        given: What the user says: label, by name or number, and class, by name or index.

    Raises:
        CohortError: They cannot be paired.
    """
    pairing = pair_classes(labels.names, outputs, background=False)
    by_name = {name: outputs[k] for name in labels.names if (k := position(name, outputs)) is not None}
    if len(set(by_name.values())) < len(by_name):
        by_name = {name: name for name in by_name if name in outputs}
    if given:
        return _given_outputs(labels, outputs, given, by_name)
    if labels.found <= by_name.keys():
        arrows = ", ".join(f"{theirs} → {ours}" for theirs, ours in by_name.items() if theirs != ours)
        return TruthOutputs(outputs=by_name, by="names", notes=(_by_name(labels.cohort, arrows),) if arrows else ())
    if labels.bare:
        # Numbers are no names: they are what they were in the training, where that named its classes.
        known = numbered or {k: k for k in range(len(outputs))}
        read = {str(k): outputs[known[k]] for k in labels.numbers if k in known}
        if labels.found <= read.keys() and not all(name.isdecimal() for name in outputs):
            words = ", ".join(f"{label}={name}" for label, name in read.items())
            note = f"'{labels.cohort}' names no classes: its labels are read as in the training, {words}."
            return TruthOutputs(outputs=read, by="training", notes=(note,))
    elif pairing.by == "position":
        named = {name: outputs[k] for name, k in zip(labels.names, pairing.index, strict=True) if k is not None}
        arrows = ", ".join(f"{theirs} → {ours}" for theirs, ours in named.items())
        return TruthOutputs(outputs=named, by="position", warnings=(_by_position(labels.cohort, arrows),))
    strange = next(name for name in labels.names if name in labels.found and by_name.get(name) is None)
    raise CohortError(
        f"'{labels.cohort}' has the classes {', '.join(labels.names)}, the network {', '.join(outputs)}: neither names "
        f"nor number say which is which. Say it with --labels LABEL=CLASS,…, e.g. --labels {strange}={outputs[0]}."
    )


def _given_outputs(
    labels: CaseLabels, outputs: Sequence[str], given: Mapping[str, str], named: Mapping[str, str]
) -> TruthOutputs:
    stated: dict[str, str] = {}
    for label, name in given.items():
        number = parse_integer(label)
        found = position(label, labels.names)
        if found is None and number in labels.numbers:
            found = labels.numbers.index(number)
        if found is None:
            raise CohortError(
                f"--labels names the label '{label}', '{labels.cohort}' has {', '.join(labels.names) or 'none'}."
                f"{suggest(label, labels.names)}"
            )
        if labels.names[found] in stated:
            raise CohortError(f"--labels names the label '{labels.names[found]}' twice.")
        stated[labels.names[found]] = outputs[class_index(name, outputs, "--labels")]
    read = {label: name for label, name in named.items() if label not in stated} | stated
    if lost := [label for label in labels.names if label in labels.found and label not in read]:
        raise CohortError(
            f"--labels must also say what the label '{lost[0]}' of '{labels.cohort}' is, allowed are "
            f"{', '.join(outputs)}."
        )
    words = ", ".join(f"{label}={name}" for label, name in read.items())
    return TruthOutputs(outputs=read, by="given", notes=(f"The labels of '{labels.cohort}' are read as {words}.",))


def read_target_columns(
    trained: TrainedNetwork, cohort: Cohort, *, given: Mapping[str, str] | None, session: Session
) -> TruthOutputs:
    """Pair columns of numbers with the targets of a network: by name, or as the user says, and say how.

    Raises:
        CohortError: A target has no column.
    """
    targets = trained.contract.outputs
    columns = tuple(dict.fromkeys(name for case in cohort.cases for name in case.targets))
    read: dict[str, str] = {}
    for column, target in (given or {}).items():
        if column not in columns:
            raise CohortError(
                f"--labels names the column '{column}', '{cohort.name}' has {', '.join(columns) or 'no numbers'}."
                f"{suggest(column, columns)}"
            )
        read[column] = targets[class_index(target, targets, "--labels")]
    for target in targets:
        if target not in read.values():
            found = position(target, columns)
            if found is None or columns[found] in read:
                raise CohortError(
                    f"'{cohort.name}' has no numbers for the target '{target}' of the network, its columns are "
                    f"{', '.join(columns) or 'none'}. Say which one it is with --labels COLUMN={target}."
                )
            read[columns[found]] = target
    arrows = ", ".join(f"{column} → {target}" for column, target in read.items() if column != target)
    note = (f"Columns of '{cohort.name}' are read as targets: {arrows}.",) if arrows else ()
    truth = TruthOutputs(outputs=read, by="given" if given else "names", notes=note)
    _tell(truth, session)
    return truth
