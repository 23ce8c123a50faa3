"""Evaluations of several runs on the same cases, and how their scores differ per subject."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmx.evaluation.metrics import FOREGROUND
from dmx.evaluation.paired import PairedDifference, paired_difference
from dmx.tracking.files import read_text
from dmx.tracking.lineage import children
from dmx.tracking.store import RunInfo, RunReader

CASES = "evaluation/cases.csv"
_COMPARED = ("dice", "hd95_mm", "surface_dice", "accuracy", "squared_error")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a run's network on cases.

    Attributes:
        run: The run whose network was scored, or the evaluation itself where that was named.
        evaluation: The run that scored it.
        rows: Table of its cases, as text.
    """

    run: RunInfo
    evaluation: RunInfo
    rows: Sequence[Mapping[str, str]]

    def scores(self, metric: str) -> dict[str, float]:
        """Return case → score, of the cases that have one."""
        return {row["case"]: float(row[metric]) for row in self.rows if row.get(metric)}

    @property
    def subjects(self) -> dict[str, str]:
        """Return case → subject."""
        return {row["case"]: row["subject"] for row in self.rows}


@dataclass(frozen=True, kw_only=True)
class PairedScores:
    """Evaluations on the same cohort and split, each against the first one.

    Attributes:
        cohort: Name of the cohort.
        split: Its split.
        evaluations: At least two.
        differences: Metric → id of the run → its difference to the first one, where a case has both.
        unpaired: Number of cases that not all evaluations have.
        without: Runs that have no evaluation on this cohort and split.
    """

    cohort: str
    split: str
    evaluations: tuple[Evaluation, ...]
    differences: Mapping[str, Mapping[str, PairedDifference]]
    unpaired: int
    without: tuple[RunInfo, ...]


def paired_scores(store: RunReader, runs: Sequence[RunInfo], *, seed: int = 0) -> PairedScores | None:
    """Compare runs on the cohort and split on which most of them have been evaluated, the newest one first.

    An evaluation stands for itself; for any other run its newest evaluation on that cohort and split counts.

    Args:
        store: Where the runs are.
        runs: Two or more runs; the first that has an evaluation is what the others are compared with.
        seed: Seed of the intervals.

    Returns:
        The comparison; ``None`` where no two runs have been evaluated on the same cases.
    """
    found = [_evaluations(store, run) for run in runs]
    keys = {key: sum(key in entry for entry in found) for entry in found for key in entry}
    if max(keys.values(), default=0) < 2:
        return None
    key = max(keys, key=lambda key: (keys[key], max(entry[key].started for entry in found if key in entry)))
    chosen = [
        Evaluation(run=run, evaluation=entry[key], rows=_rows(store, entry[key]))
        for run, entry in zip(runs, found, strict=True)
        if key in entry
    ]
    used = tuple(evaluation for evaluation in chosen if evaluation.rows)
    if len(used) < 2:
        return None
    cases: list[set[str]] = [set(evaluation.subjects) for evaluation in used]
    return PairedScores(
        cohort=key[0],
        split=key[1],
        evaluations=used,
        differences={metric: _differences(used, metric, seed) for metric in _metrics(used)},
        unpaired=len(set[str]().union(*cases) - cases[0].intersection(*cases[1:])),
        without=tuple(run for run in runs if run not in [evaluation.run for evaluation in used]),
    )


def _evaluations(store: RunReader, run: RunInfo) -> dict[tuple[str, str], RunInfo]:
    """Return the newest evaluation of a run by cohort and split."""
    candidates = [run] if run.kind == "evaluate" else [c for c in children(store, run) if c.kind == "evaluate"]
    return {
        (info.params.get("cohort", ""), info.params.get("split", "")): info
        for info in reversed(candidates)
        if info.status == "FINISHED"
    }


def _differences(evaluations: Sequence[Evaluation], metric: str, seed: int) -> dict[str, PairedDifference]:
    first = evaluations[0]
    found = {
        other.run.id: paired_difference(first.scores(metric), other.scores(metric), first.subjects, seed=seed)
        for other in evaluations[1:]
    }
    return {run_id: difference for run_id, difference in found.items() if difference is not None}


def _rows(store: RunReader, run: RunInfo) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(read_text(store, run.id, CASES) or "")))


def _metrics(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the columns that all tables have and that are compared; the foreground only beside several classes."""
    common = [key for key in evaluations[0].rows[0] if all(key in other.rows[0] for other in evaluations)]
    wanted = [key for key in common if key.partition("/")[0] in _COMPARED]
    classes = {key.partition("/")[2] for key in wanted} - {FOREGROUND, "mean"}
    return [key for key in wanted if len(classes) > 1 or key.partition("/")[2] in classes]
