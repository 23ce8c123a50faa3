"""``dmx model``: look at a network before it trains; bring in one that another tool has trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from dmx.cli.console import out
from dmx.cli.ui import StoreAddress
from dmx.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmx.model.show import LayerReport, ModelReport
    from dmx.workflows.import_run import ImportedModel
    from dmx.workflows.model import NamedLayer

app = typer.Typer(help="Look at a network, or bring in one that another tool has trained.", no_args_is_help=True)
importers = typer.Typer(help="Make a run of a network that another tool has trained.", no_args_is_help=True)
app.add_typer(importers, name="import")

_EXPERIMENTS = (".yaml", ".yml")
_UNITS = ("", " k", " M", " G", " T")

# What the importers of all tools take.
ChannelNames = Annotated[
    str | None, typer.Option("--channels", metavar="NAMES", help="Channels in the order of the network: flair,t1c")
]
ClassNames = Annotated[
    str | None, typer.Option("--classes", metavar="NAMES", help="Classes by label: background,lesion")
]
ImportChanges = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change preprocess, prediction or name. May be repeated."),
]
ImportName = Annotated[str | None, typer.Option("--name", help="Name of the run.")]


@importers.command()
def deepmedic(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="DeepMedic's model configuration.")],
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", metavar="PREFIX", help="Path of the checkpoint, without '.index'.")
    ],
    train_config: Annotated[
        Path | None,
        typer.Option("--train-config", metavar="FILE", help="Its training configuration, for how intensities went in."),
    ] = None,
    channels: ChannelNames = None,
    classes: ClassNames = None,
    overrides: ImportChanges = None,
    name: ImportName = None,
    store: StoreAddress = None,
) -> None:
    """Bring in a network of DeepMedic v0.8: it predicts what it predicted there."""
    from dmx.cli.report import TerminalReport, print_result
    from dmx.tracking.location import project_root
    from dmx.workflows.import_model import ImportRequest, import_deepmedic_model
    from dmx.workflows.session import Session

    with TerminalReport() as report:
        request = ImportRequest(
            config=config,
            checkpoint=checkpoint,
            train_config=train_config,
            channels=_names(channels),
            classes=_names(classes),
            overrides=overrides or (),
            name=name,
            uri=store,
        )
        done = import_deepmedic_model(request, Session(root=project_root(Path.cwd()), report=report))
    print_result(_came_in(done, "variables"))


@importers.command()
def nnunet(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Folder of a trained model of nnU-Net v2, or of one of its folds."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="FILE", help="The checkpoint; else checkpoint_final.pth of FOLDER."),
    ] = None,
    plans: Annotated[
        Path | None,
        typer.Option("--plans", metavar="FILE", help="plans.json; else the one near the checkpoint, else in it."),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option("--dataset", metavar="FILE", help="dataset.json; else the one near the checkpoint, else in it."),
    ] = None,
    configuration: Annotated[
        str | None, typer.Option("--configuration", metavar="NAME", help="3d_fullres; else as the checkpoint says.")
    ] = None,
    channels: ChannelNames = None,
    classes: ClassNames = None,
    overrides: ImportChanges = None,
    name: ImportName = None,
    store: StoreAddress = None,
) -> None:
    """Bring in a 3D network of nnU-Net v2: it predicts what it predicted there."""
    from dmx.cli.report import TerminalReport, print_result
    from dmx.tracking.location import project_root
    from dmx.workflows.import_nnunet import NnUNetImportRequest, import_nnunet_model
    from dmx.workflows.session import Session

    with TerminalReport() as report:
        request = NnUNetImportRequest(
            folder=folder,
            checkpoint=checkpoint,
            plans=plans,
            dataset=dataset,
            configuration=configuration,
            channels=_names(channels),
            classes=_names(classes),
            overrides=overrides or (),
            name=name,
            uri=store,
        )
        done = import_nnunet_model(request, Session(root=project_root(Path.cwd()), report=report))
    print_result(_came_in(done, "tensors"))


def _came_in(done: "ImportedModel", what: str) -> str:
    """Return what an import has made, and what to do with it."""
    trained = "" if done.epochs is None else f", trained for {done.epochs} epochs"
    return (
        f"Run {done.run.experiment}/{done.run.name} ({done.run.id[:8]}) holds the network: {done.tensors} {what}, "
        f"{done.parameters:,} parameters{trained}.\n"
        f"Predict:  dmx predict --from-run {done.run.id[:8]} COHORT_OR_FILES -o DIR\n"
        f"Score:    dmx evaluate --from-run {done.run.id[:8]} COHORT"
    )


def _names(text: str | None) -> tuple[str, ...]:
    """Return names that are separated by commas."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


