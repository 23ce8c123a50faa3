"""The check of images: every finding at once, with file and row, and what there is of each class."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from dmx.cohort.cache import FactStore, default_cache_dir
from dmx.cohort.check import CheckReport
from dmx.cohort.digest import file_sha256
from dmx.cohort.findings import Finding
from dmx.cohort.gather import joined
from dmx.cohort.image import image_kind
from dmx.cohort.stimuli import Stimulus, StimulusSet
from dmx.errors import CohortError

# Another version of what is measured does not meet the old one's facts.
_VERSION = 2
_THREADS = 4
_TIMES = ("onset", "duration")


@dataclass(frozen=True)
class ImageFacts:
    """One image file, measured.

    Attributes:
        sha256: Hash of its content, empty where it cannot be read.
        error: Why it cannot be used; then nothing below says anything.
        size: Height and width in pixels.
        mode: How the file keeps a pixel: ``L`` gray, ``RGB``, …
        pixels: Hash of what is seen, however it is saved, flipped or turned by a quarter.
    """

    sha256: str = ""
    error: str = ""
    size: tuple[int, ...] = ()
    mode: str = ""
    pixels: str = ""


@dataclass(frozen=True)
class NumberFacts:
    """One column of numbers.

    Attributes:
        low: Smallest number.
        high: Largest number.
        missing: Stimuli without a number.
    """

    low: float
    high: float
    missing: int


@dataclass(frozen=True)
class ImageReport(CheckReport):
    """All findings about images, and what they are.

    Attributes:
        counts: Split → class → stimuli; without splits or classes the name is empty.
        sizes: Height and width → files.
        modes: How a file keeps a pixel → files.
        numbers: Column → its numbers.
    """

    counts: Mapping[str, Mapping[str, int]]
    sizes: Mapping[tuple[int, ...], int]
    modes: Mapping[str, int]
    numbers: Mapping[str, NumberFacts]


@dataclass(frozen=True)
class _Row:
    """A stimulus with the place and the split that it is told by."""

    stimulus: Stimulus
    split: str
    name: str
    place: str
    facts: ImageFacts


def check_images(
    stimuli: StimulusSet,
    others: Mapping[str, StimulusSet] | None = None,
    *,
    cache_dir: Path | None = None,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImageReport:
    """Read every image and report all that is wrong; a bad file is a finding, not an exception.

    Args:
        stimuli: Images that are learned from, or of all splits.
        others: Split → images of it that another file lists.
        cache_dir: Folder in which facts about files are kept by content; the user's cache by default.
        fresh: Hash every file anew, whatever is remembered of it.
        progress: Told how many of how many files are done.
    """
    more = dict(others or {})
    sets = {"": stimuli, **more}
    paths = list(dict.fromkeys(one.path for each in sets.values() for one in each.stimuli))
    facts = _all_facts(paths, cache_dir, progress, fresh=fresh)
    rows = [
        _row(one, split or one.split or ("training" if more else ""), each, facts)
        for split, each in sets.items()
        for one in each.stimuli
    ]
    classes, findings = _joined_classes(stimuli, more)
    findings += [
        *_broken(rows),
        *_without_label(rows, classes),
        *_without_images(rows, classes),
        *_in_two_splits(rows),
        *_same_content(rows),
    ]
    good = [fact for fact in facts.values() if not fact.error]
    return ImageReport(
        stimuli.name,
        len(rows),
        len(paths),
        tuple(findings),
        {path: fact.sha256 for path, fact in facts.items()},
        counts=_counts(rows, classes),
        sizes=Counter(fact.size for fact in good),
        modes=Counter(fact.mode for fact in good),
        numbers=_numbers(rows),
    )


def _all_facts(
    paths: Sequence[Path], cache_dir: Path | None, progress: Callable[[int, int], None] | None, *, fresh: bool
) -> dict[Path, ImageFacts]:
    facts = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        tasks = {pool.submit(picture_facts, path, cache_dir, fresh=fresh): path for path in paths}
        for done, task in enumerate(as_completed(tasks), start=1):
            facts[tasks[task]] = task.result()
            if progress is not None:
                progress(done, len(paths))
    return facts


def picture_facts(path: Path, cache_dir: Path | None = None, *, fresh: bool = False) -> ImageFacts:
    """Measure an image, or recall what was measured; one that cannot be used is a fact, not an exception."""
    store = _store(cache_dir or default_cache_dir())
    digest = ""
    try:
        digest = file_sha256(path, cache_dir=cache_dir, fresh=fresh)
        if (known := store.get(digest)) is not None:
            return ImageFacts(**{**known, "size": tuple(known["size"])})
        kind = image_kind(path)
    except CohortError as error:
        return ImageFacts(sha256=digest, error=str(error))
    facts = ImageFacts(sha256=digest, size=kind.size, mode=kind.mode, pixels=kind.pixels)
    store.put(digest, asdict(facts))
    return facts


@cache
def _store(folder: Path) -> FactStore:
    return FactStore(folder / f"image_facts_v{_VERSION}.jsonl")


def _row(stimulus: Stimulus, split: str, owner: StimulusSet, facts: Mapping[Path, ImageFacts]) -> _Row:
    label = owner.class_of_label.get(stimulus.label) if stimulus.label is not None else None
    name = "" if label is None else owner.classes[label]
    file = "" if owner.file is None or not stimulus.row else f"{owner.file.name} row {stimulus.row}"
    return _Row(stimulus, split, name, file, facts[stimulus.path])


def _joined_classes(stimuli: StimulusSet, others: Mapping[str, StimulusSet]) -> tuple[tuple[str, ...], list[Finding]]:
    """Return the classes, and where another file does not speak of them."""
    findings = []
    for other in others.values():
        try:
            joined(stimuli, other)
        except CohortError as error:
            findings.append(Finding("error", "", "label", str(error)))
    return stimuli.classes, findings


def _broken(rows: Sequence[_Row]) -> Iterator[Finding]:
    for row in rows:
        if row.facts.error:
            path = row.stimulus.path
            message = row.facts.error.removeprefix("Image ").removeprefix(f"'{path}' ")
            yield Finding("error", row.stimulus.id, row.place, message)


def _without_label(rows: Sequence[_Row], classes: Sequence[str]) -> Iterator[Finding]:
    for row in rows:
        if classes and row.stimulus.label is None:
            yield Finding("warning", row.stimulus.id, row.place, "has no label.")


def _without_images(rows: Sequence[_Row], classes: Sequence[str]) -> Iterator[Finding]:
    """Yield classes that a split lacks: what is not learned from cannot be predicted."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        found[row.split].add(row.name)
    for split, names in found.items():
        for name in classes:
            if name not in names:
                severity: Literal["error", "warning"] = "error" if split in ("training", "") else "warning"
                where = f"in {split}" if split else "here"
                yield Finding(severity, "", "label", f"Class '{name}' has no images {where}.")


