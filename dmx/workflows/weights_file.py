"""Weights that another tool wrote: safetensors, or a torch file that opens without executing anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmx.cohort.digest import file_sha256
from dmx.errors import CheckpointError
from dmx.training.checkpoint import WeightsFile
from dmx.transfer.apply import TensorReader
from dmx.transfer.describe import NetworkSketch, TensorInfo
from dmx.transfer.header import read_header
from dmx.transfer.layout import is_buffer, sketch_tensors

WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "net", "model", "module")
"""Keys under which tools put the state dict."""


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """A network in a file.

    Attributes:
        sketch: Names and shapes.
        reader: Gives a tensor by name.
        sha256: Hash of the file.
        wrapper: Keys inside of which the state dict was found, joined by dots; empty: none.
    """

    sketch: NetworkSketch
    reader: TensorReader
    sha256: str
    wrapper: str = ""


def open_weights_file(path: Path, *, name: str) -> FileSource:
    """Open a file of weights.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``.
        name: What plan and messages call it.

    Raises:
        CheckpointError: There is no such file, or it holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"The weights '{path}' do not exist.")
    sha256 = file_sha256(path)
    if path.suffix == ".safetensors":
        return FileSource(sketch=sketch_tensors(read_header(path), name=name), reader=WeightsFile(path), sha256=sha256)
    state, wrapper = _state_dict(_load(path), path)
    return FileSource(sketch=sketch_state(state, name=name), reader=state, sha256=sha256, wrapper=wrapper)


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


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"'{path}' cannot be opened without executing code, or is no torch file. Save its state dict alone "
            f"(torch.save(model.state_dict(), …) or safetensors). torch says: {str(error).splitlines()[0]}"
        ) from error


def _state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the state dict inside of usual wrappers, and the wrappers' keys."""
    keys: list[str] = []
    while isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if tensors and wrapper is None:
            return tensors, ".".join(keys)
        if wrapper is None:
            break
        keys.append(wrapper)
        content = content[wrapper]
    raise CheckpointError(
        f"'{path}' holds no state dict: looked for tensors by name, also inside of {', '.join(WRAPPERS)}."
    )
