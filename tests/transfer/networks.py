"""Tiny networks whose every value differs from every other, so that a wrong copy shows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.model.sketch import sketch_network, sketch_section
from dmx.transfer.apply import apply_plan
from dmx.transfer.describe import NetworkSketch
from dmx.transfer.options import TransferOptions
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer

CHANNELS = ("t1", "flair")
CLASSES = ("background", "lesion")


def section(
    widths: Sequence[int] = (3, 4),
    *,
    fc: Sequence[int] = (5,),
    pathways: int = 1,
    norm: str = "batch",
    steps: int = 60,
    **normal: Any,
) -> ModelSection:
    """Return a network of so many subsampled pathways."""
    return ModelSection(
        normal=PathwaySection(widths=tuple(widths), **normal),
        subsampled=tuple(SubsampledSection(factor=3 + 2 * number) for number in range(pathways)),
        fc=FCSection(widths=tuple(fc)),
        normalization=NormalizationSection(name=norm, steps=steps),  # type: ignore[arg-type]
    )


def sketch(
    model: ModelSection,
    *,
    name: str = "target",
    channels: Sequence[str] = CHANNELS,
    classes: Sequence[str] = CLASSES,
    compatibility: Any = "none",
) -> NetworkSketch:
    return sketch_section(model, name=name, channels=channels, classes=classes, compatibility=compatibility)


def source(model: ModelSection, **options: Any) -> NetworkSketch:
    return sketch(model, name="source", **options)


def plan(theirs: ModelSection, ours: ModelSection, **options: Any) -> TransferPlan:
    return plan_transfer(source(theirs), sketch(ours), TransferOptions(**options))


def build(model: ModelSection, *, seed: int, num_channels: int = 2, num_classes: int = 2, **options: Any) -> Network:
    """Return a network in inference mode whose slopes, scales and statistics are no round numbers."""
    network = build_network(model, num_channels=num_channels, num_classes=num_classes, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("conv.weight"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.5)
            elif not tensor.is_floating_point():
                tensor.fill_(60 + seed)
    return network.eval()


def transfer(theirs: Network, ours: Network, **options: Any) -> TransferPlan:
    """Carry out a transfer between two built networks."""
    names = options.pop("names", {})
    plan = plan_transfer(
        sketch_network(theirs, name="source", channels=names.get("source", ())),
        sketch_network(ours, name="target", channels=names.get("target", ())),
        TransferOptions(**options),
    )
    apply_plan(plan, {"source": theirs.state_dict()}, ours.state_dict())
    return plan


def patches(network: Network, size: int = 12, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    plan = network.segment_plan((size, size, size))
    return [torch.randn(1, network.num_channels, *patch.shape, generator=generator) for patch in plan.patches]


@torch.no_grad()
def relative_error(theirs: Network, ours: Network, inputs: Sequence[Tensor]) -> float:
    """Return how far the scores are apart, relative to the source's."""
    wanted = theirs(inputs)
    return float((ours(inputs) - wanted).norm() / wanted.norm())


def actions(plan: TransferPlan) -> dict[str, str]:
    """Return what happens to each kernel, by layer."""
    return {tensor.layer: tensor.action for tensor in plan.tensors if tensor.name.endswith("conv.weight")}


def origins(plan: TransferPlan) -> dict[str, str]:
    """Return the source layer of each layer that receives."""
    return {target: source for target, _, source in plan.pairs}


def with_residual(model: ModelSection, *positions: int) -> ModelSection:
    return replace(model, normal=replace(model.normal, residual=positions))
