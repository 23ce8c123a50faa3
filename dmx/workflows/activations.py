"""Write what layers give for cases to a file, as a run."""

from dataclasses import dataclass
from pathlib import Path

from dmx.errors import ConfigError
from dmx.evaluation.activations import ActivationWriter, WrittenActivations
from dmx.evaluation.layer_outputs import chosen_layers
from dmx.tracking.history import write_table
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.training.device import resolve_device
from dmx.workflows.inside import LayerRequest, layer_data
from dmx.workflows.privacy import hiding
from dmx.workflows.session import Session
from dmx.workflows.start import source_params, trained_tags
from dmx.workflows.trained import open_network


@dataclass(frozen=True, kw_only=True)
class ActivationsRequest(LayerRequest):
    """What to write, and where to.

    Attributes:
        output: File that ends with ``.act.h5``.
        overwrite: Replace a file that is there.
    """

    output: Path
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What came out.

    Attributes:
        run: The run.
        file: The file: its path, number of cases, and the shape of each layer's dataset.
    """

    run: RunInfo
    file: WrittenActivations


def activations(request: ActivationsRequest, session: Session) -> Activations:
    """Write the outputs of layers for cases; each case runs through the network once for all layers.

    Raises:
        DmxError: Something that the user can mend, before the first case whenever it can be known before.
    """
    if request.output.exists() and not request.overwrite:
        raise ConfigError(f"'{request.output}' exists. Give another file, or --overwrite.")
    device = resolve_device(request.device)
    store = open_store(request.uri, session.root)
    trained = open_network(store, request.run, checkpoint=request.checkpoint, root=session.root)
    modules, _ = chosen_layers(trained.network, request.layers)
    data = layer_data(trained, request, device, session)
    hide = hiding(trained.experiment, data.cohort.cases, session.root)
    new = NewRun(
        experiment=trained.run.experiment,
        kind="activations",
        words=hide(data.name),
        name=request.name,
        params={
            "cohort": hide(data.name),
            "split": request.split or "all",
            "cases": len(data.names),
            "layers": ", ".join(modules),
            "pool": data.pool or "none",
            **source_params(trained),
        },
        tags=trained_tags(trained),
    )
    # A file that cannot be written is known before there is a run.
    with (
        ActivationWriter(request.output, names=data.names) as writer,
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hide),
    ):
        done = 0
        for outputs in data.outputs(request.layers):
            session.report.progress("reading layers", done, len(data.names))
            writer.add(outputs)
            done += len(next(iter(outputs.values())))
        session.report.progress("reading layers", len(data.names), len(data.names))
        written = writer.finish()
        _log(run, written)
        return Activations(run=run.info, file=written)


def _log(run: ActiveRun, written: WrittenActivations) -> None:
    with run.guarded("activations"):
        rows: list[dict[str, object]] = [
            {"layer": layer, "shape": "x".join(map(str, shape)), "file": written.path.name}
            for layer, shape in written.shapes.items()
        ]
        write_table(run.files / "activations" / "layers.csv", rows)
        run.log_file("activations")
