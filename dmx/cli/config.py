"""``dmx config``: look at the settings of an experiment."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.syntax import Syntax

from dmx.cli.console import out
from dmx.errors import ConfigError

app = typer.Typer(help="Look at the settings of an experiment.", no_args_is_help=True)

ExperimentPath = Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="YAML file of the experiment.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. training.epochs=5. May be repeated."),
]


def _trust(names: list[str] | None) -> list[str] | None:
    from dmx.config.trust import check_consent, trust_factory

    for name in names or ():
        check_consent(name)
        trust_factory(name)
    return names


Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="MODULE:FUNCTION",
        callback=_trust,
        help="Call this function, which the experiment or run names as its network. May be repeated.",
    ),
]


@app.command()
def show(
    experiment: ExperimentPath,
    overrides: Overrides = None,
    changed: Annotated[bool, typer.Option("--changed", help="Show only what differs from the defaults.")] = False,
) -> None:
    """Show every setting as it would be used, defaults included."""
    from dmx.config.load import as_changed_yaml, as_yaml, load_experiment

    resolved = load_experiment(experiment, overrides or ())
    text = as_changed_yaml(resolved) if changed else as_yaml(resolved)
    if out.is_terminal:
        out.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        typer.echo(text, nl=False)


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write; else it is printed.")] = None,
) -> None:
    """Write the JSON schema of experiments, with which an editor completes and explains settings."""
    from dmx.config.load import json_schema

    text = json.dumps(json_schema(), indent=2)
    if output is None:
        typer.echo(text)
    else:
        try:
            output.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"'{output}' cannot be written: {error.strerror}. Choose another place.") from error
        out.print(f"Wrote {output}. First line of an experiment: # yaml-language-server: $schema={output}")
