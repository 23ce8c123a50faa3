"""Networks out of runs."""

from pathlib import Path
from typing import TypeVar, overload

from torch import nn

from dmx.api.places import Logged, locate, open_place, run_name
from dmx.errors import CheckpointError
from dmx.model.image_network import ImageNetwork
from dmx.model.module import ModuleNetwork
from dmx.workflows.export import Exported, ExportRequest, renamed
from dmx.workflows.export import export as export_run
from dmx.workflows.session import Session
from dmx.workflows.trained import open_network, stored_checkpoint

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
        network = open_network(opened, run_name(run), checkpoint=checkpoint, root=session.root).network
        return network.network if isinstance(network, ModuleNetwork | ImageNetwork) else network
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
    return into.eval()


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
