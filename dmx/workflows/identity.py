"""Who was seen by a network: subjects and scans as hashes, to find what leaks into a validation."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmx.cohort.case import Case
from dmx.cohort.digest import files_sha256
from dmx.errors import CohortError, RunError
from dmx.tracking.files import read_text
from dmx.tracking.lineage import UNTRAINED, source_runs
from dmx.tracking.store import RunInfo, RunReader

IDENTITY = "cohort/identity.json"
_SHOWN = 5
_MOST_ANCESTORS = 100


@dataclass(frozen=True)
class Leak:
    """A held-out case that a network has been trained or validated on.

    Attributes:
        case: The case.
        run: The run that used it.
        split: ``training`` or ``validation`` of that run.
        reason: ``subject`` or ``scan``.
    """

    case: str
    run: RunInfo
    split: str
    reason: str


def identity(cohort: str, splits: Mapping[str, Sequence[Case]]) -> dict[str, Any]:
    """Return subjects and scans of each split as hashes, which tell nothing of a person.

    A subject counts within its cohort (every study has a ``sub-01``), a scan by its content.
    """
    return {
        "cohort": cohort,
        **{split: [case_hashes(cohort, case) for case in cases] for split, cases in splits.items()},
    }


def case_hashes(cohort: str, case: Case) -> dict[str, Any]:
    """Return subject and scans of a case as hashes."""
    channels = [path for path in case.channels.values() if path is not None]
    return {"subject": subject_hash(cohort, case.subject), "scans": sorted(files_sha256(channels).values())}


def subject_hash(cohort: str, subject: str) -> str:
    """Return a hash of a subject, who counts within a cohort."""
    return hashlib.sha256(f"{cohort}\0{subject}".encode()).hexdigest()[:24]


def ancestors(store: RunReader, run: RunInfo) -> list[RunInfo]:
    """Return the run and all runs that its weights came from, nearest first."""
    found = {run.id: run}
    waiting = [run]
    while waiting and len(found) < _MOST_ANCESTORS:
        for source in source_runs(waiting.pop(0).tags):
            if source in found:
                continue
            try:
                found[source] = store.get_run(source)
            except RunError:
                continue
            waiting.append(found[source])
    return list(found.values())


def find_leaks(store: RunReader, run: RunInfo, *, cohort: str, cases: Sequence[Case]) -> tuple[list[Leak], list[str]]:
    """Return which cases a run or its ancestors have seen, and a sentence for each of which that cannot be known.

    Args:
        store: Where the runs are kept.
        run: The run whose network is used.
        cohort: Name of the cohort of the cases.
        cases: Held-out cases.
    """
    held_out = {case.name: case_hashes(cohort, case) for case in cases}
    leaks: list[Leak] = []
    unknown = []
    for seen_by in ancestors(store, run):
        file = seen_by.tags.get("dmx.source_file")
        if file is not None and seen_by.kind != "import":
            unknown.append(cannot_tell(f"the network in '{file}'"))
        if seen_by.tags.get("dmx.optimizer_state") == UNTRAINED:
            # It has seen nobody: its cases are those that it was made for.
            continue
        known = read_identity(store, seen_by)
        if known is None:
            unknown.append(cannot_tell(f"{seen_by.experiment}/{seen_by.name}"))
            continue
        for split in ("training", "validation"):
            leaks += _shared(held_out, known.get(split, []), seen_by, split)
    return leaks, unknown


def cannot_tell(network: str) -> str:
    """Say that a network does not tell whom it has seen."""
    return f"Not known: which subjects {network} was trained on. Whether held-out ones are among them was not checked."


def _shared(
    held_out: Mapping[str, dict[str, Any]], known: Sequence[dict[str, Any]], run: RunInfo, split: str
) -> Iterator[Leak]:
    subjects = {entry["subject"] for entry in known}
    scans = {scan for entry in known for scan in entry["scans"]}
    for name, hashes in held_out.items():
        if hashes["subject"] in subjects:
            yield Leak(name, run, split, "subject")
        elif scans.intersection(hashes["scans"]):
            yield Leak(name, run, split, "scan")


def require_no_leak(leaks: Sequence[Leak], *, allowed: bool) -> tuple[list[str], dict[str, str]]:
    """Return sentences of warning and tags for the run.

    Raises:
        CohortError: A held-out case was trained on and that is not allowed.
    """
    trained = [leak for leak in leaks if leak.split == "training"]
    notes = []
    if trained:
        shown = ", ".join(f"{leak.case} (same {leak.reason} in {leak.run.name})" for leak in trained[:_SHOWN])
        more = f" and {len(trained) - _SHOWN} more" if len(trained) > _SHOWN else ""
        sentence = f"{len(trained)} held-out cases were in the training of the network or of its sources: {shown}{more}"
        if not allowed:
            raise CohortError(
                f"{sentence}. Their scores would say nothing. Choose other cases, or --allow-leak to go on with a tag."
            )
        notes.append(f"{sentence}. --allow-leak was given.")
    validated = len(leaks) - len(trained)
    if validated:
        notes.append(f"{validated} held-out cases were validation cases of the network or its sources.")
    return notes, {"dmx.leak": str(len(trained))} if trained else {}


def read_identity(store: RunReader, run: RunInfo) -> dict[str, Any] | None:
    """Return whom a run has seen; ``None`` where it does not say."""
    try:
        known: dict[str, Any] = json.loads(read_text(store, run.id, IDENTITY) or "")
    except ValueError:
        return None
    return known
