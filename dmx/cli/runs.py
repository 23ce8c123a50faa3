"""``dmx runs``: find, show and compare runs, and keep their store in order."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dmx.cli.console import err, out
from dmx.cli.ui import StoreAddress
from dmx.errors import ConfigError

if TYPE_CHECKING:
    from dmx.tracking.compare import Comparison
    from dmx.tracking.store import RunInfo, RunReader

app = typer.Typer(help="Find, show and compare runs, and keep their store in order.", no_args_is_help=True)

RUN_HELP = "Run id, the start of one, EXPERIMENT/RUN-NAME, or EXPERIMENT/last (the last training or import)."
RunName = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
_WHOLE = ("evaluation/accuracy", "evaluation/r2", "val/accuracy", "val/r2")
_SCORES = ("evaluation/dice", "ablation/dice", "ablation/accuracy", "val_volume/dice", "val/dice", *_WHOLE)
_COMPARED = (
    "evaluation/",
    "val_volume/",
    "val/dice",
    *_WHOLE,
    "val/balanced_accuracy",
    "val/auc",
    "score_train/",
    "val/loss",
    "train/mean_loss",
    "time/total",
)
_NARROW = 100
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@app.command("list")
def list_(
    experiment: Annotated[str | None, typer.Option("--experiment", help="Only runs of this experiment.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only train, evaluate, predict, …")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Largest number of runs.")] = 20,
    store: StoreAddress = None,
) -> None:
    """List the newest runs."""
    from dmx.tracking.mlflow_store import open_store
    from dmx.tracking.scores import ambiguous_cases

    opened = open_store(store)
    tags = {"dmx.kind": kind} if kind else None
    runs = opened.list_runs(experiment=experiment, tags=tags, limit=limit)
    if not runs:
        out.print(f"No runs in {escape(opened.uri)} that fit.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    narrow = out.width < _NARROW
    for column in ("run", "name", "kind", "status", "started", *(() if narrow else ("duration",))):
        table.add_column(column, overflow="fold", no_wrap=column != "name")
    for column in ("epoch", "score"):
        table.add_column(column, justify="right", no_wrap=True)
    scored = [run for run in runs if run.kind == "evaluate"]
    if scored:
        table.add_column("cases", overflow="fold")
    alike = ambiguous_cases(scored)
    for run in runs:
        cases = [_scored_cases(run, alike, narrow=narrow)] if run.kind == "evaluate" else []
        table.add_row(*map(escape, (*_cells(run, narrow=narrow), *cases)))
    out.print(table)


def _scored_cases(run: "RunInfo", alike: set[str], *, narrow: bool) -> str:
    """Return what an evaluation is of: cohort and split, and how many cases it has, found and missed."""
    from dmx.tracking.scores import cases_words, misses

    words = cases_words(run, digest=cases_words(run) in alike)
    counts = misses(run.metrics)
    if narrow and cases_words(run) not in alike:
        return counts
    return f"{words}: {counts}" if counts else words


def _cells(run: "RunInfo", *, narrow: bool) -> tuple[str, ...]:
    """Return what is told of a run; a narrow terminal leaves year and duration out, so that its name has room."""
    from dmx.tracking.catalog import when

    score = next((run.metrics[key] for key in _SCORES if key in run.metrics), None)
    started = when(run.started)
    return (
        run.id[:8],
        f"{run.experiment}/{run.name}",
        run.kind,
        run.status,
        *((started.partition("-")[2],) if narrow else (started, _duration(run))),
        f"{run.metrics['epoch']:.0f}" if "epoch" in run.metrics else "",
        "" if score is None else f"{score:.3f}",
    )


def _duration(run: "RunInfo") -> str:
    """Return the time of the work, without pauses before a resume, where it was measured."""
    seconds = run.metrics.get("time/total")
    if seconds is None and run.ended is not None:
        seconds = (run.ended - run.started) / 1000
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@app.command()
def show(run: RunName, store: StoreAddress = None) -> None:
    """Show a run: where it comes from, settings, scores, checkpoints, artifacts."""
    from dmx.tracking.catalog import when
    from dmx.tracking.checkpoints import checkpoint_names
    from dmx.tracking.lineage import children
    from dmx.tracking.location import pages, run_link
    from dmx.tracking.mlflow_store import open_store
    from dmx.tracking.provenance import read_sessions, session_line
    from dmx.tracking.scores import cases_words

    opened = open_store(store)
    found = opened.find_run(run)
    out.print(f"[bold]{escape(found.experiment)}/{escape(found.name)}[/]  {found.kind}  {found.status}")
    head = {
        "id": found.id,
        "started": when(found.started),
        "duration": _duration(found),
        "ended because": found.tags.get("dmx.end_reason", ""),
        "resumed": found.tags.get("dmx.resumed", ""),
        "warnings": found.tags.get("dmx.warnings", "") and f"{found.tags['dmx.warnings']} (warnings.txt)",
        "source": " ".join(
            filter(None, (found.tags.get(f"dmx.source_{name}", "") for name in ("run_id", "checkpoint", "file")))
        ),
        "used by": ", ".join(f"{child.experiment}/{child.name}" for child in children(opened, found)),
        "scored": cases_words(found, digest=True) if found.kind == "evaluate" else "",
        "commit": found.tags.get("mlflow.source.git.commit", ""),
        "artifacts": str(opened.local_artifacts(found.id) or found.artifact_uri),
    }
    _section("", head)
    _print_evaluation(opened, found)
    _section("params", found.params)
    _section("metrics", {key: f"{value:.6g}" for key, value in found.metrics.items()})
    _section("checkpoints", checkpoint_names(found.tags))
    _section("sessions", {f"{record['session']:>3}": session_line(record) for record in read_sessions(opened, found)})
    _section("files", dict.fromkeys(opened.list_artifacts(found.id), " "))
    _link(run_link(pages(opened.uri), found.experiment_id, found.id))


def _print_evaluation(store: "RunReader", run: "RunInfo") -> None:
    """Print the scores of an evaluation of label maps, where the run has them."""
    from dmx.cli.scores import print_scores
    from dmx.evaluation.summary import SUMMARY, ScoreTable
    from dmx.tracking.files import read_text

    segments = run.tags.get("dmx.task", "segmentation") == "segmentation"
    text = read_text(store, run.id, SUMMARY) if run.kind == "evaluate" and segments else None
    if text is None:
        return
    # What another program wrote there is no table of scores.
    with suppress(ValueError):
        table = ScoreTable.from_json(text)
        out.print()
        print_scores(table)


def _link(address: str) -> None:
    out.print(f"\nWhile MLflow's pages are served (dmx ui):\n{escape(address)}", soft_wrap=True)


def _section(title: str, entries: Mapping[str, str]) -> None:
    shown = {key: value for key, value in entries.items() if value.strip() or title == "files"}
    if not shown:
        return
    if title:
        out.print(f"\n[bold]{title}[/]")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    # The path of the artifacts is one long word, and nobody can use a part of it; a list of 100 layers may be cut.
    grid.add_column(overflow="ellipsis" if title else "fold")
    for key, value in sorted(shown.items()) if title else shown.items():
        grid.add_row(escape(key), escape(value))
    out.print(grid)


@app.command()
def lineage(
    run: RunName,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write it as an HTML page.")] = None,
    store: StoreAddress = None,
) -> None:
    """Show the runs that a run's weights came from, and those that started from it."""
    from dmx.cli.relations import print_family
    from dmx.tracking.family import find_family
    from dmx.tracking.family_page import lineage_html
    from dmx.tracking.mlflow_store import open_store

    opened = open_store(store)
    family = find_family(opened, opened.find_run(run))
    print_family(family)
    if html is not None:
        _write(html, lineage_html(family).encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error.strerror}. Choose another place.") from error
    out.print(f"Written: {escape(str(path))}", soft_wrap=True)


