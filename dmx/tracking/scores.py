"""Evaluations of several runs on the same cases, and how their scores differ per subject."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dmx.evaluation.metrics import FOREGROUND, STATUSES, cases_with_value
from dmx.evaluation.paired import PairedDifference, paired_difference
from dmx.tracking.files import read_text
from dmx.tracking.lineage import children
from dmx.tracking.store import RunInfo, RunReader

CASES = "evaluation/cases.csv"
_DISTANCES = ("hd95_mm", "hd95_mm_penalized", "assd_mm", "assd_mm_penalized", "surface_dice")
_COMPARED = ("dice", *_DISTANCES, "accuracy", "squared_error")
_SHOWN_OF_DIGEST = 8


def cases_key(run: RunInfo) -> str:
    """Return what tells the cases of evaluations apart: the digest of what was scored.

    Where a store has kept none, cohort and split have to do.
    """
    return run.cohorts.get("evaluation") or f"{run.params.get('cohort', '')}\0{run.params.get('split', '')}"


def cases_words(run: RunInfo, *, digest: bool = False) -> str:
    """Return which cases were scored, as a person calls them, with their digest where others have the same name."""
    parts = [run.params.get("cohort", ""), run.params.get("split", "")]
    known = run.cohorts.get("evaluation", "")
    return ", ".join(part for part in (*parts, f"#{known[:_SHOWN_OF_DIGEST]}" if digest and known else "") if part)


def ambiguous_cases(runs: Sequence[RunInfo]) -> set[str]:
    """Return the words that evaluations of different cases have in common."""
    found: dict[str, set[str]] = {}
    for run in runs:
        found.setdefault(cases_words(run), set()).add(cases_key(run))
    return {words for words, keys in found.items() if len(keys) > 1}


def cases_behind(metrics: Mapping[str, float], key: str) -> int | None:
    """Return how many cases a mean of an evaluation is of; ``None`` where the run does not say.

    Args:
        metrics: Metrics of the run.
        key: The mean: ``evaluation/<metric>/<class>``.
    """
    _, _, rest = key.partition("/")
    metric, _, name = rest.partition("/")
    counts = {status: metrics.get(f"evaluation/{status}/{name}") for status in STATUSES}
    if metric in counts or not key.startswith("evaluation/"):
        return None
    known = {str(status): int(count) for status, count in counts.items() if count is not None}
    return cases_with_value(metric, known) if len(known) == len(counts) else None


def misses(metrics: Mapping[str, float]) -> str:
    """Return the number of cases of an evaluation, and what it has missed, in words; empty where it does not say.

    >>> misses({"evaluation/cases": 6.0, "evaluation/missed": 3.0, "evaluation/false_positive": 0.0})
    '6, 3 missed'
    """
    if "evaluation/cases" not in metrics:
        return ""
    counts = {"missed": "missed", "false_positive": "false positive"}
    found = [f"{n:.0f} {words}" for key, words in counts.items() if (n := metrics.get(f"evaluation/{key}", 0.0))]
    return ", ".join([f"{metrics['evaluation/cases']:.0f}", *found])


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

    def measures_as(self, other: "Evaluation", metric: str) -> bool:
        """Tell whether another evaluation has measured a metric in the same way."""
        kind = metric.partition("/")[0]
        if kind == "surface_dice":
            return self.surface == other.surface
        return kind not in _DISTANCES or self._made_of == other._made_of

    @property
    def surface(self) -> str:
        """Return what surfaces were made of, and the tolerance."""
        return f"{self._made_of}, {self.evaluation.params.get('tolerance_mm', '1.0')} mm"

    @property
    def _made_of(self) -> str:
        # Before a run kept it, surfaces were made of voxels.
        return self.evaluation.params.get("surface", "voxels")


@dataclass(frozen=True)
class LeftOut:
    """Cases of a comparison that have a score in one of two runs alone, as a class was missed.

    Attributes:
        first: Cases that only the first run has a score of.
        other: Cases that only the other one has.
    """

    first: int
    other: int


@dataclass(frozen=True, kw_only=True)
class PairedScores:
    """Evaluations of the same cases, each against the first one.

    Attributes:
        cohort: Name of the cohort.
        split: Its split.
        evaluations: At least two.
        differences: Metric → id of the run → its difference to the first one, where a case has both.
        unpaired: Number of cases that not all evaluations have.
        without: Runs that have no evaluation of these cases.
        left_out: Metric → id of the run → cases that one of the two has no score of, where there are any.
        otherwise: Ids of the runs that have measured distances in another way than the first one.
    """

    cohort: str
    split: str
    evaluations: tuple[Evaluation, ...]
    differences: Mapping[str, Mapping[str, PairedDifference]]
    unpaired: int
    without: tuple[RunInfo, ...]
    left_out: Mapping[str, Mapping[str, LeftOut]] = field(default_factory=dict)
    otherwise: tuple[str, ...] = ()


def paired_scores(store: RunReader, runs: Sequence[RunInfo], *, seed: int = 0) -> PairedScores | None:
    """Compare runs on the cases on which most of them have been evaluated, the newest evaluation first.

    An evaluation stands for itself; for any other run its newest evaluation of these cases counts. Cases are the same
    where the digest of names, subjects, splits and files is: cohorts of one name can be different ones.

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
    scored = used[0].evaluation.params
    return PairedScores(
        cohort=scored.get("cohort", ""),
        split=scored.get("split", ""),
        evaluations=used,
        differences={metric: _differences(used, metric, seed) for metric in _metrics(used)},
        left_out={metric: missing for metric in _metrics(used) if (missing := _left_out(used, metric))},
        otherwise=tuple(
            other.run.id for other in used[1:] if not all(used[0].measures_as(other, metric) for metric in _DISTANCES)
        ),
        unpaired=len(set[str]().union(*cases) - cases[0].intersection(*cases[1:])),
        without=tuple(run for run in runs if run not in [evaluation.run for evaluation in used]),
    )


