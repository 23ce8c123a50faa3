"""``dmx transfer``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from dmx.cli.config import ExperimentPath, Overrides, Trust
from dmx.cli.console import out
from dmx.cli.runs import RUN_HELP
from dmx.cli.train import AllowLeak, Strict
from dmx.errors import ConfigError

if TYPE_CHECKING:
    from dmx.transfer.plan import TransferPlan

_LAYERS, _EXCLUDE = "--layers", "--exclude"
_LONGEST_DEPTH = 6
_EXPERIMENTS = (".yaml", ".yml")
_COLORS = {"copied": "green", "sliced": "cyan", "adapted": "yellow", "initialized": "red"}


def join_layers(words: Sequence[str]) -> list[str]:
    """Let ``--layers 1 2 5`` be one word, ``1,2,5``; the list ends with an option or the file of an experiment.

    >>> join_layers(["transfer", "x.yaml", "--layers", "1", "2", "5", "--dry-run"])
    ['transfer', 'x.yaml', '--layers', '1,2,5', '--dry-run']
    >>> join_layers(["transfer", "--exclude", "enc.*", "head", "x.yaml"])
    ['transfer', '--exclude', 'enc.*,head', 'x.yaml']
    """
    joined: list[str] = []
    for word in words:
        follows = len(joined) > 1 and joined[-2] in (_LAYERS, _EXCLUDE) and not joined[-1].startswith("-")
        if follows and words[0] == "transfer" and not word.startswith("-") and not word.endswith(_EXPERIMENTS):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def transfer(
    experiment: ExperimentPath,
    from_run: Annotated[str | None, typer.Option("--from-run", metavar="RUN", help=RUN_HELP)] = None,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", help="Weights that another tool wrote: safetensors or a torch file.")
    ] = None,
    from_key: Annotated[
        str | None,
        typer.Option(
            "--from-key",
            metavar="KEY",
            help="Key of the weights in a torch file that has several (model, ema, …); else averaged ones first.",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="best, last, initial or epoch=N; else the best one, else the last."),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            _LAYERS,
            metavar="1 2 5",
            help="Depths of the source, or names of its layers; else all but the head. May be repeated.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            _EXCLUDE, metavar="1 2 5", help="Depths or names of layers that stay as initialized. May be repeated."
        ),
    ] = None,
    head: Annotated[str | None, typer.Option("--head", help="initialized or copy.")] = None,
    classes_from: Annotated[str | None, typer.Option("--classes-from", help="position or names.")] = None,
    extra: Annotated[str | None, typer.Option("--extra", help="random or zero-cross, for a wider network.")] = None,
    match_channels: Annotated[str | None, typer.Option("--match-channels", help="name or position.")] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            "--channels", help="pair, or for another number of input channels repeat or mean, scaled to keep the sum."
        ),
    ] = None,
    adapt_kernels: Annotated[
        bool, typer.Option("--adapt-kernels", help="Adapt kernels of another size instead of refusing them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, every layer of it, and end.")] = False,
    overrides: Overrides = None,
    strict: Strict = False,
    allow_leak: AllowLeak = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.")] = None,
    trust: Trust = None,
) -> None:
    """Give what a run has learned to a network of another shape, as a new run that can be trained."""
    from dmx.cli.report import TerminalReport, print_result
    from dmx.config.load import read_given
    from dmx.tracking.location import project_root
    from dmx.workflows.session import Session
    from dmx.workflows.transfer import prepare_transfer
    from dmx.workflows.transfer import transfer as run_transfer

    words: dict[str, Any] = {
        "layers": _layers(layers, _LAYERS) if layers else None,
        "exclude": _layers(exclude, _EXCLUDE) if exclude else None,
        "head": head,
        "classes_from": classes_from,
        "extra": extra,
        "match_channels": match_channels,
        "channels": channels,
        "adapt_kernels": adapt_kernels or None,
        "sources": _sources(from_run, from_file, checkpoint, from_key),
    }
    raw = read_given(experiment, overrides or ())
    given = {key: value for key, value in words.items() if value is not None}
    raw["transfer"] = {**(raw.get("transfer") or {}), **given}
    with TerminalReport() as report:
        session = Session(root=project_root(Path.cwd()), report=report)
        if dry_run:
            planned = prepare_transfer(raw, session, path=experiment, allow_leak=allow_leak, strict=strict)
            _print_plan(planned.plan, planned.notes)
            return
        done = run_transfer(raw, session, path=experiment, name=name, allow_leak=allow_leak, strict=strict)
    _print_plan(done.plan, done.notes, folded=True)
    print_result(
        f"Run {done.run.experiment}/{done.run.name} ({done.run.id[:8]}) holds the new network, untrained.\n"
        f"Train it:  dmx train {experiment} --from-run {done.run.id[:8]}"
    )


def _layers(texts: Sequence[str], option: str) -> list[int | str]:
    words = [word for text in texts for word in text.replace(",", " ").split()]
    if not words:
        raise ConfigError(f"{option} takes depths of the source such as 1 2 5, or names of its layers, got nothing.")
    return [int(word) if word.isdecimal() and len(word) < _LONGEST_DEPTH else word for word in words]


def _sources(
    run: str | None, file: Path | None, checkpoint: str | None, key: str | None
) -> dict[str, dict[str, str]] | None:
    if run is not None and file is not None:
        raise ConfigError("--from-run and --from-file name one source each; several sources go into the experiment.")
    if key is not None and file is None:
        raise ConfigError("--from-key names weights in a file: give the file with --from-file, too.")
    if file is not None:
        return {"source": {"file": str(file.absolute()), **({} if key is None else {"key": key})}}
    if run is None:
        return None
    return {"source": {"run": run, **({} if checkpoint is None else {"checkpoint": checkpoint})}}


def _print_plan(plan: "TransferPlan", notes: Sequence[str], *, folded: bool = False) -> None:
    for sentence in notes:
        out.print(escape(sentence), soft_wrap=True)
    layers = set(plan.layer_lines(folded=folded))
    # A run that was made has shown its warnings already.
    for line in plan.summary(folded=folded, warnings=not folded):
        name, _, outcome = line.partition("  ")
        if line not in layers:
            out.print(escape(line), soft_wrap=True)
            continue
        color = _COLORS.get(outcome.split()[0].rstrip(":"), "default")
        out.print(f"{escape(name)}  [{color}]{escape(outcome)}[/]", soft_wrap=True)