@app.command()
def plot(
    run: RunName,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the pictures.")],
    store: StoreAddress = None,
) -> None:
    """Draw a training: loss of each epoch, loss of each step, scores on training and validation data."""
    from dmx.tracking.location import project_root
    from dmx.workflows.course_figures import write_course
    from dmx.workflows.session import Session

    for path in write_course(run, output, Session(root=project_root()), uri=store):
        out.print(f"Written: {escape(str(path))}", soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help=RUN_HELP)],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write learning curves and the table into this folder."),
    ] = None,
    store: StoreAddress = None,
) -> None:
    """Show the settings in which runs differ, their scores side by side, and a paired test where they have one."""
    from dmx.cli.relations import print_paired
    from dmx.tracking.compare import compare as compare_runs
    from dmx.tracking.compare import comparison_csv
    from dmx.tracking.location import compare_link, pages
    from dmx.tracking.mlflow_store import open_store
    from dmx.tracking.scores import paired_scores

    if len(runs) < 2:
        raise ConfigError("dmx runs compare needs at least two runs, got one.")
    opened = open_store(store)
    comparison = compare_runs([opened.find_run(run) for run in runs])
    _print_comparison(comparison)
    paired = paired_scores(opened, comparison.runs)
    if paired is None:
        _print_unpaired(opened, comparison.runs)
    else:
        print_paired(paired)
    if output is not None:
        _write(output / "compare.csv", comparison_csv(comparison, paired).encode())
        _draw_curves(opened, comparison, output / "compare.png")
    experiments = sorted({run.experiment_id for run in comparison.runs})
    _link(compare_link(pages(opened.uri), experiments, [run.id for run in comparison.runs]))


