"""Whom a network has seen: subjects and scans as hashes, to find what leaks into a validation."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from dmx.cohort.case import Case, Cohort
from dmx.cohort.check_images import picture_facts
from dmx.cohort.digest import files_sha256
from dmx.cohort.facts import file_facts
from dmx.cohort.fingerprint import likeness
from dmx.cohort.manifest import read_manifest
from dmx.errors import CohortError, RunError
from dmx.tracking.files import read_text
from dmx.tracking.lineage import UNTRAINED, source_runs
from dmx.tracking.store import RunInfo, RunReader

IDENTITY = "cohort/identity.json"
ANCESTORS = "cohort/ancestors.json"
"""Whom the runs have seen that a run's weights came from: it holds when those runs are gone."""

_SHOWN = 5
_MOST_ANCESTORS = 100

Reason = Literal["subject", "name", "scan", "voxels", "likely", "possible"]
_REASONS: Final[Mapping[str, str]] = {
    "scan": "same scan",
    "voxels": "same voxels in another file",
    "likely": "probably the same scan, flipped, cropped or resampled",
    "subject": "same subject",
}
"""What makes a held-out case worthless, the surest first."""


@dataclass(frozen=True)
class Seen:
    """Whom one network among the ancestors has seen.

    Attributes:
        run: Id of its run.
        name: Experiment and name of the run, or what else sentences call it.
        training: Hashes of its training cases.
        validation: Hashes of its validation cases.
        known: Whether that can be known; else the two are empty.
    """

    run: str
    name: str
    training: Sequence[Mapping[str, Any]] = ()
    validation: Sequence[Mapping[str, Any]] = ()
    known: bool = True

    @property
    def key(self) -> str:
        """Return what tells one network from another."""
        return self.run if self.known else self.name


@dataclass(frozen=True)
class Leak:
    """A held-out case that a network has been trained or validated on.

    Attributes:
        case: The case.
        seen: The network that used it.
        split: ``training`` or ``validation`` of that network.
        reason: How it is known: ``scan`` the same file, ``voxels`` the same content in another file, ``likely`` and
            ``possible`` a scan whose landmarks agree, ``subject`` another scan of the same subject, ``name`` another
            scan of a subject of that name, in a cohort of the same name that shares no scan.
    """

    case: str
    seen: Seen
    split: str
    reason: Reason


def identity(cohort: str, splits: Mapping[str, Sequence[Case]]) -> dict[str, Any]:
    """Return subjects and scans of each split as hashes, which tell nothing of a person.

    A subject counts within its cohort (every study has a ``sub-01``), a scan by its content.
    """
    return {
        "cohort": cohort,
        **{split: [case_identity(cohort, case) for case in cases] for split, cases in splits.items()},
    }


def case_hashes(cohort: str, case: Case) -> dict[str, Any]:
    """Return subject and scans of a case as hashes."""
    channels = [path for path in case.channels.values() if path is not None]
    return {"subject": subject_hash(cohort, case.subject), "scans": sorted(files_sha256(channels).values())}


def case_identity(cohort: str, case: Case) -> dict[str, Any]:
    """Return subject and scans of a case as hashes, and what its scans are known by when they are saved anew."""
    voxels, landmarks = set(), set()
    for path in case.channels.values():
        if path is not None and path.name.endswith((".nii", ".nii.gz")):
            facts = file_facts(path, "intensities")
            voxels.add(facts.voxels)
            landmarks.add(facts.landmarks)
        elif path is not None:
            voxels.add(picture_facts(path).pixels)
    return {
        **case_hashes(cohort, case),
        "voxels": sorted(voxels - {""}),
        "landmarks": sorted(landmarks - {""}),
    }


def subject_hash(cohort: str, subject: str) -> str:
    """Return a hash of a subject, who counts within a cohort."""
    return hashlib.sha256(f"{cohort}\0{subject}".encode()).hexdigest()[:24]


