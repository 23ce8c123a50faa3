"""DeepMedic's variables under the names of the multi-scale network.

TensorFlow numbers variables of one kind in the order in which DeepMedic creates them (``net/W``, ``net/W_1``, …):
pathway by pathway (normal, subsampled ones, fc), layer by layer, the bias of the head last.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmx.config.model import ModelSection
from dmx.errors import CheckpointError
from dmx.model.spec import LayerSpec, resolve
from dmx.model.tensorflow_checkpoint import TensorFlowCheckpoint

_SCOPE = "net/"
_EPOCHS = "trainer/num_epochs_trained"
# The statistics of the newest batch, which the rings hold already.
_LEFT_OUT = ("sharedNewMu_B", "sharedNewVar_B")
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One of DeepMedic's variables.

    Attributes:
        source: Its name there.
        target: Its name in the state dict here.
        shape: Its shape in both.
    """

    source: str
    target: str
    shape: tuple[int, ...]


def deepmedic_variables(section: ModelSection, *, num_channels: int, num_classes: int) -> tuple[Variable, ...]:
    """Return the variables of a network in the order in which DeepMedic creates them.

    No weight is allocated: the widths may be anything.

    Raises:
        ModelError: The section describes no network.
    """
    spec = resolve(section, num_channels=num_channels, num_classes=num_classes)
    counts: Counter[str] = Counter()
    found = []

    def add(kind: str, target: str, shape: tuple[int, ...]) -> None:
        number = counts[kind]
        counts[kind] += 1
        name = f"{_SCOPE}{kind}_{number}" if number else f"{_SCOPE}{kind}"
        found.append(Variable(source=name, target=target, shape=shape))

    for pathway in (*spec.parallel, spec.fc):
        for layer in pathway.layers:
            for kind, target, shape in _of_layer(layer, section):
                add(kind, f"{layer.name}.{target}", shape)
    add("b", "head.conv.bias", (num_classes,))
    return tuple(found)


def _of_layer(layer: LayerSpec, section: ModelSection) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield kind, name and shape of each variable of a layer."""
    channels = layer.in_channels
    if layer.plain or section.normalization.name == "none":
        yield "b", "norm.bias", (channels,)
    else:
        ring = (section.normalization.steps, channels)
        yield "gBn", "norm.weight", (channels,)
        yield "bBn", "norm.bias", (channels,)
        yield "muBnsForRollingAverage", "norm.means", ring
        yield "varBnsForRollingAverage", "norm.variances", ring
    if not layer.plain and section.activation == "prelu":
        yield "aPrelu", "activation.weight", (channels,)
    yield "W", "conv.weight", (layer.out_channels, channels, *layer.kernel)


def read_deepmedic_state(checkpoint: TensorFlowCheckpoint, variables: Sequence[Variable]) -> dict[str, Tensor]:
    """Return the state dict of the multi-scale network.

    A checkpoint does not say at which row of its ring DeepMedic was: it begins at the first row again when it goes on,
    and so does the state here. All rows count as written, as in DeepMedic.

    Raises:
        CheckpointError: The checkpoint is that of another network, or is damaged; the sentence names the variables.
    """
    _require_same(checkpoint, variables)
    state = {}
    for variable in variables:
        tensor = checkpoint.read(variable.source).to(torch.float32)
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"Variable '{variable.source}' of '{checkpoint.prefix}' holds values that are not finite: its training "
                "had diverged. Import an earlier checkpoint."
            )
        state[variable.target] = tensor
        if variable.target.endswith("norm.means"):
            count = torch.tensor(variable.shape[0], dtype=torch.int64)
            state[variable.target.removesuffix("means") + "count"] = count
    return state


def epochs_trained(checkpoint: TensorFlowCheckpoint) -> int | None:
    """Return for how many epochs DeepMedic has trained, where the checkpoint says so."""
    stored = checkpoint.tensors.get(_EPOCHS)
    return int(checkpoint.read(_EPOCHS)) if stored is not None and stored.shape == () else None


def _require_same(checkpoint: TensorFlowCheckpoint, variables: Sequence[Variable]) -> None:
    """Compare names and shapes before any weight is read."""
    wanted = {variable.source: variable.shape for variable in variables}
    kept = {
        name: stored.shape
        for name, stored in checkpoint.tensors.items()
        if name.startswith(_SCOPE) and not name.removeprefix(_SCOPE).startswith(_LEFT_OUT)
    }
    if not kept:
        raise CheckpointError(
            f"'{checkpoint.prefix}' is no checkpoint of DeepMedic v0.8: it has no variable of scope 'net'. It has "
            f"{_some(list(checkpoint.tensors)) or 'none'}."
        )
    missing = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in kept]
    other = [
        f"{name} {list(kept[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if kept.get(name, shape) != shape
    ]
    unknown = [f"{name} {list(shape)}" for name, shape in kept.items() if name not in wanted]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (("it lacks", missing), ("it has", other), ("it also has", unknown))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"Checkpoint '{checkpoint.prefix}' is not that of the configuration: {'; '.join(problems)}. Give the model "
            "configuration that it was trained with."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