def _print_unpaired(store: "RunReader", runs: "Sequence[RunInfo]") -> None:
    """Say on which cases each run has been evaluated."""
    from dmx.tracking.scores import cases_words, evaluations_of

    out.print("No two of them have been evaluated on the same cases, so there is no paired test.")
    for run in runs:
        scored = [run] if run.kind == "evaluate" else evaluations_of(store, run)
        words = dict.fromkeys(cases_words(one, digest=True) for one in scored)
        out.print(escape(f"{run.name} {run.id[:8]}: {'; '.join(words) or 'not evaluated'}"), soft_wrap=True)


def _of_cases(count: int | None) -> str:
    return "" if count is None else f" ({count})"


def _print_comparison(comparison: "Comparison") -> None:
    from dmx.tracking.scores import cases_behind

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for run in comparison.runs:
        table.add_column(escape(f"{run.name} {run.id[:8]}"), justify="right", overflow="fold")
    for row in comparison.params:
        table.add_row(escape(row.name), *(escape(_shown(value)) for value in row.values))
    table.add_section()
    told = [row for row in comparison.metrics if row.name.startswith(_COMPARED)]
    for row in told:
        behind = (cases_behind(run.metrics, row.name) for run in comparison.runs)
        cells = (_shown(value) + _of_cases(n) for value, n in zip(row.values, behind, strict=True))
        table.add_row(escape(row.name), *map(escape, cells))
    out.print(table)
    if any(cases_behind(run.metrics, row.name) is not None for row in told for run in comparison.runs):
        out.print("(n): the mean of n cases; the others have no value of it.")
    more = len(comparison.metrics) - len(told)
    out.print(
        f"{comparison.equal_params} params are the same in all of them."
        + (f" {more} more metrics are in the table that --output writes." if more else "")
    )


def _draw_curves(store: "RunReader", comparison: "Comparison", path: Path) -> None:
    from dmx.evaluation.figures import figure_png, runs_figure
    from dmx.tracking.compare import histories

    found = histories(store, comparison.runs)
    if found:
        _write(path, figure_png(runs_figure(found)))
    else:
        out.print("None of them has learning curves.")


def _shown(value: str | float | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.5g}"


@app.command()
def reap(
    stale: Annotated[
        str | None,
        typer.Option("--stale", metavar="2h", help="Close runs of other machines after so long a silence; else 10m."),
    ] = None,
    store: StoreAddress = None,
) -> None:
    """Close runs whose process is gone: they become KILLED and can be resumed.

    Runs of other machines are watched for a minute first. One that was only cut off from the store goes on.
    """
    from dmx.tracking.mlflow_store import open_store
    from dmx.tracking.reap import reap as reap_runs

    closed = reap_runs(open_store(store), stale=_span(stale) if stale else None, notify=_note)
    for item in closed:
        out.print(
            escape(f"{item.run.experiment}/{item.run.name} {item.run.id[:8]} is {item.run.status}. {item.reason}")
        )
    out.print(f"{len(closed)} run{'s' if len(closed) != 1 else ''} closed.")


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhd])", text)
    if match is None:
        raise ConfigError(f"--stale must be a number with m, h or d, e.g. 2h, got '{text}'.")
    try:
        return timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError:
        raise ConfigError(f"--stale must be a time that can pass, got '{text}'.") from None


def _note(sentence: str) -> None:
    err.print(f"[yellow]Note:[/] {escape(sentence)}")


@app.command()
def relocate() -> None:
    """Mend the project's own run store after its folder was moved or copied."""
    from dmx.tracking.location import project_root
    from dmx.tracking.relocate import relocate as relocate_store

    database = Path(project_root() / "mlruns" / "mlflow.db")
    changed = relocate_store(database)
    out.print(f"{changed} artifact locations in {escape(str(database))} point to this folder now.")


@app.command()
def sync(
    run: RunName,
    again: Annotated[bool, typer.Option("--again", help="Deliver everything from the beginning.")] = False,
    store: StoreAddress = None,
) -> None:
    """Deliver what the store missed while it could not be reached. Repeating it changes nothing."""
    from dmx.tracking.mlflow_store import open_store
    from dmx.tracking.reap import sync as sync_run

    opened = open_store(store)
    count = sync_run(opened, opened.find_run(run), again=again, notify=_note)
    out.print(f"{count} entr{'ies' if count != 1 else 'y'} delivered.")
