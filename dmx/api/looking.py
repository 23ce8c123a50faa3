"""Look inside networks: what layers give, what channels do, what can be read out of layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dmx.api.places import Logged, locate, run_name
from dmx.errors import ConfigError, ModelError
from dmx.evaluation.ablation import ablated as channels_off
from dmx.evaluation.activations import read_activations
from dmx.evaluation.layer_masks import read_masks
from dmx.evaluation.layer_outputs import Layers, Pooling, layer_outputs
from dmx.evaluation.probe import Features
from dmx.model.alexnet import ALIASES, AlexNet
from dmx.model.groups import named_kernels
from dmx.model.image_network import ImageNetwork
from dmx.model.module import ModuleNetwork
from dmx.model.network import TrainableNetwork
from dmx.tracking.store import RunInfo
from dmx.workflows.ablate import Ablated, AblateRequest
from dmx.workflows.ablate import ablate as run_ablation
from dmx.workflows.activations import ActivationsRequest
from dmx.workflows.activations import activations as write_activations
from dmx.workflows.inside import Wanted
from dmx.workflows.probe import LABEL, Probed, ProbeRequest
from dmx.workflows.probe import probe as run_probe
from dmx.workflows.session import Session

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, eq=False, kw_only=True)
class Activations:
    """What ``dmx.activations`` has written for a run's network.

    Attributes:
        run: The run that it is.
        file: The file ``.act.h5``.
        shapes: Layer → shape of its values.
    """

    run: RunInfo
    file: Path
    shapes: Mapping[str, tuple[int, ...]]

    def read(self) -> Features:
        """Return the values by layer, float32 [cases, channels, …]."""
        return read_activations(self.file)


@overload
def activations(
    source: nn.Module, data: Iterable[Any], *, layers: str | Path | Layers, pool: Pooling | None = None
) -> Features: ...


@overload
def activations(  # what the command takes
    source: str,
    data: Paths | None = None,
    *,
    layers: str | Path | Layers,
    pool: Wanted | None = None,
    output: str | Path,
    checkpoint: str | None = None,
    split: str | None = None,
    device: str = "auto",
    name: str | None = None,
    overwrite: bool = False,
    store: str | Path | None = None,
) -> Activations: ...


def activations(  # what the command takes
    source: str | nn.Module,
    data: Any = None,
    *,
    layers: str | Path | Layers,
    pool: Wanted | None = None,
    output: str | Path | None = None,
    checkpoint: str | None = None,
    split: str | None = None,
    device: str = "auto",
    name: str | None = None,
    overwrite: bool = False,
    store: str | Path | None = None,
) -> Features | Activations:
    """Return what layers of a module give for batches; or write it for a run's network and cases, as a run.

    Args:
        source: A module, or a run as for ``load_model``.
        data: Of a module, batches: tensors [N, channels, …], or tuples that begin with one; for a multi-scale network
            tuples that begin with a list of patches. Of a run, a manifest or whatever else its network reads; ``None``:
            what the run was trained on.
        layers: Names of layers, ``*`` for any text; or layer → which part of it; or a file ``.dmask.csv``.
        pool: ``max``, ``mean`` or ``median`` over rows and columns (and slices). ``None``: none of a module; of a run
            the mean of volumes and none of images, which ``none`` and ``mean`` change.
        output: Of a run: file that ends with ``.act.h5``.
        checkpoint: As for ``load_model``.
        split: Of a run: only cases of this split.
        device: Of a run: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. A module stays where it is.
        name: The run's name.
        overwrite: Replace a file that is there.
        store: Run store, as for ``load_model``.

    Returns:
        Layer → float32 [N, channels, rows, columns]; for a run its run and file, and ``.read()`` for the same.

    Raises:
        DmxError: Something that can be mended, in one sentence.
    """
    wanted = _layers(layers)
    if isinstance(source, nn.Module):
        if output is not None:
            raise ConfigError("output belongs to a run's network; what a module's layers give is returned.")
        return _of_module(source, data, wanted, None if pool in (None, "none", "auto") else cast(Pooling, pool))
    if output is None:
        raise ConfigError("A run's network needs output, the file to write, which ends with .act.h5.")
    uri, root = locate(store)
    request = ActivationsRequest(
        run=run_name(source),
        inputs=_paths(data),
        layers=wanted,
        pool=pool or "auto",
        output=Path(output),
        checkpoint=checkpoint,
        split=split,
        device=device,
        uri=uri,
        name=name,
        overwrite=overwrite,
    )
    done = write_activations(request, Session(root=root, report=Logged()))
    return Activations(run=done.run, file=done.file.path, shapes=done.file.shapes)


def _of_module(module: nn.Module, data: Iterable[Any], layers: Layers, pool: Pooling | None) -> Features:
    parts: dict[str, list[Tensor]] = {}
    for outputs in layer_outputs(_network(module), (_patches(batch) for batch in data), layers, pool=pool):
        for layer, values in outputs.items():
            parts.setdefault(layer, []).append(values)
    return {layer: torch.cat(values).numpy() for layer, values in parts.items()}


def _patches(batch: Any) -> Sequence[Tensor]:
    """Return what a network reads of a batch: its inputs, without labels."""
    inputs = batch[0] if isinstance(batch, list | tuple) else batch
    patches = inputs if isinstance(inputs, list | tuple) else [inputs]
    if not all(isinstance(patch, Tensor) for patch in patches):
        raise ConfigError(f"Batches must be tensors, or begin with one, got {type(batch).__name__}.")
    return patches


@contextmanager
def ablated(model: nn.Module, layer: str, channels: Sequence[int] | None = None) -> Iterator[tuple[str, ...]]:
    """Set weights and biases of channels of a layer to zero while the context is open; then they are back, bit for bit.

    The scale and shift of a normalization that reads the layer's output are zero for these channels, too.

    Args:
        model: A network of a run, or any module of torch.
        layer: Name of a convolution or linear layer, or of a module that holds exactly one.
        channels: Channels, counted from 1; ``None``: all.

    Yields:
        Names of the tensors that were changed.

    Raises:
        ModelError: There is no such layer or channel.
    """
    network = _network(model)
    with channels_off(network, layer, channels) as names:
        prefix = "" if network is model else "network."
        yield tuple(name.removeprefix(prefix) for name in names)


def ablate(
    run: str,
    layer: str,
    channels: Sequence[int] | None = None,
    *,
    cohort: str | Path | None = None,
    checkpoint: str | None = None,
    split: str | None = None,
    allow_leak: bool = False,
    labels: Mapping[int | str, int | str] | None = None,
    device: str = "auto",
    name: str | None = None,
    store: str | Path | None = None,
) -> Ablated:
    """Score a run's network with channels of a layer switched off, beside the whole network, as a run; ``dmx ablate``.

    Args:
        run: The run whose network it is, as for ``load_model``.
        layer: Name of a convolution or linear layer.
        channels: Channels, counted from 1; ``None``: all.
        cohort: Manifest or stimuli; ``None``: those of the run.
        checkpoint: As for ``load_model``.
        split: Split to score; ``None``: evaluation, else validation, else cases without one.
        allow_leak: Score cases that were in the training, too.
        labels: As for ``evaluate``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        name: The run's name.
        store: Run store, as for ``load_model``.

    Returns:
        The run, and ``changes``: both scores and their difference, by ``metric/class``.

    Raises:
        DmxError: Something that can be mended, in one sentence.
    """
    uri, root = locate(store)
    request = AblateRequest(
        run=run_name(run),
        layer=layer,
        channels=channels,
        cohort=None if cohort is None else Path(cohort),
        checkpoint=checkpoint,
        split=split,
        allow_leak=allow_leak,
        device=device,
        uri=uri,
        name=name,
        labels=None if labels is None else {str(value): str(label) for value, label in labels.items()},
    )
    return run_ablation(request, Session(root=root, report=Logged()))


def probe(
    run: str,
    inputs: Paths | None = None,
    *,
    layers: str | Path | Layers,
    target: str = LABEL,
    folds: int = 5,
    seed: int = 0,
    pool: Wanted = "mean",
    checkpoint: str | None = None,
    split: str | None = None,
    device: str = "auto",
    name: str | None = None,
    store: str | Path | None = None,
) -> Probed:
    """Read a label or number of whole cases out of layers with linear models, cross-validated; ``dmx probe``.

    Args:
        run: The run whose network it is, as for ``load_model``.
        inputs: As for ``activations``.
        layers: As for ``activations``.
        target: ``label``, or the name of a column of numbers.
        folds: Number of folds; a subject is never in two.
        seed: Decides which subjects make up a fold.
        pool: As for ``activations``.
        checkpoint: As for ``load_model``.
        split: Only cases of this split.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        name: The run's name.
        store: Run store, as for ``load_model``.

    Returns:
        The run, and ``report``: the score of each layer, mean and per fold.

    Raises:
        DmxError: Something that can be mended, in one sentence.
    """
    uri, root = locate(store)
    request = ProbeRequest(
        run=run_name(run),
        inputs=_paths(inputs),
        layers=_layers(layers),
        pool=pool,
        target=target,
        folds=folds,
        seed=seed,
        checkpoint=checkpoint,
        split=split,
        device=device,
        uri=uri,
        name=name,
    )
    return run_probe(request, Session(root=root, report=Logged()))


def _layers(layers: str | Path | Layers) -> Layers:
    if isinstance(layers, str | Path):
        return read_masks(Path(layers)) if str(layers).endswith(".csv") else [str(layers)]
    return layers


def _paths(given: Paths | None) -> list[Path]:
    if given is None:
        return []
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]


def _network(module: nn.Module) -> TrainableNetwork:
    """Return a module as a network that can be asked for its layers; it stays the same module."""
    if isinstance(module, TrainableNetwork):
        return module
    kernels = named_kernels(module)
    if not kernels:
        raise ModelError(f"The network {type(module).__name__} has no convolution and no linear layer to look into.")
    first, last = kernels[0][1], kernels[-1][1]
    channels = first.in_channels if isinstance(first, _ConvNd) else first.in_features
    outputs = last.out_channels if isinstance(last, _ConvNd) else last.out_features
    name = type(module).__name__
    if isinstance(first, nn.Conv3d):
        return ModuleNetwork(module, name, num_channels=channels, num_classes=outputs)
    aliases = ALIASES if isinstance(module, AlexNet) else None
    return ImageNetwork(module, name, num_channels=channels, num_classes=outputs, aliases=aliases)
