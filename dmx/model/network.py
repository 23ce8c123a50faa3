"""What every network offers to sampling, training and prediction."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from dmx.geometry import SegmentPlan, Triple
from dmx.model.groups import LayerGroup


class Network(nn.Module, ABC):
    """A segmentation network that says itself what it reads of a segment and what its layers are.

    Attributes:
        num_channels: Channels of the scans that it reads.
        num_classes: Classes that it scores, background included.
        compatibility: ``deepmedic`` for a network that computes what DeepMedic v0.8.4 does.
    """

    num_channels: int
    num_classes: int
    compatibility: Literal["none", "deepmedic"] = "none"

    @abstractmethod
    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return class scores [N, classes, I, J, K] from one tensor [N, C, I, J, K] per patch of the plan."""

    @abstractmethod
    def segment_plan(self, segment: Triple) -> SegmentPlan:
        """Return what the network reads of a segment of this size, and which block its output covers.

        Raises:
            ModelError: The network cannot take a segment of this size; an allowed size is named.
        """

    @abstractmethod
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return the layers in order, the head marked."""

    @abstractmethod
    def kernel_parameters(self) -> list[nn.Parameter]:
        """Return the weights of convolutions and linear layers: what L1, L2 and weight decay act on."""

    def after_step(self) -> None:
        """Take note that an optimizer step has ended."""
        return
