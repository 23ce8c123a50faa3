"""The check of a cohort: every finding at once, before anybody waits for a training."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dmx.cohort.case import Case, Cohort
from dmx.cohort.facts import FileFacts, Kind, file_facts
from dmx.cohort.findings import Expected, Finding, case_findings
from dmx.cohort.fingerprint import Likeness, likeness
from dmx.errors import suggest

__all__ = ["CheckReport", "Finding", "check_cohort"]

# More readers than this gain nothing and hold that many scans in memory.
_THREADS = 4


@dataclass(frozen=True)
class CheckReport:
    """All findings about a cohort.

    Attributes:
        cohort: Name of the cohort.
        num_cases: Cases that were checked.
        num_files: Files that were checked.
        findings: In the order of the manifest; what concerns several cases comes last.
        sha256: What each file held then; empty for one that could not be read.
        label_counts: Voxels of each value in the label maps of cases for training, or of all where none is.
    """

    cohort: str
    num_cases: int
    num_files: int
    findings: tuple[Finding, ...]
    sha256: Mapping[Path, str]
    label_counts: Mapping[int, int] = field(default_factory=dict, kw_only=True)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that keep a training from starting."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that do not."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        numbers = {"cohort": self.cohort, "num_cases": self.num_cases, "num_files": self.num_files}
        return numbers | {
            "findings": [asdict(finding) for finding in self.findings],
            "num_errors": len(self.errors),
            "num_warnings": len(self.warnings),
        }


def check_cohort(  # noqa: PLR0913 - what an experiment can take for granted, each by its name
    cohort: Cohort,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | Mapping[str, Sequence[int]] = (),
    fill: Collection[str] = (),
    labels: Mapping[int, int] | None = None,
    complete: bool = False,
    channels: Sequence[str] | None = None,
    ignore: int | None = None,
    cache_dir: Path | None = None,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every file of a cohort and report all that is wrong; a bad file is a finding, not an exception.

    Args:
        cohort: The cohort.
        num_classes: Labels must lie below it; the number of the classes by default.
        classes: Names of the classes, or region → its classes; those of the cohort by default.
        fill: Channels that a case may lack, because the experiment says how they are filled.
        labels: Class of each label in the files, for labels that are merged or dropped; those of the manifest's note
            ``# label_values:`` by default.
        complete: With `labels`: no other label is allowed; otherwise they stay as they are.
        channels: Channels that are used; all by default. Files of others are not read.
        ignore: Label of voxels that nobody annotated, unless `labels` makes it a class; that of the cohort by default.
        cache_dir: Folder in which facts about files are kept by content; the user's cache by default.
        fresh: Hash every file anew, whatever is remembered of it.
        progress: Told how many of how many files are done.
    """
    used = tuple(channels) if channels else cohort.channels
    sets = _sets(classes or cohort.regions.mapped(cohort.label_values).members or cohort.classes)
    ignored = cohort.ignore if ignore is None else ignore
    expected = Expected(
        channels=used,
        fill=frozenset(fill),
        num_classes=num_classes if num_classes is not None else len(classes) or cohort.num_labels,
        labels=cohort.label_values if labels is None else labels,
        complete=bool(cohort.label_values) if labels is None else complete,
        ignore=None if ignored in (labels or {}) else ignored,
    )
    cases = [replace(case, channels={name: case.channels.get(name) for name in used}) for case in cohort.cases]
    facts = _all_facts(cases, cache_dir, progress, fresh=fresh)
    by_case = {
        case.name: {column: facts[path, _kind(column)] for column, path in case.files().items()} for case in cases
    }
    findings = [
        *_unknown_channels(cohort, used),
        *(finding for case in cases for finding in case_findings(case, by_case[case.name], expected)),
        *_absent_classes(cases, by_case, sets, expected),
        *_subjects_in_two_splits(cases),
        *_duplicates(cases, by_case),
        *_alike_in_two_splits(cases, by_case),
    ]
    digests = {path: fact.sha256 for (path, _), fact in facts.items()}
    label_maps = [facts[path, "labels"] for path in _learned_label_maps(cases)]
    return CheckReport(
        cohort.name, len(cases), len(digests), tuple(findings), digests, label_counts=_label_counts(label_maps)
    )


def _learned_label_maps(cases: Sequence[Case]) -> list[Path]:
    """Return the label maps that are learned from; all where no case is for training."""
    learned = [case for case in cases if case.split == "training"] or cases
    return [case.label_map for case in learned if case.label_map is not None]


def _label_counts(facts: Sequence[FileFacts]) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for fact in facts:
        if fact.whole:
            counts.update({int(value): count for value, count in fact.counts})
    return dict(sorted(counts.items()))


def _kind(column: str) -> Kind:
    return "labels" if column in ("label_map", "roi") else "intensities"


