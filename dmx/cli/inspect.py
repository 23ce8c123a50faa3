"""``dmx activations``, ``dmx ablate`` and ``dmx probe``: look inside a run's network."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dmx.cli.config import Trust
from dmx.cli.console import out
from dmx.cli.predict import Checkpoint, Device, Name, Overrides, TruthLabels, label_words, prediction_settings
from dmx.cli.runs import RUN_HELP
from dmx.cli.train import AllowLeak
from dmx.cli.ui import StoreAddress
from dmx.errors import ConfigError

if TYPE_CHECKING:
    from dmx.evaluation.layer_outputs import Layers
    from dmx.evaluation.paired import PairedDifference
    from dmx.workflows.ablate import Ablated
    from dmx.workflows.probe import Probed

_LAYERS = "--layers"
_COMMANDS = ("activations", "probe")
_POOLS = ("max", "mean", "median", "none", "auto")
_NUMBER = re.compile(r"[0-9]{1,6}")

Run = Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)]
Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[INPUT]...",
        help="What the network reads, as for dmx predict: a manifest, a list of images …; else the run's own.",
    ),
]
LayerNames = Annotated[
    str | None, typer.Option(_LAYERS, metavar="NAME…", help="Names of layers, as 'dmx model show RUN' lists them.")
]
MaskFile = Annotated[
    Path | None, typer.Option("--dmask", metavar="FILE", help="A .dmask.csv: layers and which channels of them.")
]
Pool = Annotated[
    str,
    typer.Option(
        "--pool", help="How voxels become one number: max, mean, median or none. auto: mean of volumes, none of images."
    ),
]
Split = Annotated[str | None, typer.Option("--split", help="Only cases of this split.")]


def join_names(words: Sequence[str]) -> list[str]:
    """Let ``--layers conv1 fc2`` be one word, ``conv1,fc2``: all words up to the next option.

    >>> join_names(["probe", "RUN", "a.csv", "--layers", "conv1", "fc2", "--folds", "3"])
    ['probe', 'RUN', 'a.csv', '--layers', 'conv1,fc2', '--folds', '3']
    """
    if not words or words[0] not in _COMMANDS:
        return list(words)
    joined: list[str] = []
    for word in words:
        if len(joined) > 1 and joined[-2] == _LAYERS and not joined[-1].startswith("-") and not word.startswith("-"):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def activations(
    run: Run,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="File that ends with .act.h5.")],
    inputs: Inputs = None,
    layers: LayerNames = None,
    dmask: MaskFile = None,
    pool: Pool = "auto",
    checkpoint: Checkpoint = None,
    split: Split = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    overrides: Overrides = None,
    device: Device = "auto",
    name: Name = None,
    store: StoreAddress = None,
    trust: Trust = None,
) -> None:
    """Write what layers give for cases to a file, which is passed through the network once for all layers."""
    from dmx.cli.report import TerminalReport, print_result
    from dmx.tracking.location import project_root
    from dmx.workflows.activations import ActivationsRequest
    from dmx.workflows.activations import activations as write_activations
    from dmx.workflows.session import Session

    wanted = _wanted(layers, dmask)
    with TerminalReport() as report:
        request = ActivationsRequest(
            run=run,
            inputs=inputs or (),
            layers=wanted,
            pool=_pool(pool),
            output=output,
            overwrite=overwrite,
            checkpoint=checkpoint,
            split=split,
            settings=prediction_settings(run, overrides, store),
            device=device,
            uri=store,
            name=name,
        )
        done = write_activations(request, Session(root=project_root(Path.cwd()), report=report))
    table = _table("layer", "shape")
    for layer, shape in done.file.shapes.items():
        table.add_row(escape(layer), "×".join(map(str, shape)))  # noqa: RUF001  (the sign of sizes)
    out.print(table)
    print_result(
        f"Wrote the activations of {done.file.count} cases to {output}. "
        f"Run {done.run.experiment}/{done.run.name} ({done.run.id[:8]})."
    )


def ablate(
    run: Run,
    layer: Annotated[str, typer.Option("--layer", metavar="NAME", help="A convolution or linear layer.")],
    cohort: Annotated[
        Path | None, typer.Argument(metavar="[COHORT]", help="Manifest, or list of images; else that of the run.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option("--channels", metavar="1-8,12", help="Channels, counted from 1; else all.")
    ] = None,
    checkpoint: Checkpoint = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Split to score; else evaluation, validation, or cases without one."),
    ] = None,
    allow_leak: AllowLeak = False,
    labels: TruthLabels = None,
    overrides: Overrides = None,
    device: Device = "auto",
    name: Name = None,
    store: StoreAddress = None,
    trust: Trust = None,
) -> None:
    """Score a run's network with channels of a layer switched off, beside the whole network."""
    from dmx.cli.report import TerminalReport
    from dmx.tracking.location import project_root
    from dmx.workflows.ablate import AblateRequest
    from dmx.workflows.ablate import ablate as run_ablation
    from dmx.workflows.session import Session

    chosen = None if channels is None else read_channels(channels)
    with TerminalReport() as report:
        request = AblateRequest(
            run=run,
            layer=layer,
            channels=chosen,
            cohort=cohort,
            checkpoint=checkpoint,
            split=split,
            settings=prediction_settings(run, overrides, store),
            allow_leak=allow_leak,
            device=device,
            uri=store,
            name=name,
            labels=None if labels is None else label_words(labels),
        )
        done = run_ablation(request, Session(root=project_root(Path.cwd()), report=report))
    _print_changes(done)


