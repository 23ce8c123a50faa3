"""``dmx train`` and ``dmx resume``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmx.cli.config import ExperimentPath, Overrides, Trust
from dmx.cli.runs import RUN_HELP, RunName
from dmx.cli.ui import StoreAddress
from dmx.errors import ConfigError

Freeze = Annotated[
    list[str] | None,
    typer.Option(
        "--freeze",
        metavar="PATHWAY=POSITIONS",
        help="Keep layers as they are: normal=1-3, subsampled_1=1-2, fc=1, layers=NAME, all_but_head, "
        "norm_statistics=updating. May be repeated.",
    ),
]
AllowLeak = Annotated[
    bool, typer.Option("--allow-leak", help="Go on when validation cases were in the training of a source.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse to freeze layers that are still as they were initialized.")
]
SourceStore = Annotated[
    str | None,
    typer.Option("--source-store", metavar="URI", help="Run store of the source; else that of the new run."),
]
FromRun = Annotated[str, typer.Option("--from-run", metavar="RUN", help=RUN_HELP)]

if TYPE_CHECKING:
    from dmx.workflows.resume import Extension
    from dmx.workflows.session import Session
    from dmx.workflows.train import Trainee


def train(
    experiment: ExperimentPath,
    overrides: Overrides = None,
    freeze: Freeze = None,
    strict: Strict = False,
    from_run: Annotated[
        str | None, typer.Option("--from-run", metavar="RUN", help="Train the network of this transfer.")
    ] = None,
    allow_leak: AllowLeak = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.")] = None,
    trust: Trust = None,
) -> None:
    """Train a network on a cohort, as a new run; with a section 'transfer' it receives weights first."""
    from dmx.config.freeze import freeze_overrides
    from dmx.config.load import build_experiment, read_given
    from dmx.workflows.train import train as run_training
    from dmx.workflows.transfer import train_transferred, transfer_and_train

    changes = [*(overrides or ()), *freeze_overrides(freeze or ())]
    raw = read_given(experiment, changes)
    if raw.get("transfer"):
        if from_run is not None:
            raise ConfigError("The experiment has a section 'transfer', so --from-run has no place; leave one out.")
        _run(
            lambda session: transfer_and_train(
                raw, session, path=experiment, name=name, strict=strict, allow_leak=allow_leak
            )
        )
        return
    if from_run is not None:
        _run(
            lambda session: train_transferred(
                raw, from_run, session, path=experiment, name=name, strict=strict, allow_leak=allow_leak
            )
        )
        return
    settings = build_experiment(raw, source=str(experiment), folder=experiment.resolve().parent)
    _run(lambda session: run_training(settings, session, name=name, strict=strict))


def finetune(
    experiment: ExperimentPath,
    from_run: FromRun,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="best, last, initial or epoch=N; else the best one, else the last."),
    ] = None,
    overrides: Overrides = None,
    freeze: Freeze = None,
    keep_optimizer: Annotated[
        bool, typer.Option("--keep-optimizer", help="Keep the source's moments; the schedule still begins anew.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="inherited|default",
            help="What EXPERIMENT leaves out: as in the source (inherited), or dmx's defaults (default).",
        ),
    ] = None,
    strict: Strict = False,
    allow_leak: AllowLeak = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.")] = None,
    store: StoreAddress = None,
    source_store: SourceStore = None,
    trust: Trust = None,
) -> None:
    """Train a run's network further on another cohort, as a new run with a fresh optimizer."""
    from dmx.config.freeze import freeze_overrides
    from dmx.workflows.finetune import FinetuneRequest
    from dmx.workflows.finetune import finetune as run_finetuning

    request = FinetuneRequest(
        experiment=experiment,
        run=from_run,
        checkpoint=checkpoint,
        overrides=[*(overrides or ()), *freeze_overrides(freeze or ())],
        keep_optimizer=keep_optimizer,
        allow_leak=allow_leak,
        strict=strict,
        recipe=recipe,
        source_uri=source_store,
        name=name,
    )
    _run(lambda session: run_finetuning(request, session, uri=store))


def resume(
    run: RunName,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Threads that prepare batches.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Processes that share the passes of a step out.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Train to this many epochs in all.")] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="With --epochs: keep, stretch or restart the learning-rate curve.")
    ] = None,
    cohort: Annotated[
        Path | None,
        typer.Option("--cohort", metavar="PATH", help="Where the manifest or images of the run lie now."),
    ] = None,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Take the place of a process of another machine at once. If that still lives, both write to the run "
            "until it notices.",
        ),
    ] = False,
    store: StoreAddress = None,
    trust: Trust = None,
) -> None:
    """Go on with an interrupted run exactly where it was, or extend one."""
    from dmx.workflows.resume import resume as run_on

    wanted: dict[str, object] = {"device": device, "workers": workers, "threads": threads, "processes": processes}
    wanted["cohort"] = cohort
    changes = {key: value for key, value in wanted.items() if value is not None}
    extension = _extension(epochs, schedule)
    _run(lambda session: run_on(run, session, uri=store, changes=changes, extension=extension, take_over=take_over))


def _extension(epochs: int | None, schedule: str | None) -> "Extension | None":
    """Return the extension that two options name together; neither makes sense alone."""
    from dmx.workflows.resume import Extension

    if epochs is None and schedule is None:
        return None
    if epochs is None or schedule is None:
        raise ConfigError(
            "--epochs and --schedule belong together: --epochs 60 --schedule keep (the old curve, then its last rate), "
            "stretch (one curve over all epochs) or restart (a new curve)."
        )
    return Extension(epochs=epochs, schedule=schedule)


def _run(work: Callable[["Session"], "Trainee"]) -> None:
    """Train with a display; say what came out and how to go on."""
    from dmx.cli.display import TrainingDisplay
    from dmx.cli.report import TerminalReport, print_result, stopping_on_signals
    from dmx.tracking.location import mask, project_root
    from dmx.tracking.summary import predict_command
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
    if trained.reason == "transferred":
        print_result(
            f"Run {run} holds the new network, untrained.\n"
            f"Train it:  dmx train EXPERIMENT --from-run {trained.run.id[:8]}"
        )
        return
    state = "is complete" if trained.delivered else "has ended, and its store does not have all of it"
    print_result(
        f"Run {run} {state} ({trained.run.id[:8]}).\n"
        f"Predict:  {predict_command(trained.run)}{store}\n"
        f"Score:    dmx evaluate --from-run {trained.run.id[:8]}{store}\n"
        f"Look:     dmx ui{store}"
    )