def _all_facts(
    cases: Sequence[Case], cache_dir: Path | None, progress: Callable[[int, int], None] | None, *, fresh: bool
) -> dict[tuple[Path, Kind], FileFacts]:
    wanted = list(dict.fromkeys((path, _kind(column)) for case in cases for column, path in case.files().items()))
    facts = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        tasks = {
            pool.submit(file_facts, path, kind, cache_dir=cache_dir, fresh=fresh): (path, kind) for path, kind in wanted
        }
        for done, task in enumerate(as_completed(tasks), start=1):
            facts[tasks[task]] = task.result()
            if progress is not None:
                progress(done, len(wanted))
    return facts


def _unknown_channels(cohort: Cohort, used: Sequence[str]) -> Iterator[Finding]:
    for channel in used:
        if channel not in cohort.channels:
            near = suggest(channel, cohort.channels)
            message = f"is not in the cohort, which has {', '.join(cohort.channels)}.{near}"
            yield Finding("error", "", f"channel_{channel}", message)


def _sets(classes: Sequence[str] | Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """Return the class indices of each region, or of each class but the background."""
    if isinstance(classes, Mapping):
        return classes
    return {name: (index,) for index, name in enumerate(classes) if index}


def _absent_classes(
    cases: Sequence[Case],
    facts: Mapping[str, Mapping[str, FileFacts]],
    sets: Mapping[str, Sequence[int]],
    expected: Expected,
) -> Iterator[Finding]:
    """Yield classes or regions that no label map for training holds; without splits every label map counts."""
    where = " for training" if any(case.split == "training" for case in cases) else ""
    learned = [case for case in cases if case.split == "training"] or [case for case in cases if not case.split]
    found = {
        expected.labels.get(int(value), -1 if expected.complete else int(value))
        for case in learned
        if case.label_map is not None
        for value, count in facts[case.name]["label_map"].counts
        if count and value % 1 == 0
    }
    # Without a single readable label map something else is wrong, and is said.
    for name, indices in sets.items() if found else ():
        if found.isdisjoint(indices):
            consequence = ", so it cannot be learned" if where else ""
            message = f"No label map{where} holds class '{name}' ({', '.join(map(str, indices))}){consequence}."
            yield Finding("warning", "", "label_map", message)


def _subjects_in_two_splits(cases: Sequence[Case]) -> Iterator[Finding]:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        if case.split:
            found[case.subject].setdefault(case.split, case.name)
    for subject, splits in found.items():
        if len(splits) > 1:
            where = ", ".join(f"{split} ({case})" for split, case in splits.items())
            message = f"subject '{subject}' is in several splits: {where}; 'dmx cohort split' keeps subjects together."
            yield Finding("error", "", "split", message)


def _duplicates(cases: Sequence[Case], facts: Mapping[str, Mapping[str, FileFacts]]) -> Iterator[Finding]:
    """Yield scans that come twice, and label maps that do and hold more than one value.

    Cases may share a roi or a weight map, and empty label maps of one shape are equal.
    """
    places: dict[str, list[tuple[Case, str]]] = defaultdict(list)
    for case in cases:
        for column, fact in facts[case.name].items():
            if fact.sha256 and (column.startswith("channel_") or (column == "label_map" and len(fact.counts) > 1)):
                places[fact.sha256].append((case, column))
    for same in places.values():
        first, column = same[0]
        for other, other_column in same[1:]:
            message = f"is the same file as {column} of case '{first.name}'"
            if other.name == first.name:
                message = f"is the same file as {column} of this case"
            leak = other.split != first.split and bool(first.split and other.split)
            severity: Literal["error", "warning"] = "error" if leak and column.startswith("channel_") else "warning"
            yield Finding(severity, other.name, other_column, message + (", in another split." if leak else "."))


def _alike_in_two_splits(cases: Sequence[Case], facts: Mapping[str, Mapping[str, FileFacts]]) -> Iterator[Finding]:
    """Yield held-out scans that are learned from under another name: saved anew, flipped, cropped or resampled."""
    scans = [
        (case, column, fact)
        for case in cases
        for column, fact in facts[case.name].items()
        if case.split and column.startswith("channel_")
    ]
    learned = [scan for scan in scans if scan[0].split == "training"]
    by_voxels = {fact.voxels: (case, column, fact) for case, column, fact in learned if fact.voxels}
    for case, column, fact in scans:
        same = by_voxels.get(fact.voxels)
        if case.split != "training" and same is not None and same[2].sha256 != fact.sha256:
            message = f"holds the same voxels as {same[1]} of case '{same[0].name}', in another split."
            yield Finding("error", case.name, column, message)
    held_out = [scan for scan in scans if scan[0].split != "training" and scan[2].voxels not in by_voxels]
    for column in dict.fromkeys(column for _, column, _ in held_out):
        mine = {case.name: fact.landmarks for case, at, fact in held_out if at == column and fact.landmarks}
        for other, at, fact in learned if mine else ():
            if at == column and fact.landmarks:
                for name, sure in likeness(mine.items(), [fact.landmarks]).items():
                    message = f"is {_SURE[sure]} the same scan as that of case '{other.name}', in another split: "
                    yield Finding("warning", name, column, message + "flipped, cropped or resampled. Compare the two.")


_SURE: Mapping[Likeness, str] = {"likely": "probably", "possible": "perhaps"}
