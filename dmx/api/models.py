"""Networks out of runs."""

from pathlib import Path
from typing import TypeVar, overload

from torch import nn

from dmx.api.places import Logged, locate, open_place, run_name
from dmx.errors import CheckpointError
from dmx.model.image_network import ImageNetwork
from dmx.model.module import ModuleNetwork
from dmx.training.checkpoint import weights_sha256
from dmx.workflows.export import Exported, ExportRequest, renamed
from dmx.workflows.export import export as export_run
from dmx.workflows.provenance import RunOrigin, remember
from dmx.workflows.session import Session
from dmx.workflows.trained import (
    StoredCheckpoint,
    TrainedNetwork,
    open_network,
    stored_checkpoint,
)

Module = TypeVar("Module", bound=nn.Module)

_SHOWN = 4


@overload
def load_model(run: str, *, checkpoint: str | None = None, store: str | Path | None = None) -> nn.Module: ...


@overload
def load_model(run: str, *, checkpoint: str | None = None, store: str | Path | None = None, into: Module) -> Module: ...


def load_model(
    run: str, *, checkpoint: str | None = None, store: str | Path | None = None, into: nn.Module | None = None
) -> nn.Module:
    """Return the network of a run in inference mode, on the CPU, with the weights that it predicts with.

    A multi-scale network comes as the run trained it: it reads a list of patches. Any other network comes as the plain
    module, which reads one tensor.

    The module remembers where its weights come from, also in copies and in networks that it becomes a part of: a run
    that ``dmx.train`` makes with it names its source, and held-out cases are compared with those of the source.

    Args:
        run: ``runs:/<id>``, an id, the start of one, ``experiment/run-name`` or ``experiment/last``.
        checkpoint: ``best``, ``last``, ``initial`` or ``epoch=N``; ``None``: the best one, else the last one.
        store: Address of the run store or a folder ``mlruns``; ``None``: as on the command line.
        into: A module made by hand, which receives the weights and is returned. A run that was made from Python with a
            module of one's own needs it: the run knows the module's weights, not how it is built.

    Raises:
        RunError: There is no such run or checkpoint.
        CheckpointError: The checkpoint is damaged, or its weights do not fit the module.
    """
    opened, session = open_place(store)
    if into is None:
        trained = open_network(opened, run_name(run), checkpoint=checkpoint, root=session.root)
        network = trained.network
        model = network.network if isinstance(network, ModuleNetwork | ImageNetwork) else network
        remember(model, trained_origin(trained, opened.uri, session.root))
        return model
    stored = stored_checkpoint(opened, run_name(run), checkpoint=checkpoint, root=session.root)
    wanted = into.state_dict().keys()
    # A network of dmx around a module has the wrapper's names itself, the module alone has not.
    named = (dict(stored.content.prediction_state), renamed(stored.content.prediction_state))
    state = max(named, key=lambda names: len(wanted & names.keys()))
    problems = _misfits({name: tuple(tensor.shape) for name, tensor in state.items()}, into)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CheckpointError(
            f"Checkpoint '{stored.name}' of run '{stored.run.experiment}/{stored.run.name}' does not fit the module: "
            f"{'; '.join(problems[:_SHOWN])}{more}. dmx.plan_transfer gives a module of another shape what fits."
        )
    into.load_state_dict(state)
    remember(into, stored_origin(stored, opened.uri, session.root))
    return into.eval()


def trained_origin(trained: TrainedNetwork, store: str, root: Path) -> RunOrigin:
    """Return a run's network as what weights come from."""
    return RunOrigin(
        run=trained.run,
        store=store,
        root=root,
        name=trained.checkpoint_name,
        checkpoint=f"checkpoints/{trained.folder.name}",
        sha256=trained.sha256,
        epoch=trained.manifest["epoch"],
        global_step=trained.manifest["global_step"],
    )


def stored_origin(stored: StoredCheckpoint, store: str, root: Path) -> RunOrigin:
    """Return a checkpoint as what weights come from."""
    manifest = stored.content.manifest
    return RunOrigin(
        run=stored.run,
        store=store,
        root=root,
        name=stored.name,
        checkpoint=f"checkpoints/{stored.folder.name}",
        sha256=weights_sha256(manifest),
        epoch=manifest["epoch"],
        global_step=manifest["global_step"],
    )


def _misfits(state: dict[str, tuple[int, ...]], module: nn.Module) -> list[str]:
    """Return what keeps weights from being the module's, one phrase per tensor."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in wanted]
    problems += [
        f"{name} is {list(state[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if state.get(name, shape) != shape
    ]
    return problems


def export(
    run: str,
    output: str | Path,
    *,
    checkpoint: str | None = None,
    strip: str | None = None,
    prefix: str = "",
    overwrite: bool = False,
    store: str | Path | None = None,
) -> Path:
    """Write a run's weights as a plain state dict; the same as ``dmx export``.

    Args:
        run: As for :func:`load_model`.
        output: File that ends in ``.safetensors``, ``.pth`` or ``.pt`` (opens with ``weights_only=True``).
        checkpoint: As for :func:`load_model`.
        strip: What to take away from the front of all names; ``None``: the ``network.`` that dmx puts there.
        prefix: What to put before all names.
        overwrite: Replace a file that is there.
        store: As for :func:`load_model`.

    Returns:
        The file.

    Raises:
        CheckpointError: The file cannot be written, or exists.
        RunError: There is no such run or checkpoint.
    """
    uri, root = locate(store)
    request = ExportRequest(
        run=run_name(run),
        output=Path(output),
        checkpoint=checkpoint,
        strip=strip,
        prefix=prefix,
        overwrite=overwrite,
        uri=uri,
    )
    done: Exported = export_run(request, Session(root=root, report=Logged()))
    return done.output
