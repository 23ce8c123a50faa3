"""``dmx ui``: look at the runs in a browser."""

import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from dmx.cli.console import err, out

if TYPE_CHECKING:
    from dmx.tracking.store import RunInfo

StoreAddress = Annotated[
    str | None,
    typer.Option("--store", metavar="URI", help="Run store; else MLFLOW_TRACKING_URI, else the project's own."),
]


def ui(
    port: Annotated[
        int,
        typer.Option("--port", min=1, max=65535, help="Port; the next free one if it is taken or browsers refuse it."),
    ] = 5000,
    store: StoreAddress = None,
) -> None:
    """Serve MLflow's pages on this machine until Ctrl-C, and print the links."""
    from dmx.tracking.location import is_server, project_root, resolve_uri
    from dmx.tracking.mlflow_store import open_store
    from dmx.tracking.ui import free_port, serving

    uri = resolve_uri(store, project_root())
    runs = open_store(uri).list_runs()
    if is_server(uri):
        _print_links(uri, runs)
        return
    # The server's processes must not outlive this one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    err.print("Starting the MLflow server …")
    with suppress(KeyboardInterrupt), serving(uri, free_port(port)) as base:
        _print_links(base, runs)
        out.print("Ctrl-C ends it.")
        signal.pause()


def _print_links(base: str, runs: "list[RunInfo]") -> None:
    """Print one link per experiment; MLflow's start page shows none of the project's columns."""
    from dmx.tracking.location import experiment_link

    names = {run.experiment_id: run.experiment for run in runs}
    if not names:
        out.print(f"{base}: there is no run yet.")
    for experiment_id, name in names.items():
        count = sum(run.experiment_id == experiment_id for run in runs)
        out.print(f"[bold]{escape(name)}[/] ({count} run{'s' if count != 1 else ''})")
        out.print(f"  {escape(experiment_link(base, experiment_id))}", soft_wrap=True)
