"""Weights that another tool wrote: safetensors, or a torch file that opens without executing anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dmx.cohort.digest import file_sha256
from dmx.errors import CheckpointError
from dmx.model.nnunet_checkpoint import as_nnunet_checkpoint
from dmx.model.torch_file import load_torch_file
from dmx.training.checkpoint import WeightsFile
from dmx.transfer.apply import TensorReader
from dmx.transfer.describe import NetworkSketch, TensorInfo
from dmx.transfer.header import read_header
from dmx.transfer.layout import is_buffer, sketch_tensors
from dmx.transfer.order import without_order

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
        turned: Whether kernels were turned from nnU-Net's order of axes.
    """

    sketch: NetworkSketch
    reader: TensorReader
    sha256: str
    wrapper: str = ""
    turned: bool = False

    def sentences(self) -> list[str]:
        """Return what is to be said about how the network was found."""
        name = self.sketch.name
        told = [f"The state dict of '{name}' was found inside of '{self.wrapper}'."] if self.wrapper else []
        if self.turned:
            told.append(
                f"'{name}' is a checkpoint of nnU-Net: its kernels were turned from (z, y, x), as its plans say, to "
                "(i, j, k). nnU-Net mostly leaves scans in the axes of their files: preprocess.orientation native."
            )
        return told


def open_weights_file(path: Path, *, name: str, for_scans: bool = False) -> FileSource:
    """Open a file of weights.

    Args:
        path: ``.safetensors``, or a file of ``torch.save``.
        name: What plan and messages call it.
        for_scans: Turn the kernels of a checkpoint of nnU-Net, which reads (z, y, x), for a network of dmx, which reads
            scans as (i, j, k).

    Raises:
        CheckpointError: There is no such file, or it holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"The weights '{path}' do not exist.")
    sha256 = file_sha256(path)
    if path.suffix == ".safetensors":
        sketch = without_order(sketch_tensors(read_header(path), name=name))
        return FileSource(sketch=sketch, reader=WeightsFile(path), sha256=sha256)
    content = load_torch_file(path)
    checkpoint = as_nnunet_checkpoint(content) if for_scans else None
    if checkpoint is not None:
        state, wrapper = checkpoint.turned(), f"network_weights.{checkpoint.prefix}".strip(".")
    else:
        state, wrapper = _state_dict(content, path)
    return FileSource(
        sketch=sketch_state(state, name=name),
        reader=state,
        sha256=sha256,
        wrapper=wrapper,
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
