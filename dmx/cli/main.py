"""The command ``dmx``."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from dmx import __version__
from dmx.cli import cohort, config, export, inspect, model, predict, runs, train, transfer, ui
from dmx.cli.console import err, out, sentence
from dmx.errors import DmxError

app = typer.Typer(
    name="dmx",
    help="Train networks on 3D scans or images, and carry what they learned to the next task. Every session is a run.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        out.print(f"dmx {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


app.command()(train.train)
app.command()(train.finetune)
app.command()(transfer.transfer)
app.command()(train.resume)
app.command()(predict.predict)
app.command()(predict.evaluate)
app.command()(inspect.activations)
app.command()(inspect.ablate)
app.command()(inspect.probe)
app.command()(export.export)
app.add_typer(cohort.app, name="cohort")
app.add_typer(model.app, name="model")
app.add_typer(config.app, name="config")
app.add_typer(runs.app, name="runs")
app.command()(ui.ui)


def main() -> None:
    """Run a command; end with one sentence and exit code 2 when the user can solve the problem."""
    sys.argv[1:] = inspect.join_names(transfer.join_layers(sys.argv[1:]))
    try:
        app()
    except DmxError as error:
        from dmx.tracking.location import mask

        # Paths stay whole, so that they can be copied.
        err.print(f"[bold red]Error:[/] {escape(mask(sentence(str(error))))}", soft_wrap=True)
        sys.exit(2)
