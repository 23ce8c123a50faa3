"""From rows of cases to a table and to means with confidence intervals over subjects."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dmx.errors import ConfigError
from dmx.evaluation.metrics import Row, Score, statuses
from dmx.seeding import derive


@dataclass(frozen=True)
class Summary:
    """One metric over cases.

    Attributes:
        mean: Mean over cases that have a value; None where no case has one.
        median: Median of the same.
        std: Standard deviation of the same (n - 1); None for fewer than two.
        low: Lower end of the confidence interval of the mean; None for fewer than two subjects.
        high: Upper end.
        cases: Cases with a value.
        subjects: Subjects with a value.
        missing: Cases without a value; the status of the class tells why.
    """

    mean: float | None
    median: float | None
    std: float | None
    low: float | None
    high: float | None
    cases: int
    subjects: int
    missing: int


def summarize(
    rows: Sequence[Mapping[str, Score]],
    subjects: Sequence[str],
    *,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = 2000,
) -> dict[str, Summary]:
    """Summarize every numeric metric of the rows.

    The interval is the percentile bootstrap of the mean (Efron and Tibshirani 1993, chapter 13). Subjects are drawn
    with replacement, each with all of its cases: scans of one person are not independent. All metrics share the draws,
    so that their intervals can be compared.

    Args:
        rows: One row of :func:`~dmx.evaluation.metrics.score_case` per case, with equal keys.
        subjects: The subject of each row.
        seed: Seed of the draws.
        level: Confidence level.
        resamples: Number of draws.

    Raises:
        ConfigError: There is not one subject per row.
    """
    if len(rows) != len(subjects):
        raise ConfigError(f"Each row needs its subject, got {len(rows)} rows and {len(subjects)} subjects.")
    if not rows:
        return {}
    names, index = np.unique(np.asarray(subjects), return_inverse=True)
    generator = np.random.default_rng(derive(seed, "bootstrap") & (2**64 - 1))
    draws = generator.integers(len(names), size=(resamples, len(names)))
    result = {}
    for key in rows[0]:
        column = [row[key] for row in rows]
        if any(isinstance(value, str) for value in column):
            continue
        values = np.array([np.nan if value is None else value for value in column], dtype=np.float64)
        result[key] = _summary(values, index, draws, level)
    return result


def _summary(values: NDArray[np.float64], subject: NDArray[np.intp], draws: NDArray[np.int64], level: float) -> Summary:
    known = ~np.isnan(values)
    cases, people = int(known.sum()), len(np.unique(subject[known]))
    found = values[known]
    if cases == 0:
        return Summary(None, None, None, None, None, 0, 0, len(values))
    low, high = _interval(values, known, subject, draws, level) if people > 1 else (None, None)
    return Summary(
        mean=float(found.mean()),
        median=float(np.median(found)),
        std=float(found.std(ddof=1)) if cases > 1 else None,
        low=low,
        high=high,
        cases=cases,
        subjects=people,
        missing=len(values) - cases,
    )


def _interval(
    values: NDArray[np.float64],
    known: NDArray[np.bool_],
    subject: NDArray[np.intp],
    draws: NDArray[np.int64],
    level: float,
) -> tuple[float, float]:
    count = draws.shape[1]
    sums = np.bincount(subject[known], weights=values[known], minlength=count)[draws].sum(axis=1)
    sizes = np.bincount(subject[known], minlength=count)[draws].sum(axis=1)
    # A draw may hold only subjects without a value.
    means = sums[sizes > 0] / sizes[sizes > 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cases_csv(rows: Sequence[Mapping[str, Score]]) -> str:
    """Return the table of cases; a value that does not exist is an empty cell, and the status tells why."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def summary_json(summaries: Mapping[str, Summary], rows: Sequence[Row], classes: Sequence[str]) -> str:
    """Return the summary as strict JSON: no NaN, ``null`` where a value does not exist.

    Args:
        summaries: From :func:`summarize`.
        rows: The rows that it summarizes.
        classes: Names of regions whose statuses are counted, e.g. ``foreground`` and the classes.
    """
    content = {
        "cases": len(rows),
        "metrics": {key: asdict(summary) for key, summary in summaries.items()},
        "status": {name: statuses(rows, name) for name in classes},
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
