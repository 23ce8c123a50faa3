"""What a network is made of and what it costs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dmx.config.model import ModelSection
from dmx.geometry import SegmentPlan, Triple
from dmx.model.groups import LayerGroup
from dmx.model.memory import peak_bytes
from dmx.model.meta import meta_call, meta_patches, meta_state, mode
from dmx.model.multiscale import MultiScaleNet
from dmx.model.network import Network, TrainableNetwork

_FLOAT_BYTES = 4
# RMSProp with momentum and Adam keep two numbers per weight.
_OPTIMIZER_VALUES = 2


@dataclass(frozen=True)
class LayerReport:
    """One layer for one segment, image or volume.

    Attributes:
        name: Name in the state dict.
        pathway: Pathway that it belongs to.
        position: Number within the pathway, from 1.
        depth: Number of layers from the input to this one, from 1.
        kernels: Size of each kernel; several where one is factorized, none in a layer without.
        in_channels: Channels that the first kernel gets; None without kernel.
        out_channels: Channels that the last kernel gives; None without kernel.
        output_shape: Size of its output without batch and channels; with the channels in linear layers, and in layers
            of transformers; empty where it gives none.
        parameters: Trainable numbers.
        multiply_adds: Multiplications with addition per input, in convolutions and linear layers.
        is_head: Whether it gives the class scores.
    """

    name: str
    pathway: str
    position: int
    depth: int
    kernels: tuple[tuple[int, ...], ...]
    in_channels: int | None
    out_channels: int | None
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    is_head: bool


@dataclass(frozen=True)
class PathwayReport:
    """What one output voxel of a pathway sees.

    Attributes:
        name: The pathway.
        factor: Voxels of the scan per voxel of the pathway.
        receptive_field: Voxels of the pathway's own grid.
        receptive_field_scan: Voxels of the scan from the first to the last that counts; None for ``fc``, whose grid is
            the joined features.
    """

    name: str
    factor: Triple
    receptive_field: Triple
    receptive_field_scan: Triple | None


@dataclass(frozen=True)
class ModelReport:
    """A network and what it costs for one size of segment.

    Attributes:
        name: Kind of network.
        plan: What it reads of a segment and gives for it.
        layers: One entry per layer.
        pathways: One entry per pathway; none for networks without.
        parameters: Trainable numbers: kernels, biases, scales and slopes; not the statistics of normalization.
        multiply_adds: Of all convolutions and linear layers, for one segment.
        batch_size: Segments per pass, for the memory.
        training_bytes: Largest sum of all tensors in a training step, the optimizer's included, in single precision.
        prediction_bytes: The same in prediction.
    """

    name: str
    plan: SegmentPlan
    layers: tuple[LayerReport, ...]
    pathways: tuple[PathwayReport, ...]
    parameters: int
    multiply_adds: int
    batch_size: int
    training_bytes: int
    prediction_bytes: int


def describe(network: Network, section: ModelSection, segment: Triple, *, batch_size: int = 1) -> ModelReport:
    """Describe a network for segments of a size; nothing is computed and the network stays as it is.

    Raises:
        ModelError: The network cannot take a segment of this size.
    """
    plan = network.segment_plan(segment)
    layers = layer_reports(network, meta_patches(plan, batch_size=1, num_channels=network.num_channels))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    training = peak_bytes(network, segment, batch_size=batch_size, training=True)
    return ModelReport(
        name=section.name,
        plan=plan,
        layers=layers,
        pathways=_pathways(network, plan),
        parameters=parameters,
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        batch_size=batch_size,
        training_bytes=training + optimizer_bytes(parameters),
        prediction_bytes=peak_bytes(network, segment, batch_size=batch_size, training=False),
    )


def optimizer_bytes(parameters: int) -> int:
    """Return what an optimizer keeps for so many numbers that it trains."""
    return _OPTIMIZER_VALUES * _FLOAT_BYTES * parameters


def layer_reports(network: TrainableNetwork, inputs: Sequence[Tensor]) -> tuple[LayerReport, ...]:
    """Run a network without computing and note what passes each layer.

    Args:
        network: The network; it stays as it is.
        inputs: One tensor [1, C, …] without values per patch that it reads.
    """
    groups = network.layer_groups()
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    costs: dict[nn.Module, int] = {}

    def note_shape(module: nn.Module, given: tuple[Any, ...], output: object) -> None:
        if isinstance(output, Tensor):
            # Layers of transformers keep the channels last, and their windows in the place of the batch.
            tokens = isinstance(module, nn.Linear | nn.LayerNorm) or output.ndim != inputs[0].ndim
            shapes[module] = tuple(output.shape[1 if tokens else 2 :])

    def note_cost(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        costs[module] = costs.get(module, 0) + _multiply_adds(module, given[0], output)

    hooked: list[tuple[nn.Module, Callable[..., None]]] = [(group.modules[-1], note_shape) for group in groups]
    hooked += [(module, note_cost) for module in network.modules() if _is_kernel(module)]
    handles = [module.register_forward_hook(hook) for module, hook in hooked]
    try:
        with mode(network, training=False), torch.no_grad():
            meta_call(network, meta_state(network), inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_layer(group, shapes, costs) for group in groups)


def _is_kernel(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd | nn.Linear)


def _multiply_adds(module: nn.Module, given: Tensor, result: Tensor) -> int:
    """Return the multiplications of a convolution or a linear layer."""
    if isinstance(module, nn.Linear):
        return result.numel() * module.in_features
    assert isinstance(module, _ConvNd)
    volume = math.prod(module.kernel_size)
    if isinstance(module, _ConvTransposeNd):
        return given.numel() * module.out_channels // module.groups * volume
    return result.numel() * module.in_channels // module.groups * volume


def _layer(group: LayerGroup, shapes: dict[nn.Module, tuple[int, ...]], costs: dict[nn.Module, int]) -> LayerReport:
    parts = dict.fromkeys(part for module in group.modules for part in module.modules())
    # A module of another network may own weights and contain layers that have their own entry.
    owned = {id(parameter) for parameter in group.parameters.values()}
    kernels = [part for part in parts if _is_kernel(part) and id(part.weight) in owned]
    channels = [_channels(kernel) for kernel in kernels]
    return LayerReport(
        name=group.name,
        pathway=group.pathway,
        position=group.position,
        depth=group.depth,
        kernels=tuple(tuple(kernel.kernel_size) for kernel in kernels if isinstance(kernel, _ConvNd)),
        in_channels=channels[0][0] if channels else None,
        out_channels=channels[-1][1] if channels else None,
        output_shape=shapes.get(group.modules[-1], ()),
        parameters=sum(parameter.numel() for parameter in group.parameters.values()),
        multiply_adds=sum(costs.get(kernel, 0) for kernel in kernels),
        is_head=group.is_head,
    )


def _channels(kernel: nn.Module) -> tuple[int, int]:
    if isinstance(kernel, nn.Linear):
        return kernel.in_features, kernel.out_features
    assert isinstance(kernel, _ConvNd)
    return kernel.in_channels, kernel.out_channels


def _pathways(network: Network, plan: SegmentPlan) -> tuple[PathwayReport, ...]:
    """Return the receptive fields, which only the multi-scale network knows."""
    if not isinstance(network, MultiScaleNet):
        return ()
    reports = []
    for pathway, patch in zip(network.spec.parallel, plan.patches, strict=True):
        field = pathway.receptive_field
        # An averaged voxel covers all voxels that it stands for, a picked one only the first.
        covered = pathway.factor if patch.reduction == "mean" else (1, 1, 1)
        scan = tuple((field[axis] - 1) * pathway.factor[axis] + covered[axis] for axis in range(3))
        reports.append(PathwayReport(pathway.name, pathway.factor, field, (scan[0], scan[1], scan[2])))
    fc = network.spec.fc
    return (*reports, PathwayReport(fc.name, fc.factor, fc.receptive_field, None))