def _in_two_splits(rows: Sequence[_Row]) -> Iterator[Finding]:
    groups: dict[str, dict[str, _Row]] = defaultdict(dict)
    for row in rows:
        if row.stimulus.group and row.split:
            groups[row.stimulus.group].setdefault(row.split, row)
    for group, splits in groups.items():
        if len(splits) > 1:
            where = ", ".join(f"{split} ({row.stimulus.id})" for split, row in splits.items())
            yield Finding("error", "", "split", f"group '{group}' is in several splits: {where}.")


def _same_content(rows: Sequence[_Row]) -> Iterator[Finding]:
    """Yield files that hold the same picture; a file that comes several times in one split is a repetition."""
    places: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        if row.facts.sha256:
            places[row.facts.pixels or row.facts.sha256].append(row)
    for first, *same in places.values():
        told = {(first.stimulus.path, first.split)}
        for row in same:
            key = (row.stimulus.path, row.split)
            label = row.name != first.name
            if key in told and not label:
                continue
            told.add(key)
            leak = row.split != first.split
            anew = "" if row.facts.sha256 == first.facts.sha256 else ", saved anew, flipped or turned"
            message = f"holds the same picture as '{first.stimulus.id}'{anew}"
            message += f", which is of class '{first.name or 'none'}'" if label else ""
            message += f", in {first.split}" if leak and first.split else ""
            yield Finding("error" if leak else "warning", row.stimulus.id, row.place, f"{message}.")


def _counts(rows: Sequence[_Row], classes: Sequence[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        found = counts.setdefault(row.split, dict.fromkeys(classes, 0))
        found[row.name] = found.get(row.name, 0) + 1
    return counts


def _numbers(rows: Sequence[_Row]) -> dict[str, NumberFacts]:
    names = dict.fromkeys(name for row in rows for name in row.stimulus.values if name not in _TIMES)
    facts = {}
    for name in names:
        values = [row.stimulus.values.get(name, math.nan) for row in rows]
        known = [value for value in values if not math.isnan(value)]
        if known:
            facts[name] = NumberFacts(min(known), max(known), len(values) - len(known))
    return facts
