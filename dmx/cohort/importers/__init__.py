"""Cohorts that other tools describe, turned into ours."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dmx.cohort.importers.dataset_json import import_dataset_json
from dmx.cohort.importers.deepmedic import import_deepmedic
from dmx.cohort.importers.imported import Imported, is_companion, with_subjects
from dmx.cohort.importers.pattern import Patterns, import_by_pattern
from dmx.cohort.label_values import with_label_values
from dmx.cohort.manifest import case_problem, check_classes, name_problem
from dmx.errors import CohortError


def import_cohort(  # noqa: PLR0913 - each source takes some of them
    source: Path,
    *,
    patterns: Patterns,
    split_dir: Path,
    classes: Sequence[str] = (),
    channels: Sequence[str] = (),
    labels: Sequence[str] = (),
    name: str | None = None,
    subject: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Read a cohort from whatever describes it.

    Args:
        source: ``dataset.json`` or its folder, DeepMedic's ``.cfg`` file, table or folder, or with patterns any folder.
        patterns: Patterns of the files; without any, the source's own description counts.
        split_dir: Folder for the channels of 4D scans.
        classes: Names of the classes; those of the source by default.
        channels: Names of the channels of a dataset.json; its own by default.
        labels: Which class each value in the label maps is, ``VALUE=CLASS``; a value is the class's index by default.
        name: Name of the cohort; that of the source by default.
        subject: Regular expression that finds the subject in a case's name; each case is a subject by default.
        progress: Told how many of how many cases are done.

    Raises:
        CohortError: The source cannot be used.
    """
    if channels and (patterns.columns() or not _has_dataset_json(source)):
        raise CohortError("--channel-names is for a dataset.json; elsewhere --channel NAME=PATTERN names a channel.")
    if patterns.columns():
        imported = import_by_pattern(source, patterns)
    elif _has_dataset_json(source):
        imported = import_dataset_json(
            source, split_dir=split_dir, classes=classes, channels=channels, progress=progress
        )
    elif source.suffix in (".cfg", ".csv") or (
        source.is_dir() and any(not is_companion(file) for file in source.rglob("*.cfg"))
    ):
        imported = import_deepmedic(source)
    else:
        raise CohortError(
            f"'{source}' must be or hold a dataset.json or DeepMedic's .cfg files; for any other folder name patterns "
            "with --channel."
        )
    cohort = replace(imported.cohort, name=name or imported.cohort.name)
    if classes:
        cohort = replace(cohort, classes=check_classes(classes, "The option for classes"))
    if labels:
        cohort = with_label_values(cohort, labels, owner="--labels")
    cohort = with_subjects(cohort, subject) if subject else cohort
    _check_names(cohort.channels, [case.name for case in cohort.cases])
    return replace(imported, cohort=cohort)


def _has_dataset_json(source: Path) -> bool:
    return source.suffix == ".json" or (source / "dataset.json").is_file()


def _check_names(channels: Sequence[str], cases: Sequence[str]) -> None:
    for channel in channels:
        if problem := name_problem(channel):
            raise CohortError(f"A channel's name {problem}.")
    counts = Counter(cases)
    for case, count in counts.items():
        if problem := case_problem(case):
            raise CohortError(f"A case's name {problem}.")
        if count > 1:
            raise CohortError(f"Two cases have the name '{case}'; mark what tells them apart, such as the session.")