def seen_by(store: RunReader, run: RunInfo) -> list[Seen]:
    """Return whom a run and all that its weights came from have seen, nearest first.

    A run keeps that of its ancestors. Those of runs that do not, from earlier versions, are looked at themselves.
    """
    found: list[Seen] = []
    met = {run.id}
    waiting = [run]
    while waiting and len(met) < _MOST_ANCESTORS:
        current = waiting.pop(0)
        kept = _kept(store, current)
        found += [*_own(store, current), *(kept or ())]
        if kept is not None:
            continue
        for source in source_runs(current.tags):
            if source in met:
                continue
            met.add(source)
            try:
                waiting.append(store.get_run(source))
            except RunError:
                name = f"run {source[:8]}, a source of {current.experiment}/{current.name} that is gone"
                found.append(Seen(source, name, known=False))
    return distinct(found)


def _own(store: RunReader, run: RunInfo) -> Iterator[Seen]:
    """Yield whom a run itself has seen, and the files that it began with."""
    name = f"{run.experiment}/{run.name}"
    # It has seen nobody: its cases are those that it was made for.
    if run.tags.get("dmx.optimizer_state") != UNTRAINED:
        content = read_identity(store, run)
        splits = {} if content is None else {key: content.get(key, []) for key in ("training", "validation")}
        yield Seen(run.id, name, **splits, known=content is not None)
    file = run.tags.get("dmx.source_file")
    if file is not None and run.kind != "import":
        yield unknown_file(file)


def _kept(store: RunReader, run: RunInfo) -> list[Seen] | None:
    try:
        return [Seen(**entry) for entry in json.loads(read_text(store, run.id, ANCESTORS) or "")]
    except (ValueError, TypeError):
        return None


def distinct(seen: Iterable[Seen]) -> list[Seen]:
    """Return each network once."""
    found: dict[str, Seen] = {}
    for one in seen:
        found.setdefault(one.key, one)
    return list(found.values())


def unknown_file(name: str) -> Seen:
    """Return that nobody knows whom the network in a file has seen."""
    return Seen("", f"the network in '{name}'", known=False)


def ancestors_text(seen: Sequence[Seen]) -> dict[str, str]:
    """Return the artifact that keeps whom the sources of a new run, and theirs, have seen; none without sources."""
    return {} if not seen else {ANCESTORS: json.dumps([asdict(one) for one in seen])}


@dataclass(frozen=True)
class Exposure:
    """What is known about held-out cases and whom sources have seen.

    Attributes:
        leaks: Held-out cases that were used.
        seen: Whom the network and its sources have seen.
        cohort: Name of the cohort of the cases.
    """

    leaks: Sequence[Leak]
    seen: Sequence[Seen]
    cohort: str

    @property
    def trained_on(self) -> list[Leak]:
        """Return what makes scores worthless."""
        return [leak for leak in self.leaks if leak.split == "training" and leak.reason in _REASONS]

    @property
    def unknown(self) -> list[str]:
        """Return a sentence for each network of which it cannot be known."""
        return [cannot_tell(one.name) for one in self.seen if not one.known]


def find_leaks(store: RunReader, run: RunInfo, *, cohort: Cohort, cases: Sequence[Case]) -> Exposure:
    """Return which cases a run or its ancestors have seen.

    Args:
        store: Where the runs are kept.
        run: The run whose network is used.
        cohort: The cohort of the cases.
        cases: Held-out cases.
    """
    return compare(seen_by(store, run), cohort=cohort, cases=cases)


def compare(seen: Sequence[Seen], *, cohort: Cohort, cases: Sequence[Case]) -> Exposure:
    """Return which held-out cases of a cohort networks have seen."""
    held_out = {case.name: case_identity(cohort.name, case) for case in cases}
    leaks = [
        leak
        for one in seen
        for split, known in (("training", one.training), ("validation", one.validation))
        for leak in _shared(held_out, known, one, split)
    ]
    if any(leak.reason == "subject" for leak in leaks) and not _same_study(cohort, seen):
        leaks = [replace(leak, reason="name") if leak.reason == "subject" else leak for leak in leaks]
    return Exposure(leaks, seen, cohort.name)


def _same_study(cohort: Cohort, seen: Sequence[Seen]) -> bool:
    """Tell whether any scan of a whole cohort was used by networks: else it only has the name of theirs."""
    cases = cohort.cases
    if cohort.manifest is not None:
        # Not of a list of images; what is held out of it is there.
        with suppress(CohortError):
            cases = read_manifest(cohort.manifest).cases
    there = [path for case in cases for path in case.channels.values() if path is not None and path.is_file()]
    scans = {scan for one in seen for entry in (*one.training, *one.validation) for scan in entry["scans"]}
    return not scans.isdisjoint(files_sha256(there).values())


