"""Write a run's weights as a file that any program opens."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dmx.cohort.files import atomic_file
from dmx.errors import CheckpointError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunInfo
from dmx.training.checkpoint import weights_sha256
from dmx.training.weights import weights_bytes
from dmx.transfer.layout import natural_key
from dmx.workflows.handed import WRAPPER
from dmx.workflows.session import Session
from dmx.workflows.trained import StoredCheckpoint, contract_of, stored_checkpoint

_TORCH = (".pth", ".pt")
_SAFETENSORS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to write, and where to.

    Attributes:
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        output: File that ends in ``.safetensors``, ``.pth`` or ``.pt``.
        checkpoint: Name of the checkpoint; ``None``: the best one, else the last one.
        strip: What to take away from the front of all names; ``None``: the ``network.`` that dmx puts before the names
            of a module that is not its own.
        prefix: What to put before all names.
        overwrite: Replace a file that is there.
        uri: Run store.
    """

    run: str
    output: Path
    checkpoint: str | None = None
    strip: str | None = None
    prefix: str = ""
    overwrite: bool = False
    uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        run: The run.
        checkpoint_name: ``best``, ``last``, …
        output: The file.
        tensors: Number of tensors in it.
        parameters: Number of values in it.
    """

    run: RunInfo
    checkpoint_name: str
    output: Path
    tensors: int
    parameters: int


def export(request: ExportRequest, session: Session) -> Exported:
    """Write the weights that a run predicts with as a plain state dict.

    With a moving average of the weights that is the averaged ones. The file is complete or absent.

    Raises:
        CheckpointError: The file's ending is unknown, it exists, the names do not begin as they should, or nothing can
            be written there.
        RunError: There is no such run or checkpoint.
    """
    _check_place(request)
    store = open_store(request.uri, session.root)
    stored = stored_checkpoint(store, request.run, checkpoint=request.checkpoint, root=session.root)
    state = renamed(stored.content.prediction_state, strip=request.strip, prefix=request.prefix)
    torch_file = request.output.suffix in _TORCH
    data = _torch_bytes(state) if torch_file else weights_bytes(state, metadata=_described(stored))
    try:
        with atomic_file(request.output) as stream:
            stream.write(data)
    except OSError as error:
        raise CheckpointError(f"'{request.output}' cannot be written: {error.strerror or error}.") from error
    return Exported(
        run=stored.run,
        checkpoint_name=stored.name,
        output=request.output,
        tensors=len(state),
        parameters=sum(tensor.numel() for tensor in state.values()),
    )


def _check_place(request: ExportRequest) -> None:
    output = request.output
    if output.suffix not in (_SAFETENSORS, *_TORCH):
        raise CheckpointError(
            f"The file must end in {_SAFETENSORS}, {' or '.join(_TORCH)}, got '{output.name}': its ending says in "
            "which form the weights are written."
        )
    if output.exists() and (output.is_dir() or not request.overwrite):
        raise CheckpointError(f"'{output}' exists already. Choose another name, or replace the file with --overwrite.")


def renamed(state: Mapping[str, Tensor], *, strip: str | None = None, prefix: str = "") -> dict[str, Tensor]:
    """Return a state dict under other names.

    Args:
        state: Tensors by name.
        strip: What to take away from the front of all names; ``None``: :data:`WRAPPER`, where all names have it.
        prefix: What to put before them.

    Raises:
        CheckpointError: A name does not begin with what is to be taken away.

    >>> list(renamed({"network.conv.weight": torch.ones(1)}, prefix="module."))
    ['module.conv.weight']
    """
    if strip is None:
        strip = WRAPPER if all(name.startswith(WRAPPER) for name in state) else ""
    other = next((name for name in state if not name.startswith(strip)), None)
    if other is not None:
        raise CheckpointError(f"--strip '{strip}' must be what all names begin with, but one is '{other}'.")
    # A checkpoint does not keep the order of the network; numbers by value come near it.
    names = sorted(state, key=natural_key)
    return {prefix + name.removeprefix(strip): state[name] for name in names}


def _torch_bytes(state: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    # Each tensor alone: a view would bring the whole storage that it belongs to.
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, buffer)
    return buffer.getvalue()


def _described(stored: StoredCheckpoint) -> dict[str, str]:
    """Return where the weights come from, for the header of the file."""
    manifest = stored.content.manifest
    contract = manifest["contract"]
    channels = contract_of(manifest).channels
    return {
        "format": "pt",
        "dmx.run_id": stored.run.id,
        "dmx.run": f"{stored.run.experiment}/{stored.run.name}",
        "dmx.checkpoint": stored.name,
        "dmx.epoch": str(manifest["epoch"]),
        "dmx.global_step": str(manifest["global_step"]),
        "dmx.channels": json.dumps(list(channels)),
        "dmx.classes": json.dumps(contract.get("classes", [])),
        **({"dmx.targets": json.dumps(contract["targets"])} if contract.get("targets") else {}),
        **({"dmx.regions": json.dumps(contract["regions"])} if contract.get("regions") else {}),
        "dmx.model": manifest["model"]["name"],
        "dmx.sha256": weights_sha256(manifest),
    }
