"""What a training reads, as hashes: a run that goes on must read the same, wherever the files lie by now."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmx.cohort.case import Case, Cohort
from dmx.cohort.digest import files_sha256
from dmx.config.sections import Experiment
from dmx.config.tasks import Task
from dmx.errors import CohortError
from dmx.tracking.store import RunInfo
from dmx.workflows.checked import SplitCases
from dmx.workflows.identity import case_hashes, subject_hash

READS = "reads"
"""Key of the file with whom a run has seen."""

_SPLITS = ("training", "validation")
_SHOWN = 5
_LOOKED_AT = 5


def what_is_read(data: SplitCases, task: Task) -> dict[str, Any]:
    """Return what a training reads: order and files of its cases, what is said of each, and what it predicts.

    It tells nothing of a person: what identifies one stands in it as a hash.
    """
    return {
        "channels": list(data.contract.channels),
        "outputs": list(data.contract.outputs),
        **{split: [_entry(data, case, task) for case in _cases(data, split)] for split in _SPLITS},
    }


def _cases(data: SplitCases, split: str) -> tuple[Case, ...]:
    return data.training if split == "training" else data.validation


def _entry(data: SplitCases, case: Case, task: Task) -> dict[str, Any]:
    files, cohort = case.files(), data.cohort
    hashes = files_sha256(files.values())
    return {
        "case": _hash(cohort.name, case.name),
        "files": {column: hashes[path] for column, path in files.items()},
        **{name: _hash(cohort.name, case.name, name, value) for name, value in _said(data, case, task)},
    }


def _said(data: SplitCases, case: Case, task: Task) -> Iterator[tuple[str, str]]:
    """Yield what is learned of a whole case: its label, or its targets."""
    classes = data.cohort.label_classes
    if task == "classification" and case.label is not None:
        yield "label", classes[case.label] if classes else str(case.label)
    if task == "regression":
        for name in data.contract.outputs:
            yield f"target_{name}", repr(case.targets.get(name))


def _hash(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:24]


def require_same_reads(run: RunInfo, known: Mapping[str, Any], data: SplitCases, task: Task) -> None:
    """Require that a run goes on with what it has read.

    Args:
        run: The run.
        known: What the run has kept; runs of earlier versions know scans and subjects only.
        data: What it would read now.
        task: What the network learns.

    Raises:
        CohortError: Something was changed, added or taken away; the sentence names case and file.
    """
    changes = list(_changes(known, data, task))
    if not changes:
        return
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    raise CohortError(
        f"Cohort '{data.cohort.name}' is no longer what run '{run.experiment}/{run.name}' has been trained on, so it "
        f"cannot go on exactly: {'; '.join(changes[:_SHOWN])}{more}. Restore this, or begin a new run with 'dmx train' "
        f"or 'dmx finetune --from-run {run.id[:8]}'."
    )


def _changes(known: Mapping[str, Any], data: SplitCases, task: Task) -> Iterator[str]:
    reads = known.get(READS)
    for split in _SPLITS:
        cases = _cases(data, split)
        if reads is None:
            yield from _changed_scans(
                split, known[split], [case_hashes(data.cohort.name, case) for case in cases], cases
            )
        else:
            now = [_entry(data, case, task) for case in cases]
            yield from _changed_cases(split, reads, now, cases)
    if reads is not None:
        for what, values in (("channels", data.contract.channels), ("outputs", data.contract.outputs)):
            if reads[what] != list(values):
                yield f"its {what} were {', '.join(reads[what])} and are {', '.join(values)}"


def _changed_scans(
    split: str, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], cases: Sequence[Case]
) -> Iterator[str]:
    """Compare scans and subjects, whatever else is known of the cases."""
    known = [{key: entry[key] for key in ("subject", "scans")} for entry in before]
    if known == list(now):
        return
    changed = [case.name for case, entry in zip(cases, now, strict=True) if entry not in known]
    yield from (f"'{name}' in split '{split}' is new or has other scans" for name in changed)
    if not changed:
        yield f"split '{split}' had {len(known)} cases and has {len(now)}, or another order"


def _changed_cases(
    split: str, reads: Mapping[str, Any], now: Sequence[Mapping[str, Any]], cases: Sequence[Case]
) -> Iterator[str]:
    before = {entry["case"]: entry for entry in reads[split]}
    elsewhere = {entry["case"] for other in _SPLITS if other != split for entry in reads[other]}
    for case, entry in zip(cases, now, strict=True):
        known = before.get(entry["case"])
        if known is not None:
            yield from _changed_case(case, known, entry)
        elif entry["case"] in elsewhere:
            yield f"case '{case.name}' has moved to split '{split}'"
        else:
            yield f"case '{case.name}' is new in split '{split}'"
    present = {entry["case"] for entry in now}
    if missing := sum(entry not in present for entry in before):
        yield f"{missing} of the {len(before)} cases of split '{split}' are missing"
    order = [entry["case"] for entry in now if entry["case"] in before]
    if order != [entry for entry in before if entry in present]:
        yield f"the cases of split '{split}' are in another order"


def _changed_case(case: Case, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    files = case.files()
    for column in dict.fromkeys((*before["files"], *now["files"])):
        was, has = before["files"].get(column), now["files"].get(column)
        if has is None:
            yield f"{column} of case '{case.name}' is missing"
        elif was is None:
            yield f"{column} of case '{case.name}' ('{files[column]}') is new"
        elif was != has:
            yield f"{column} of case '{case.name}' ('{files[column]}') was changed"
    for name in sorted((before.keys() | now.keys()) - {"case", "files"}):
        if before.get(name) != now.get(name):
            yield f"{name} of case '{case.name}' was changed"


def own_source(run: RunInfo, experiment: Experiment) -> Path:
    """Return the manifest, or list or folder of images, that a run was trained on.

    Raises:
        CohortError: It has none, or it is not where it was.
    """
    stimuli = experiment.stimuli
    named = experiment.cohort.manifest if stimuli is None else stimuli.source
    place = f"Run '{run.experiment}/{run.name}'"
    if not named:
        raise CohortError(f"{place} has no cohort, because its network was imported: name a manifest.")
    if not Path(named).exists():
        raise CohortError(
            f"{place} was trained on '{named}', which is not there. If it has moved, name its new place with --cohort "
            "PATH; what it holds is compared."
        )
    return Path(named)


def with_source(experiment: Experiment, source: Path) -> Experiment:
    """Return the settings with another place of the same manifest, list or folder of images."""
    if not source.exists():
        raise CohortError(f"--cohort names '{source}', which does not exist.")
    source = source.resolve()
    stimuli = experiment.stimuli
    if stimuli is None:
        return replace(experiment, cohort=replace(experiment.cohort, manifest=str(source)))
    former = Path(stimuli.source)
    others = {"validation": stimuli.validation, "evaluation": stimuli.evaluation}
    moved = {key: file and str(_beside(Path(file), former, source)) for key, file in others.items()}
    section = replace(stimuli, source=str(source), validation=moved["validation"], evaluation=moved["evaluation"])
    return replace(experiment, stimuli=section)


def _beside(file: Path, former: Path, source: Path) -> Path:
    """Return where a file is that lay in the same folder as a source that has moved."""
    inside = file.is_relative_to(former.parent)
    return source.parent / file.relative_to(former.parent) if inside and not file.exists() else file


def is_own(known: Mapping[str, Any] | None, cohort: Cohort) -> bool | None:
    """Tell whether a cohort is the one that a run has been trained on, whatever its place; ``None``: it cannot be told.

    Subjects are compared, and the scans of the first few cases that both have.
    """
    seen = {entry["subject"] for split in _SPLITS for entry in (known or {}).get(split, ())}
    if not seen:
        return None
    shared = [case for case in cohort.cases if subject_hash(cohort.name, case.subject) in seen]
    # A study can have got another name, and another study can have the same subjects.
    there = [case for case in shared or cohort.cases if all(path.is_file() for path in case.files().values())]
    scans = {scan for split in _SPLITS for entry in (known or {}).get(split, ()) for scan in entry["scans"]}
    if shared and not there:
        return None
    return any(scans.intersection(case_hashes(cohort.name, case)["scans"]) for case in there[:_LOOKED_AT])


def require_own(run: RunInfo, known: Mapping[str, Any] | None, cohort: Cohort) -> None:
    """Require the cohort that a run has been trained on, where it lies in its place.

    Raises:
        CohortError: It is another one.
    """
    if is_own(known, cohort) is False:
        raise CohortError(
            f"'{cohort.manifest or cohort.name}' is not the cohort that run '{run.experiment}/{run.name}' was trained "
            "on: it has none of its scans. Name the cohort that is meant with --cohort PATH."
        )
