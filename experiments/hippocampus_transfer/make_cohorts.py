"""Divide the 208 cases of the hippocampus cohort: 150 for the source, 5 for each of three targets, 43 held out.

The held-out cases are the same for all targets and are in nobody's training.

Usage: python make_cohorts.py cohort.csv
"""

import random
import sys
from dataclasses import replace
from pathlib import Path

from dmx.cohort.case import Case, Cohort
from dmx.cohort.manifest import read_manifest, write_manifest

SOURCE_CASES = 150
TARGET_CASES = 5
TARGETS = 3


def with_splits(cohort: Cohort, training: list[Case], evaluation: list[Case]) -> Cohort:
    """Return a cohort of these cases only."""
    cases = [replace(case, split="training") for case in training]
    cases += [replace(case, split="evaluation") for case in evaluation]
    return replace(cohort, cases=tuple(sorted(cases, key=lambda case: case.name)))


def main() -> None:
    """Write source.csv and target_1.csv to target_3.csv beside the manifest."""
    manifest = Path(sys.argv[1])
    cohort = read_manifest(manifest)
    cases = sorted(cohort.cases, key=lambda case: case.name)
    random.Random(0).shuffle(cases)
    rest = cases[SOURCE_CASES:]
    held_out = rest[TARGETS * TARGET_CASES :]
    write_manifest(with_splits(cohort, cases[:SOURCE_CASES], []), manifest.with_name("source.csv"))
    for number in range(TARGETS):
        few = rest[number * TARGET_CASES : (number + 1) * TARGET_CASES]
        write_manifest(with_splits(cohort, few, held_out), manifest.with_name(f"target_{number + 1}.csv"))
    print(f"source.csv: {SOURCE_CASES} cases; target_1.csv to target_{TARGETS}.csv: {TARGET_CASES} cases each, and ")
    print(f"{len(held_out)} held out.")


if __name__ == "__main__":
    main()