def _evaluations(store: RunReader, run: RunInfo) -> dict[str, RunInfo]:
    """Return the newest evaluation of a run by the cases that were scored."""
    candidates = [run] if run.kind == "evaluate" else evaluations_of(store, run)
    return {cases_key(info): info for info in reversed(candidates) if info.status == "FINISHED"}


def evaluations_of(store: RunReader, run: RunInfo) -> list[RunInfo]:
    """Return the evaluations of a run's network, newest first."""
    return [child for child in children(store, run) if child.kind == "evaluate"]


def _differences(evaluations: Sequence[Evaluation], metric: str, seed: int) -> dict[str, PairedDifference]:
    first = evaluations[0]
    found = {
        other.run.id: paired_difference(first.scores(metric), other.scores(metric), first.subjects, seed=seed)
        for other in evaluations[1:]
        if first.measures_as(other, metric)
    }
    return {run_id: difference for run_id, difference in found.items() if difference is not None}


def _left_out(evaluations: Sequence[Evaluation], metric: str) -> dict[str, LeftOut]:
    first = evaluations[0]
    found = {}
    for other in evaluations[1:]:
        common = first.subjects.keys() & other.subjects.keys()
        here, there = (one.scores(metric).keys() & common for one in (first, other))
        if here != there and first.measures_as(other, metric):
            found[other.run.id] = LeftOut(first=len(here - there), other=len(there - here))
    return found


def _rows(store: RunReader, run: RunInfo) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(read_text(store, run.id, CASES) or "")))


def _metrics(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the columns that all tables have and that are compared; the foreground only beside several classes."""
    common = [key for key in evaluations[0].rows[0] if all(key in other.rows[0] for other in evaluations)]
    wanted = [key for key in common if key.partition("/")[0] in _COMPARED]
    classes = {key.partition("/")[2] for key in wanted} - {FOREGROUND, "mean"}
    return [key for key in wanted if len(classes) > 1 or key.partition("/")[2] in classes]
