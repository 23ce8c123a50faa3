from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from dmx.errors import ModelError
from dmx.geometry import PatchPlan, SegmentPlan, Triple, triple
from dmx.model.groups import LayerGroup
from dmx.model.network import Network


class TwoScales(Network):
    """Receptive field 5, one pathway subsampled by ``factor``, centered; what a multi-scale network is at its least."""

    def __init__(self, factor: Triple = (3, 3, 3), classes: int = 3) -> None:
        super().__init__()
        self.factor = factor
        generator = torch.Generator().manual_seed(4)
        self.normal = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 3))
        self.coarse = nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 3))
        self.head = nn.Conv3d(8, classes, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        fine = self.normal(patches[0])
        coarse = self.coarse(patches[1])
        for axis, step in enumerate(self.factor, start=2):
            coarse = coarse.repeat_interleave(step, dim=axis).narrow(axis, 0, fine.shape[axis])
        return self.head(torch.cat([fine, coarse], dim=1))

    def segment_plan(self, segment: Triple) -> SegmentPlan:
        if min(segment) < 5:
            raise ModelError(f"The smallest segment is 5, got {segment}.")
        output = triple([n - 4 for n in segment])
        coarse = triple([-(-o // f) + 4 for o, f in zip(output, self.factor, strict=True)])
        offset = triple([2 - 2 * f for f in self.factor])
        patches = (
            PatchPlan("normal", segment, (1, 1, 1), (0, 0, 0)),
            PatchPlan("subsampled_1", coarse, self.factor, offset),
        )
        return SegmentPlan(segment, output, (2, 2, 2), (2, 2, 2), patches)

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        rows = [
            ("normal", 1, "normal.0", self.normal[0]),
            ("normal", 2, "normal.2", self.normal[2]),
            ("subsampled_1", 1, "coarse.0", self.coarse[0]),
            ("subsampled_1", 2, "coarse.2", self.coarse[2]),
            ("fc", 1, "head", self.head),
        ]
        return tuple(
            LayerGroup(pathway, position, position, name, (module,), name == "head", dict(module.named_parameters()))
            for pathway, position, name, module in rows
        )

    def kernel_parameters(self) -> list[nn.Parameter]:
        return []


class SameSize(TwoScales):
    """A network without a margin whose sizes must be multiples of 4, as a U-Net's."""

    def __init__(self) -> None:
        Network.__init__(self)
        generator = torch.Generator().manual_seed(4)
        self.down = nn.Conv3d(2, 4, 3, stride=2, padding=1)
        self.head = nn.Conv3d(6, 3, 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        low = self.down(patches[0])
        for axis in (2, 3, 4):
            low = low.repeat_interleave(2, dim=axis)
        return self.head(torch.cat([patches[0], low], dim=1))

    def segment_plan(self, segment: Triple) -> SegmentPlan:
        if any(n % 4 for n in segment):
            raise ModelError(f"Sizes must be multiples of 4, got {segment}.")
        zero = (0, 0, 0)
        return SegmentPlan(segment, segment, zero, zero, (PatchPlan("network", segment, (1, 1, 1), zero),))

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        return (
            LayerGroup("network", 1, 1, "down", (self.down,), False, dict(self.down.named_parameters())),
            LayerGroup("network", 2, 2, "head", (self.head,), True, dict(self.head.named_parameters())),
        )


@pytest.fixture
def two_scales() -> TwoScales:
    return TwoScales()


@pytest.fixture
def same_size() -> SameSize:
    return SameSize()


@pytest.fixture
def make_two_scales() -> type[TwoScales]:
    return TwoScales


@pytest.fixture
def volume() -> Tensor:
    """Two channels of 19 by 13 by 11 voxels."""
    return torch.randn((2, 19, 13, 11), generator=torch.Generator().manual_seed(1))


def whole(network: Network, channels: Tensor) -> Tensor:
    """Probabilities of a volume in one pass, the reference of the tiles."""
    from dmx.sampling.patches import cut_patches

    around = network.segment_plan((40, 40, 40))
    margins = zip(channels.shape[1:], around.margin_before, around.margin_after, strict=True)
    plan = network.segment_plan(triple([n + before + after for n, before, after in margins]))
    start = triple([-n for n in plan.margin_before])
    patches = [patch.unsqueeze(0) for patch in cut_patches(channels, start, plan)]
    with torch.no_grad():
        return network(patches).softmax(dim=1)[0]


@pytest.fixture(scope="session")
def in_one_pass() -> Callable[[Network, Tensor], Tensor]:
    return whole
