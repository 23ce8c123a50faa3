"""What a network that scores whole images or volumes is made of and what it costs."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from dmx.errors import ModelError
from dmx.model.memory import pass_bytes
from dmx.model.module import first_sentence
from dmx.model.network import TrainableNetwork
from dmx.model.show import LayerReport, layer_reports, optimizer_bytes
from dmx.transfer.aliases import known_as
from dmx.transfer.freeze import FreezePlan
from dmx.transfer.freeze_apply import hold

# What torch and foreign modules raise for inputs that they cannot take.
_REFUSALS = (RuntimeError, ValueError, IndexError)


@dataclass(frozen=True, kw_only=True)
class ScoringLayer:
    """A layer as settings name it.

    Attributes:
        name: Its name, without the prefix of a wrapped network.
        short_names: Other names under which it may be given.
        frozen_parameters: Numbers of it that do not train at the start.
        report: What passes it.
    """

    name: str
    short_names: tuple[str, ...]
    frozen_parameters: int
    report: LayerReport

    @property
    def parameters(self) -> int:
        """Trainable numbers, frozen ones included."""
        return self.report.parameters

    @property
    def is_head(self) -> bool:
        """Whether it gives the scores."""
        return self.report.is_head


@dataclass(frozen=True, kw_only=True)
class ScoringReport:
    """A network and what it costs for one size of image or volume.

    Attributes:
        name: Kind of network.
        size: Pixels or voxels of an input.
        outputs: Classes or targets.
        layers: One entry per layer.
        freeze: What is frozen when.
        batch_size: Inputs per pass, for the memory.
        training_bytes: Largest sum of all tensors in a training step, the optimizer's included, in single precision;
            None where a pass without values cannot tell it.
        prediction_bytes: The same in prediction.
    """

    name: str
    size: tuple[int, ...]
    outputs: tuple[str, ...]
    layers: tuple[ScoringLayer, ...]
    freeze: FreezePlan
    batch_size: int
    training_bytes: int | None
    prediction_bytes: int | None

    @property
    def parameters(self) -> int:
        """Trainable numbers, frozen ones included."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Of all convolutions and linear layers, for one input."""
        return sum(layer.report.multiply_adds for layer in self.layers)


def describe_scoring(  # keyword-only facts that experiments and runs keep in several places
    network: TrainableNetwork,
    size: Sequence[int],
    *,
    name: str,
    outputs: Sequence[str],
    freeze: FreezePlan,
    batch_size: int = 1,
) -> ScoringReport:
    """Describe a network for inputs of a size; nothing is computed.

    Args:
        network: The network, which is held as `freeze` wants it at the start.
        size: Pixels or voxels.
        name: What its settings call it.
        outputs: Classes or targets.
        freeze: What is frozen when.
        batch_size: Inputs per pass, for the memory.

    Raises:
        ModelError: The network cannot take inputs of this size.
    """
    try:
        reports = layer_reports(network, _inputs(network, size, count=1))
    except _REFUSALS as error:
        shape = " x ".join(map(str, size))
        raise ModelError(f"Network {name} cannot take inputs of {shape} ({first_sentence(error)}).") from error
    hold(network, freeze, 0)
    frozen = {key: freeze.sizes[key] for key in freeze.frozen_parameters(0)}
    groups = {group.name: group.parameters for group in network.layer_groups()}
    inputs = _inputs(network, size, count=batch_size)
    training = _bytes(network, inputs, training=True)
    trained = sum(report.parameters for report in reports) - sum(frozen.values())
    return ScoringReport(
        name=name,
        size=tuple(size),
        outputs=tuple(outputs),
        layers=tuple(_layer(report, groups[report.name], network, frozen) for report in reports),
        freeze=freeze,
        batch_size=batch_size,
        training_bytes=None if training is None else training + optimizer_bytes(trained),
        prediction_bytes=_bytes(network, inputs, training=False),
    )


def _inputs(network: TrainableNetwork, size: Sequence[int], *, count: int) -> list[Tensor]:
    return [torch.empty(count, network.num_channels, *size, device="meta")]


def _bytes(network: TrainableNetwork, inputs: Sequence[Tensor], *, training: bool) -> int | None:
    """Return the memory of a pass; a module that needs values to decide what it does has none to tell."""
    with suppress(*_REFUSALS):
        return pass_bytes(network, inputs, training=training)
    return None


def _layer(
    report: LayerReport, parameters: Mapping[str, object], network: TrainableNetwork, frozen: Mapping[str, int]
) -> ScoringLayer:
    # A part of a module with a short name is known as that name and more.
    short = [name for name in known_as(report.name, network.aliases) if name in network.aliases]
    return ScoringLayer(
        name=known_as(report.name, {})[-1],
        short_names=tuple(short),
        frozen_parameters=sum(frozen.get(name, 0) for name in parameters),
        report=report,
    )
