"""``dmx train`` and ``dmx resume``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmx.cli.config import ExperimentPath, Overrides
from dmx.cli.runs import RUN_HELP, RunName
from dmx.cli.ui import StoreAddress

FromRun = Annotated[str, typer.Option("--from-run", metavar="RUN", help=RUN_HELP)]

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


def finetune(
    experiment: ExperimentPath,
    from_run: FromRun,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="best, last, initial or epoch=N; else the best one, else the last."),
    ] = None,
    overrides: Overrides = None,
    keep_optimizer: Annotated[
        bool, typer.Option("--keep-optimizer", help="Keep the source's moments; the schedule still begins anew.")
    ] = False,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Go on when validation cases were in the training of the source.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.")] = None,
    store: StoreAddress = None,
) -> None:
    """Train a run's network further on another cohort, as a new run with a fresh optimizer."""
    from dmx.workflows.finetune import FinetuneRequest
    from dmx.workflows.finetune import finetune as run_finetuning

    request = FinetuneRequest(
        experiment=experiment,
        run=from_run,
        checkpoint=checkpoint,
        overrides=overrides or (),
        keep_optimizer=keep_optimizer,
        allow_leak=allow_leak,
        name=name,
    )
    _run(lambda session: run_finetuning(request, session, uri=store))


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
