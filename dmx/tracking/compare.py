"""Runs side by side: the settings that differ, the scores, the learning curves."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from dmx.evaluation.paired import PairedDifference
from dmx.tracking.files import read_text
from dmx.tracking.history import as_numbers
from dmx.tracking.lineage import SOURCE_RUN
from dmx.tracking.scores import PairedScores
from dmx.tracking.store import RunInfo, RunReader

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


def label(run: RunInfo) -> str:
    """Return how a run is called beside others: runs of different experiments can have one name."""
    return f"{run.experiment}/{run.name} {run.id[:8]}"


def histories(store: RunReader, runs: Sequence[RunInfo]) -> dict[str, list[dict[str, float | None]]]:
    """Return the epochs of each run that has trained, by label; for an evaluation those of the run that it scored."""
    found = {}
    for run in runs:
        trained = store.get_run(run.tags[SOURCE_RUN]) if run.kind == "evaluate" and SOURCE_RUN in run.tags else run
        text = read_text(store, trained.id, "history/epochs.csv")
        rows = as_numbers(csv.DictReader(io.StringIO(text or "")))
        if rows:
            found[label(trained)] = rows
    return found


def comparison_csv(comparison: Comparison, paired: PairedScores | None) -> str:
    """Return all of a comparison as one table: what is compared, its name, and a column for each run.

    A difference stands in the column of the run that is compared with the first one.
    """
    rows: list[tuple[str, str, Sequence[object]]] = [("param", row.name, row.values) for row in comparison.params]
    rows += [("metric", row.name, row.values) for row in comparison.metrics]
    if paired is not None:
        rows += _paired_rows(comparison.runs, paired)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["what", "name", *map(label, comparison.runs)])
    writer.writerows([what, name, *("" if value is None else value for value in values)] for what, name, values in rows)
    return text.getvalue()


def _paired_rows(runs: Sequence[RunInfo], paired: PairedScores) -> Iterator[tuple[str, str, Sequence[object]]]:
    scored = {evaluation.run.id: evaluation for evaluation in paired.evaluations}
    for metric, differences in paired.differences.items():
        found = {run_id: asdict(difference) for run_id, difference in differences.items()}
        for field in fields(PairedDifference):
            yield f"paired {field.name}", metric, [found.get(run.id, {}).get(field.name) for run in runs]
        scores = [scored[run.id].scores(metric) if run.id in scored else {} for run in runs]
        for case in sorted({case for values in scores for case in values}):
            yield f"case {metric}", case, [values.get(case) for values in scores]


def _keys(mappings: Sequence[Mapping[str, object]]) -> list[str]:
    return sorted({key for mapping in mappings for key in mapping})
