"""Runs side by side: the settings that differ, and the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dmx.tracking.store import RunInfo

_TAGS = ("dmx.source_run_id", "dmx.resumed", "mlflow.source.git.commit")


@dataclass(frozen=True)
class Row:
    """One line of a comparison: a name, and what each run has; ``None`` where it has nothing."""

    name: str
    values: tuple[str | float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What tells runs apart.

    Attributes:
        runs: The runs.
        params: Params that differ, kind, source and code included.
        equal_params: Number of params that are the same in all runs.
        metrics: All metrics.
    """

    runs: tuple[RunInfo, ...]
    params: tuple[Row, ...]
    equal_params: int
    metrics: tuple[Row, ...]


def compare(runs: Sequence[RunInfo]) -> Comparison:
    """Compare two or more runs."""
    params = [Row(name, tuple(run.params.get(name) for run in runs)) for name in _keys([run.params for run in runs])]
    tags = [Row(name, tuple(run.tags.get(name) for run in runs)) for name in ("dmx.kind", *_TAGS)]
    metrics = [Row(name, tuple(run.metrics.get(name) for run in runs)) for name in _keys([run.metrics for run in runs])]
    different = [row for row in (*tags, *params) if len(set(row.values)) > 1]
    return Comparison(
        runs=tuple(runs),
        params=tuple(different),
        equal_params=sum(len(set(row.values)) == 1 for row in params),
        metrics=tuple(metrics),
    )


def _keys(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    return sorted({key for mapping in mappings for key in mapping})
