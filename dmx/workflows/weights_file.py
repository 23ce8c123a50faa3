"""Weights that another tool wrote: safetensors, or a torch file that opens without executing anything."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from dmx.cohort.digest import file_sha256
from dmx.errors import CheckpointError, suggest
from dmx.model.nnunet_checkpoint import as_nnunet_checkpoint
from dmx.model.torch_file import load_torch_file
from dmx.training.weights import WeightsFile
from dmx.transfer.apply import TensorReader
from dmx.transfer.describe import NetworkSketch, TensorInfo
from dmx.transfer.file_kind import is_safetensors, require_weights
from dmx.transfer.header import read_header
from dmx.transfer.layout import is_buffer, sketch_tensors
from dmx.transfer.order import without_order

AVERAGED = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "teacher", "shadow", "params_ema")
"""Keys under which tools put weights averaged over the training, which they predict with."""

WRAPPERS = (
    *AVERAGED,
    *("state_dict", "model_state_dict", "model_state", "network_weights", "network", "net", "model", "module"),
    *("weights", "params", "checkpoint", "student"),
)
"""Keys under which tools put the state dict, the one that is taken first."""

KEY_ADVICE = "name another with --from-key, or 'key' of the source"

_SHOWN = 8
_DEEPEST = 4

# What is no network, though it may hold tensors by name.
_STATES = (
    *("optimizer", "optimizer_state", "optimizer_state_dict", "optimizer_states", "optim", "grad_scaler_state"),
    *("lr_scheduler", "lr_schedulers", "scheduler", "scaler", "callbacks", "loops", "init_args", "logging", "args"),
)


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """A network in a file.

    Attributes:
        sketch: Names and shapes.
        reader: Gives a tensor by name.
        sha256: Hash of the file.
        wrapper: Keys inside of which the state dict was found, joined by dots; empty: none.
        beside: Other keys under which the file has weights.
        turned: Whether kernels were turned from nnU-Net's order of axes.
    """

    sketch: NetworkSketch
    reader: TensorReader
    sha256: str
    wrapper: str = ""
    beside: tuple[str, ...] = ()
    turned: bool = False

    def sentences(self) -> list[str]:
        """Return what is to be said about how the network was found."""
        name = self.sketch.name
        told = [f"The state dict of '{name}' was found inside of '{self.wrapper}'."] if self.wrapper else []
        if self.beside:
            others = ", ".join(f"'{key}'" for key in self.beside)
            told = [
                f"The weights of '{name}' are those of '{self.wrapper}'; the file also has {others} ({KEY_ADVICE})."
            ]
        if self.turned:
            told.append(
                f"'{name}' is a checkpoint of nnU-Net: its kernels were turned from (z, y, x), as its plans say, to "
                "(i, j, k). nnU-Net mostly leaves scans in the axes of their files: preprocess.orientation native."
            )
        return told


def open_weights_file(path: Path, *, name: str, for_scans: bool = False, key: str | None = None) -> FileSource:
    """Open a file of weights.

    Args:
        path: Safetensors, or a file of ``torch.save``; its content decides, not its ending.
        name: What plan and messages call it.
        for_scans: Turn the kernels of a checkpoint of nnU-Net, which reads (z, y, x), for a network of dmx, which reads
            scans as (i, j, k).
        key: Key of the state dict in the file, with dots between keys; ``None``: the first of :data:`WRAPPERS` that
            holds one, so averaged weights before others.

    Raises:
        CheckpointError: There is no such file, it holds anything but tensors and plain values, or no such key.
    """
    if not path.is_file():
        raise CheckpointError(f"The weights '{path}' do not exist.")
    sha256 = file_sha256(path)
    require_weights(path)
    if is_safetensors(path):
        if key is not None:
            raise CheckpointError(
                f"'{path}' is safetensors, which has no keys inside of which weights lie, got '{key}'."
            )
        sketch = without_order(sketch_tensors(read_header(path), name=name))
        return FileSource(sketch=sketch, reader=WeightsFile(path), sha256=sha256)
    content = load_torch_file(path)
    checkpoint = as_nnunet_checkpoint(content) if for_scans and key is None else None
    beside: tuple[str, ...] = ()
    if checkpoint is not None:
        state, wrapper = checkpoint.turned(), f"network_weights.{checkpoint.prefix}".strip(".")
    else:
        state, wrapper, beside = _state_dict(content, path, key)
    return FileSource(
        sketch=sketch_state(state, name=name),
        reader=state,
        sha256=sha256,
        wrapper=wrapper,
        beside=beside,
        turned=checkpoint is not None,
    )


def sketch_state(
    state: Mapping[str, Tensor], *, name: str, channels: Sequence[str] = (), classes: Sequence[str] = ()
) -> NetworkSketch:
    """Return the sketch of a state dict; what is learned in it is told by the names.

    Args:
        state: Tensors by name, in the order of the network.
        name: What plan and messages call it.
        channels: Names of the input channels, if they are known.
        classes: Names of the classes, if they are known.
    """
    infos = [
        TensorInfo(key, tuple(t.shape), str(t.dtype).removeprefix("torch."), not is_buffer(key))
        for key, t in state.items()
    ]
    return sketch_tensors(infos, name=name, channels=channels, classes=classes)


def _state_dict(content: Any, path: Path, key: str | None) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Return the state dict of a file, the keys inside of which it lies, and other keys that have one.

    Raises:
        CheckpointError: There is none, none of that key, or several and nothing says which.
    """
    found = _state_dicts(content)
    if key is not None:
        inside = [place for place in found if place == key or place.startswith(f"{key}.")]
        if not inside:
            raise CheckpointError(f"'{path}' has no weights in '{key}'.{suggest(key, found)} It has: {_listed(found)}.")
        return found[inside[0]], inside[0], ()
    if not found:
        raise CheckpointError(
            f"'{path}' holds no state dict: looked for tensors by name, also inside of {', '.join(WRAPPERS)}."
        )
    known = [place for place in found if all(part in WRAPPERS for part in place.split(".") if part)]
    if not known and len(found) > 1:
        raise CheckpointError(
            f"'{path}' has several networks: {_listed(found)}. Name one: --from-key, or 'key' of the source."
        )
    chosen = next(iter(known or found))
    # Some weights of a loss are no network.
    enough = len(found[chosen]) / 4
    return found[chosen], chosen, tuple(p for p, state in found.items() if p != chosen and len(state) >= enough)


def _listed(places: Collection[str]) -> str:
    shown = [place or "tensors without a key" for place in islice(places, _SHOWN)]
    return ", ".join([*shown, *([f"{len(places) - _SHOWN} more"] if len(places) > _SHOWN else [])]) or "none"


def _state_dicts(content: Any, depth: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return the state dicts inside of containers by their keys, joined by dots, the preferred ones first."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    names = [key for key in WRAPPERS if key in content]
    for key in [*names, *(key for key in content if isinstance(key, str) and key not in names and key not in _STATES)]:
        for place, state in _state_dicts(content[key], depth + 1).items():
            found[f"{key}.{place}".rstrip(".")] = state
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    # A counter of steps is no network.
    if any(value.ndim for value in tensors.values()):
        wrapped = any(place.partition(".")[0] in WRAPPERS for place in found)
        found = {**found, "": tensors} if wrapped else {"": tensors, **found}
    return found
