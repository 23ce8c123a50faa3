"""Activations as a file ``.act.h5``, in DNNBrain's layout.

A dataset per layer, named like it, [stimuli, channels, rows, columns] of float32; linear layers have one row and one
column. The names of the stimuli are the attribute ``stimID`` of the file. Layers of volumes without pooling are
[cases, channels, I, J, K], which DNNBrain does not have.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmx.errors import ConfigError, suggest
from dmx.evaluation.layer_masks import ALL, LayerMask
from dmx.evaluation.layer_outputs import Layers, Pooling, layer_outputs
from dmx.model.network import TrainableNetwork

if TYPE_CHECKING:
    import h5py

SUFFIX: Final = ".act.h5"
_NAMES: Final = "stimID"
# HDF5 1.8 and later read it; older formats cannot hold more than 64 KiB of names.
_FORMAT: Final = ("v108", "v108")


@dataclass(frozen=True, kw_only=True)
class WrittenActivations:
    """What a file holds.

    Attributes:
        path: The file.
        count: Stimuli or cases.
        shapes: Layer → shape of its dataset.
    """

    path: Path
    count: int
    shapes: Mapping[str, tuple[int, ...]]


def stream_activations(
    network: TrainableNetwork,
    batches: Iterable[Sequence[Tensor]],
    layers: Layers,
    path: Path,
    *,
    names: Sequence[str],
    pool: Pooling | None = None,
) -> WrittenActivations:
    """Write the activations of layers; the data is run through once for all of them, and never held as a whole.

    Args:
        network: The network; batches are brought to its device.
        batches: For each batch one tensor [N, C, …] per patch, in the order of the names.
        layers: Names of layers, or for each name which part of it; see
            :func:`~dmx.evaluation.layer_outputs.layer_outputs`.
        path: Where to; must end with ``.act.h5``. The file is complete or absent; one that is there is replaced.
        names: Name of each stimulus or case: as many as the batches hold.
        pool: How rows and columns become one number per channel; None: they are kept.

    Raises:
        ConfigError: The name is wrong, h5py is missing, or the batches hold more or fewer than the names.
        ModelError: A layer does not exist, or its output has no channels.
    """
    with ActivationWriter(path, names=names) as writer:
        for outputs in layer_outputs(network, batches, layers, pool=pool):
            writer.add(outputs)
        return writer.finish()


class ActivationWriter:
    """Write a file batch by batch; it appears under its name when :meth:`finish` is called, or not at all.

    Args:
        path: Where to; must end with ``.act.h5``.
        names: Name of each stimulus, in the order in which they come.

    Raises:
        ConfigError: The name is wrong, the folder cannot be written, or h5py is missing.
    """

    def __init__(self, path: Path, *, names: Sequence[str]) -> None:
        _check_name(path)
        self.path = path
        self._names = [str(name) for name in names]
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._done = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        hdf5 = _h5py()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: h5py.File = hdf5.File(self._temporary, "w", libver=_FORMAT)
        except OSError as error:
            raise ConfigError(f"The activations '{path}' cannot be written: {error.strerror or error}.") from error

    def __enter__(self) -> "ActivationWriter":
        return self

    def add(self, outputs: Mapping[str, Tensor]) -> None:
        """Write the outputs of one batch, [N, channels, …] for each layer.

        Raises:
            ConfigError: There are more than names.
        """
        count = len(next(iter(outputs.values())))
        end = self._done + count
        if end > len(self._names):
            raise ConfigError(f"The batches hold more than the {len(self._names)} stimuli that were named.")
        for layer, output in outputs.items():
            if layer not in self._file:
                # All of it at once: the file grows to its final size, and later batches are written in place.
                self._shapes[layer] = (len(self._names), *output.shape[1:])
                self._file.create_dataset(layer, shape=self._shapes[layer], dtype="float32")
            dataset = self._file[layer]
            if dataset.shape[1:] != tuple(output.shape[1:]):
                raise ConfigError(
                    f"Layer '{layer}' gives {tuple(output.shape[1:])} after {tuple(dataset.shape[1:])}: the stimuli "
                    "differ in size. Give all of them one size, or pool."
                )
            dataset[self._done : end] = output.numpy()
        self._done = end

    def finish(self) -> WrittenActivations:
        """Complete the file.

        Raises:
            ConfigError: There were fewer stimuli than names.
        """
        if self._done < len(self._names):
            raise ConfigError(f"The batches hold {self._done} of the {len(self._names)} stimuli that were named.")
        self._file.attrs[_NAMES] = np.array(self._names, dtype=_h5py().string_dtype())
        self._file.close()
        self._temporary.replace(self.path)
        return WrittenActivations(path=self.path, count=self._done, shapes=self._shapes)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def read_activations(path: Path, masks: Mapping[str, LayerMask] | None = None) -> dict[str, NDArray[np.float32]]:
    """Return activations by layer.

    Args:
        path: A file ``.act.h5``, of DNNBrain too.
        masks: Which part of which layers; None: all of all.

    Raises:
        ConfigError: The file is missing, is something else, or lacks a layer.
        ModelError: A layer has no such channel, row or column.
    """
    with _opened(path) as file:
        layers = dict.fromkeys(file, ALL) if masks is None else masks
        found = {}
        for layer, mask in layers.items():
            if layer not in file:
                raise ConfigError(
                    f"'{path}' holds no layer '{layer}'.{suggest(layer, file)} It holds: {', '.join(file)}."
                )
            values = torch.from_numpy(file[layer][()])
            found[layer] = mask.apply(values, layer=layer).numpy()
    return found


def read_stimulus_names(path: Path) -> tuple[str, ...]:
    """Return the names of a file's stimuli; empty where it holds none, as in those that DNNBrain wrote."""
    with _opened(path) as file:
        return tuple(str(name) for name in file.attrs.get(_NAMES, ()))


def _opened(path: Path) -> Any:
    _check_name(path)
    try:
        return _h5py().File(path, "r")
    except OSError as error:
        why = "it does not exist" if not path.exists() else str(error)
        raise ConfigError(f"The activations '{path}' cannot be read: {why}.") from error


def _check_name(path: Path) -> None:
    if not path.name.endswith(SUFFIX):
        raise ConfigError(f"A file of activations must end with {SUFFIX}, got '{path}'.")


def _h5py() -> Any:
    with suppress(ImportError):
        import h5py

        return h5py
    raise ConfigError(
        "Files of activations need h5py, which is not installed. Run: pip install 'dmx-transfer[inside]'."
    )
