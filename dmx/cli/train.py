"""``dmx train`` and ``dmx resume``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmx.cli.config import ExperimentPath, Overrides
from dmx.cli.runs import RunName
from dmx.cli.ui import StoreAddress

if TYPE_CHECKING:
    from dmx.workflows.session import Session
    from dmx.workflows.train import Trainee


def train(
    experiment: ExperimentPath,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.")] = None,
) -> None:
    """Train a network on a cohort, as a new run."""
    from dmx.config.load import load_experiment
    from dmx.workflows.train import train as run_training

    settings = load_experiment(experiment, overrides or ())
    _run(lambda session: run_training(settings, session, name=name))


def resume(
    run: RunName,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Threads that prepare segments.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    store: StoreAddress = None,
) -> None:
    """Go on with an interrupted run, exactly where it was."""
    from dmx.workflows.resume import resume as run_on

    wanted: dict[str, object] = {"device": device, "workers": workers, "threads": threads}
    changes = {key: value for key, value in wanted.items() if value is not None}
    _run(lambda session: run_on(run, session, uri=store, changes=changes))


def _run(work: Callable[["Session"], "Trainee"]) -> None:
    """Train with a display; say what came out and how to go on."""
    from dmx.cli.display import TrainingDisplay
    from dmx.cli.report import TerminalReport, print_result, stopping_on_signals
    from dmx.tracking.location import mask, project_root
    from dmx.workflows.session import Session

    with TerminalReport() as report, stopping_on_signals() as stop, TrainingDisplay(before=report.close) as display:
        session = Session(root=project_root(Path.cwd()), report=report, listeners=(display,), stop=stop)
        trained = work(session)
    run = f"{trained.run.experiment}/{trained.run.name}"
    # A store that only the experiment names has to be said again.
    store = f" --store {mask(trained.store)}" if trained.store else ""
    if trained.best_value is not None:
        print_result(f"Best {trained.best_metric}: {trained.best_value:.4f}")
    if trained.reason == "stopped":
        print_result(f"Run {run} is saved. Go on with: dmx resume {trained.run.id[:8]}{store}")
        raise typer.Exit(stop.exit_code)
    print_result(
        f"Run {run} is complete ({trained.run.id[:8]}).\n"
        f"Predict:  dmx predict --from-run {trained.run.id[:8]} COHORT_OR_FILES -o DIR{store}\n"
        f"Score:    dmx evaluate --from-run {trained.run.id[:8]}{store}\n"
        f"Look:     dmx ui{store}"
    )