def probe(
    run: Run,
    inputs: Inputs = None,
    layers: LayerNames = None,
    dmask: MaskFile = None,
    target: Annotated[
        str, typer.Option("--target", help="What is read out: the column label, or NAME of a column target_NAME.")
    ] = "label",
    folds: Annotated[int, typer.Option("--folds", min=2, help="Folds; a subject is never in two.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which subjects make up a fold.")] = 0,
    pool: Pool = "mean",
    checkpoint: Checkpoint = None,
    split: Split = None,
    overrides: Overrides = None,
    device: Device = "auto",
    name: Name = None,
    store: StoreAddress = None,
    trust: Trust = None,
) -> None:
    """Read a label or number of whole cases out of layers with linear models, cross-validated."""
    from dmx.cli.report import TerminalReport
    from dmx.tracking.location import project_root
    from dmx.workflows.probe import ProbeRequest
    from dmx.workflows.probe import probe as run_probe
    from dmx.workflows.session import Session

    wanted = _wanted(layers, dmask)
    with TerminalReport() as report:
        request = ProbeRequest(
            run=run,
            inputs=inputs or (),
            layers=wanted,
            pool=_pool(pool),
            target=target,
            folds=folds,
            seed=seed,
            checkpoint=checkpoint,
            split=split,
            settings=prediction_settings(run, overrides, store),
            device=device,
            uri=store,
            name=name,
        )
        done = run_probe(request, Session(root=project_root(Path.cwd()), report=report))
    _print_probe(done)


def read_channels(text: str) -> tuple[int, ...]:
    """Read ``1-8,12``.

    >>> read_channels("1-3,12")
    (1, 2, 3, 12)

    Raises:
        ConfigError: It says something else.
    """
    chosen: list[int] = []
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not _NUMBER.fullmatch(first) or (dash and not _NUMBER.fullmatch(last)):
            raise ConfigError(f"--channels takes numbers from 1 and ranges, e.g. 1-8,12, got '{text}'.")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ConfigError(f"--channels has the range {part}, which ends before it begins.")
        chosen += numbers
    return tuple(dict.fromkeys(chosen))


def _wanted(layers: str | None, dmask: Path | None) -> "Layers":
    """Return the layers that are wanted, by name or by a file of masks."""
    from dmx.evaluation.layer_masks import read_masks

    names = [word for word in (layers or "").split(",") if word]
    if bool(names) == (dmask is not None):
        raise ConfigError(f"Give either {_LAYERS} NAME… or --dmask FILE, got {'both' if names else 'neither'}.")
    return names if dmask is None else read_masks(dmask)


def _pool(word: str) -> Any:
    if word not in _POOLS:
        raise ConfigError(f"--pool must be one of {', '.join(_POOLS)}, got '{word}'.")
    return word


def _table(*titles: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for number, heading in enumerate(titles):
        table.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    return table


def _print_changes(done: "Ablated") -> None:
    split = f", split {done.split}" if done.split else ""
    table = _table(
        "class", "metric", "whole", "ablated", "difference", title=f"{escape(done.cohort)}{split}: {done.cases} cases"
    )
    for key, change in done.changes.items():
        metric, _, name = key.partition("/")
        table.add_row(escape(name), metric, *_cells(change))
    out.print(table)
    out.print(
        f"Zero were channels of {escape(', '.join(done.tensors))}.\n"
        f"Run {escape(done.run.experiment)}/{escape(done.run.name)} ({done.run.id[:8]}); per case: ablation/*.csv",
        soft_wrap=True,
    )


def _cells(change: "PairedDifference | None") -> tuple[str, str, str]:
    """Return both means and their difference, with its interval over subjects where there is one."""
    if change is None:
        return "-", "-", "-"
    interval = "" if change.low is None else f" [{change.low:+.3f}, {change.high:+.3f}]"
    return f"{change.first:.3f}", f"{change.second:.3f}", f"{change.difference:+.3f}{interval}"


def _print_probe(done: "Probed") -> None:
    report = done.report
    folds = len(report.layers[0].scores)
    title = f"Linear readout of {report.cases} cases, {folds} folds, chance {report.chance:.3f}"
    table = _table("layer", "features", report.metric, "spread over folds", title=title)
    for score in report.layers:
        table.add_row(escape(score.layer), str(score.features), f"{score.mean:.3f}", f"{score.spread:.3f}")
    out.print(table)
    out.print(
        f"Run {escape(done.run.experiment)}/{escape(done.run.name)} ({done.run.id[:8]}); figure: figures/probe.png",
        soft_wrap=True,
    )
