"""A network and segments small enough to train in milliseconds."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from dmx import seeding
from dmx.config.optimization import OptimizerSection, ScheduleSection
from dmx.config.sections import CheckpointSection, TrainingSection
from dmx.geometry import SegmentPlan, Triple
from dmx.model.groups import LayerGroup
from dmx.model.network import Network
from dmx.sampling.batch import Batch
from dmx.training.settings import FitSettings

CLASSES = ("background", "anterior", "posterior")


class TinyNetwork(Network):
    """Two convolutions with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv3d(1, 4, 3)
        self.norm = nn.BatchNorm3d(4)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Conv3d(4, len(CLASSES), 1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)
        self.steps_seen = 0

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        scores: Tensor = self.head(self.dropout(torch.relu(self.norm(self.conv(patches[0])))))
        return scores

    def segment_plan(self, segment: Triple) -> SegmentPlan:
        raise NotImplementedError

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        raise NotImplementedError

    def kernel_parameters(self) -> list[nn.Parameter]:
        return [self.conv.weight, self.head.weight]

    def after_step(self) -> None:
        self.steps_seen += 1


def make_batch(epoch: int, step: int, part: int) -> Batch:
    key = seeding.derive(7, "batch", epoch, step, part)
    labels = (seeding.uniform(key, (2, 3, 3, 3)) * 4).long() - 1
    image = seeding.normal(key + 1, (2, 1, 5, 5, 5))
    image[:, 0, 1:4, 1:4, 1:4] += labels.clamp(min=0) * 2.0
    return Batch(inputs=(image,), target=labels, cases=("case_1", f"case_{step}"))


@pytest.fixture
def network() -> TinyNetwork:
    return TinyNetwork()


@pytest.fixture
def new_network() -> Callable[[], TinyNetwork]:
    return TinyNetwork


@pytest.fixture
def batches() -> Callable[[int, int, int], Batch]:
    return make_batch


@pytest.fixture
def settings() -> FitSettings:
    return FitSettings(
        classes=CLASSES,
        training=TrainingSection(epochs=3, steps_per_epoch=4, batch_size=2, device="cpu"),
        optimizer=OptimizerSection(name="sgd", lr=0.05),
        schedule=ScheduleSection(name="polynomial"),
        checkpoints=CheckpointSection(),
    )
