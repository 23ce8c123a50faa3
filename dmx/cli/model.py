"""``dmx model``: look at a network before it trains; bring in one that another tool has trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dmx.cli.config import Trust
from dmx.cli.layers import print_network
from dmx.cli.ui import StoreAddress
from dmx.errors import ConfigError

if TYPE_CHECKING:
    from dmx.workflows.import_run import ImportedModel

app = typer.Typer(help="Look at a network, or bring in one that another tool has trained.", no_args_is_help=True)
importers = typer.Typer(help="Make a run of a network that another tool has trained.", no_args_is_help=True)
app.add_typer(importers, name="import")

_EXPERIMENTS = (".yaml", ".yml")

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
        typer.Option(min=1, max=4096, help="Size of a segment, image or volume on each axis; else as in training."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Segments, images or volumes per pass, for the memory."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the experiment. May be repeated."),
    ] = None,
    store: StoreAddress = None,
    trust: Trust = None,
) -> None:
    """Show layers, receptive fields, parameters, multiply-adds and memory of a network."""
    from dmx.config.load import load_experiment
    from dmx.geometry import triple
    from dmx.tracking.location import project_root
    from dmx.workflows.model import describe_experiment, describe_run

    size = triple(segment) if segment else None
    if network.endswith(_EXPERIMENTS) or Path(network).is_file():
        resolved = load_experiment(Path(network), overrides or ())
        report = describe_experiment(resolved, segment=size, batch_size=batch_size)
    elif overrides:
        raise ConfigError("--set changes an experiment; a run's network is as it was trained.")
    else:
        root = project_root(Path.cwd())
        report = describe_run(network, segment=size, batch_size=batch_size, uri=store, root=root)
    print_network(report)