@app.command()
def show(
    network: Annotated[
        str, typer.Argument(metavar="EXPERIMENT_OR_RUN", help="YAML file of an experiment, or a run that has trained.")
    ],
    segment: Annotated[
        int | None,
        typer.Option(min=1, max=4096, help="Segment size in voxels on each axis; else that of the training."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Segments per pass, for the memory; else as in training.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the experiment. May be repeated."),
    ] = None,
    store: StoreAddress = None,
) -> None:
    """Show layers, receptive fields, parameters, multiply-adds and memory of a network."""
    from dmx.config.load import load_experiment
    from dmx.geometry import triple
    from dmx.model.show import ModelReport
    from dmx.tracking.location import project_root
    from dmx.workflows.model import describe_experiment, describe_run

    size = triple(segment) if segment else None
    report: ModelReport | tuple[NamedLayer, ...]
    if network.endswith(_EXPERIMENTS) or Path(network).is_file():
        resolved = load_experiment(Path(network), overrides or ())
        report = describe_experiment(resolved, segment=size, batch_size=batch_size)
    elif overrides:
        raise ConfigError("--set changes an experiment; a run's network is as it was trained.")
    else:
        root = project_root(Path.cwd())
        report = describe_run(network, segment=size, batch_size=batch_size, uri=store, root=root)
    if isinstance(report, ModelReport):
        out.print(_layer_table(report.layers))
        out.print(_summary(report))
    else:
        out.print(_name_table(report))


def _name_table(layers: "Sequence[NamedLayer]") -> Table:
    """Return one row per layer of a network that scores whole images or volumes."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("also")
    table.add_column("parameters", justify="right")
    for layer in layers:
        name = Text(layer.name)
        if layer.is_head:
            name.append(" (head)", style="bold")
        table.add_row(name, Text(", ".join(layer.short_names)), f"{layer.parameters:,}")
    return table


def _layer_table(layers: "Sequence[LayerReport]") -> Table:
    """Return one row per layer, one part per pathway; narrow enough for 80 columns."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    # Without parallel pathways the depth is the number.
    parallel = any(layer.depth != layer.position for layer in layers)
    table.add_column("no", justify="right")
    table.add_column("depth" if parallel else "", justify="right")
    for heading in ("kernel", "channels", "output", "parameters", "mult-adds"):
        table.add_column(heading, justify="right", no_wrap=True)
    pathway = None
    for layer in layers:
        if layer.pathway != pathway:
            pathway = layer.pathway
            table.add_row(Text(pathway, style="bold cyan"))
        name = Text(f"  {layer.name.removeprefix(f'{pathway}.')}")
        if layer.is_head and layer.name != "head":
            name.append(" (head)", style="bold")
        channels = "" if layer.in_channels is None else f"{layer.in_channels}→{layer.out_channels}"
        table.add_row(
            name,
            str(layer.position),
            str(layer.depth) if parallel else "",
            _kernels(layer.kernels),
            channels,
            _size(layer.output_shape),
            f"{layer.parameters:,}",
            _count(layer.multiply_adds) if layer.multiply_adds else "",
        )
    return table


def _summary(report: "ModelReport") -> Table:
    """Return the network as a whole."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for pathway in report.pathways:
        grid = "" if pathway.receptive_field_scan is None else f" = {_size(pathway.receptive_field_scan)} of the scan"
        factor = f" at factor {_size(pathway.factor)}" if max(pathway.factor) > 1 else ""
        own = f"{_size(pathway.receptive_field)} voxels{factor}"
        table.add_row(f"sees {pathway.name}", own + (grid if factor else ""))
    plan = report.plan
    table.add_row("segment", f"{_size(plan.shape)} voxels → output {_size(plan.output_shape)}")
    table.add_row("parameters", f"{report.parameters:,} trainable (kernels, biases, scales, slopes)")
    table.add_row("multiply-adds", f"{_count(report.multiply_adds)} per segment, in kernels")
    segments = f"{report.batch_size} segment{'s' if report.batch_size > 1 else ''} per pass"
    table.add_row("memory", f"{_bytes(report.training_bytes)} to train, {_bytes(report.prediction_bytes)} to predict")
    table.add_row("", f"{segments}; all tensors in single precision; libraries' working space comes on top")
    return table


def _size(voxels: "Sequence[int]") -> str:
    return "×".join(map(str, voxels))  # noqa: RUF001  (the sign of sizes)


def _kernels(kernels: "Sequence[Sequence[int]]") -> str:
    """Return a kernel's size; factors are joined by a plus."""
    return "+".join(_size(kernel) for kernel in kernels)


def _count(number: float) -> str:
    """Return a number with three digits and a unit.

    >>> _count(16_888_447_350)
    '16.9 G'
    """
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            break
        number /= 1000
    return f"{number:.3g}{unit}"


def _bytes(number: int) -> str:
    """Return bytes as GiB or MiB."""
    gib = number / 2**30
    return f"{gib:.2f} GiB" if gib >= 1 else f"{number / 2**20:.0f} MiB"
