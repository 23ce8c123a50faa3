"""From the section of an experiment to one set of stimuli with splits."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dmx.cohort.digest import files_sha256
from dmx.cohort.image_folder import read_image_folder
from dmx.cohort.image_table import PATH, read_image_table
from dmx.cohort.manifest import name_problem
from dmx.cohort.splits import k_fold, split_by_subject
from dmx.cohort.stim_csv import SUFFIX, read_stim_csv
from dmx.cohort.stimuli import Stimulus, StimulusSet, where
from dmx.cohort.text import read_text
from dmx.config.images import StimuliSection
from dmx.errors import CohortError, suggest

_DIGEST_LENGTH = 32


def read_stimuli(source: str | Path, *, classes: Sequence[str] = (), require_files: bool = True) -> StimulusSet:
    """Read a ``.stim.csv``, a table ``.csv`` or a folder with a folder per class.

    Args:
        source: File or folder.
        classes: Names of the classes in the order of the network's outputs; empty: as the source says.
        require_files: Whether the images that a file names must be there.

    Raises:
        CohortError: The source cannot be used; the message names file and row.
    """
    source = Path(source)
    if source.is_dir():
        return read_image_folder(source, classes=classes)
    if source.name.endswith(SUFFIX):
        return _with_classes(read_stim_csv(source, require_files=require_files), classes)
    if source.suffix.lower() == ".csv":
        return read_image_table(source, classes=classes, require_files=require_files)
    if not source.exists():
        raise CohortError(f"There are no stimuli '{source}'.")
    raise CohortError(f"Stimuli must be a file that ends in {SUFFIX} or .csv, or a folder, got '{source}'.")


def lists_images(source: Path) -> bool:
    """Return whether a source is of images: a folder, a ``.stim.csv``, or a table with a column ``path``."""
    if source.is_dir() or source.name.endswith(SUFFIX):
        return True
    if source.suffix.lower() != ".csv" or not source.is_file():
        return False
    header = next((line for line in read_text(source, "Table").splitlines() if not line.startswith("#")), "")
    return PATH in [cell.strip().strip('"') for cell in header.split(",")]


def gather_stimuli(section: StimuliSection, *, seed: int) -> StimulusSet:
    """Return the stimuli of an experiment with a split for each.

    Args:
        section: Where they are; its paths are absolute or start at the working directory.
        seed: Seed of the experiment, for fractions and folds.

    Raises:
        CohortError: A source cannot be used, the sources disagree about the classes, or a group or an image lies in two
            splits.
    """
    first = read_stimuli(section.source, classes=section.classes)
    if any(stimulus.split for stimulus in first.stimuli):
        gathered = first
    else:
        gathered = replace(first, stimuli=tuple(replace(s, split="training") for s in first.stimuli))
    if section.fractions:
        gathered = split_by_subject(gathered, fractions=section.fractions, seed=seed)
    for split in ("validation", "evaluation"):
        if (source := getattr(section, split)) is not None:
            if gathered.in_split(split):
                raise CohortError(f"'{section.source}' has stimuli of {split} already, beside those of '{source}'.")
            # A folder for scoring may lack a class; it is joined by name.
            classes = () if Path(source).is_dir() else section.classes
            more = joined(first, read_stimuli(source, classes=classes))
            gathered = replace(gathered, stimuli=(*gathered.stimuli, *(replace(s, split=split) for s in more)))
    if section.fold is not None:
        gathered = k_fold(gathered, fold=section.fold, folds=section.folds, seed=seed)
    require_separate(gathered.stimuli)
    return gathered


def require_separate(stimuli: Sequence[Stimulus]) -> None:
    """Require that no group and no image lies in two splits.

    Raises:
        CohortError: One does.
    """
    seen: dict[str, Stimulus] = {}
    for stimulus in stimuli:
        keys = {f"image '{stimulus.path}'", *((f"group '{stimulus.group}'",) if stimulus.group else ())}
        for key in keys:
            other = seen.setdefault(key, stimulus)
            if other.split != stimulus.split:
                raise CohortError(
                    f"{where(stimulus)}its {key} is for {stimulus.split or 'no split'}, and elsewhere for "
                    f"{other.split or 'no split'}. What is learned from must not be scored: give it one split."
                )


def stimuli_digest(stimuli: StimulusSet, *, cache_dir: Path | None = None) -> str:
    """Return a digest of 32 characters of what the stimuli are: images by content, labels, values, groups, splits.

    Neither the order of the rows nor the place of the files matters.

    Raises:
        CohortError: An image cannot be read.
    """
    hashes = files_sha256((stimulus.path for stimulus in stimuli.stimuli), cache_dir=cache_dir)
    class_of = stimuli.class_of_label
    rows = sorted(
        json.dumps(
            [
                hashes[s.path],
                None if s.label is None else class_of.get(s.label),
                sorted((name, repr(value)) for name, value in s.values.items()),
                [s.group, s.split, s.condition],
            ]
        )
        for s in stimuli.stimuli
    )
    content = json.dumps([list(stimuli.classes), rows])
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_LENGTH]


def _with_classes(stimuli: StimulusSet, classes: Sequence[str]) -> StimulusSet:
    """Return a set whose labels are indices of given classes."""
    if not classes:
        return stimuli
    for name in classes:
        if problem := name_problem(name):
            raise CohortError(f"The name of a class {problem}.")
    for stimulus in stimuli.stimuli:
        if stimulus.label is not None and not 0 <= stimulus.label < len(classes):
            raise CohortError(
                f"{where(stimulus)}has the label {stimulus.label}, which must be between 0 and {len(classes) - 1}, the "
                f"index of one of the classes {', '.join(classes)}."
            )
    return replace(stimuli, classes=tuple(classes), labels=tuple(range(len(classes))))


def joined(first: StimulusSet, other: StimulusSet) -> tuple[Stimulus, ...]:
    """Return the other set's stimuli with the labels of the first.

    Two ``.stim.csv`` speak of the same classes by the same labels, all others by the same names.

    Raises:
        CohortError: The sets do not speak of the same classes.
    """
    if bool(first.header) != bool(other.header):
        raise CohortError(
            f"'{first.file}' and '{other.file}' must both be {SUFFIX}, or neither: only there labels are integers that "
            "stand for themselves."
        )
    names = dict(zip(other.labels, other.classes, strict=True))
    by_name = dict(zip(first.classes, first.labels, strict=True))
    if first.header:
        new = {label: label for label in first.labels}
    else:
        new = {label: by_name[name] for label, name in names.items() if name in by_name}
    joined = []
    for stimulus in other.stimuli:
        label = stimulus.label
        if label is not None and label not in new:
            raise CohortError(
                f"{where(stimulus)}its class '{names[label]}' (label {label}) is none of those of '{first.file}': "
                f"{', '.join(first.classes)}.{suggest(names[label], first.classes)}"
            )
        joined.append(stimulus if label is None else replace(stimulus, label=new[label]))
    return tuple(joined)