def cannot_tell(network: str) -> str:
    """Say that a network does not tell whom it has seen."""
    return f"Not known: which subjects {network} was trained on. Whether held-out ones are among them was not checked."


def _shared(
    held_out: Mapping[str, Mapping[str, Any]], known: Sequence[Mapping[str, Any]], seen: Seen, split: str
) -> Iterator[Leak]:
    # Runs of earlier versions know neither voxels nor landmarks.
    used = {key: {value for entry in known for value in entry.get(key, ())} for key in ("scans", "voxels", "landmarks")}
    subjects = {entry["subject"] for entry in known}
    scans = [(name, text) for name, entry in held_out.items() for text in entry["landmarks"]]
    alike = likeness(scans, used["landmarks"])
    for name, entry in held_out.items():
        reason: Reason | None = None
        if not used["scans"].isdisjoint(entry["scans"]):
            reason = "scan"
        elif not used["voxels"].isdisjoint(entry["voxels"]):
            reason = "voxels"
        elif alike.get(name) == "likely":
            reason = "likely"
        elif entry["subject"] in subjects:
            reason = "subject"
        elif name in alike:
            reason = "possible"
        if reason is not None:
            yield Leak(name, seen, split, reason)


def require_no_leak(exposure: Exposure, *, allowed: bool) -> tuple[list[str], dict[str, str]]:
    """Return sentences of warning, also of what is not known, and tags for the run.

    Raises:
        CohortError: A held-out case was trained on and that is not allowed.
    """
    trained = exposure.trained_on
    notes = []
    if trained:
        sentence = f"{len(trained)} held-out cases were in the training of the network or of its sources: "
        sentence += _listed(trained)
        if not allowed:
            raise CohortError(
                f"{sentence}. Their scores would say nothing. Choose other cases, or --allow-leak to go on with a tag."
            )
        notes.append(f"{sentence}. --allow-leak was given.")
    notes += _doubts(exposure)
    validated = sum(leak.split == "validation" and leak.reason in _REASONS for leak in exposure.leaks)
    if validated:
        notes.append(f"{validated} held-out cases were validation cases of the network or its sources.")
    notes += exposure.unknown
    if not trained:
        return notes, {}
    counts = Counter[str](leak.reason for leak in trained)
    how = ", ".join(f"{counts[reason]} {said}" for reason, said in _REASONS.items() if counts[reason])
    return notes, {"dmx.leak": str(len(trained)), "dmx.leak_reasons": how}


def _listed(leaks: Sequence[Leak]) -> str:
    shown = ", ".join(f"{leak.case} ({_REASONS[leak.reason]} in {leak.seen.name})" for leak in leaks[:_SHOWN])
    return shown + (f" and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else "")


def _doubts(exposure: Exposure) -> Iterator[str]:
    """Yield what may be a leak and may be none."""
    trained = [leak for leak in exposure.leaks if leak.split == "training"]
    for reason, count_of in (("name", "subject"), ("possible", "scan")):
        found = [leak for leak in trained if leak.reason == reason]
        if not found:
            continue
        cases = ", ".join(dict.fromkeys(leak.case for leak in found[:_SHOWN]))
        runs = ", ".join(dict.fromkeys(leak.seen.name for leak in found))
        if reason == "name":
            yield (
                f"{len(found)} held-out cases have the name of a {count_of} that {runs} was trained on, in a cohort "
                f"that is called '{exposure.cohort}', too, but no scan is in both: {cases}. They count as other "
                "people. If they are, give this cohort a name of its own ('dmx cohort import … --name NAME'); if not, "
                "leave them out."
            )
        else:
            yield (
                f"{len(found)} held-out cases look somewhat like a {count_of} that {runs} was trained on: {cases}. "
                "If it is the same scan, cropped or resampled, their scores say nothing: compare the two."
            )


def read_identity(store: RunReader, run: RunInfo) -> dict[str, Any] | None:
    """Return whom a run has seen; ``None`` where it does not say."""
    try:
        known: dict[str, Any] = json.loads(read_text(store, run.id, IDENTITY) or "")
    except ValueError:
        return None
    return known
