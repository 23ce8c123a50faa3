"""What every network offers to sampling, training and prediction."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from dmx.geometry import SegmentPlan, Triple
from dmx.model.groups import LayerGroup


class TrainableNetwork(nn.Module, ABC):
    """A network that says itself what its layers are: all that training, transfer and freezing need.

    Attributes:
        num_channels: Channels of the scans or images that it reads.
        num_classes: Scores that it gives per voxel, image or volume: classes (in segmentation, background included), or
            targets of a regression.
        compatibility: ``deepmedic`` for a network that computes what DeepMedic v0.8.4 does.
        aliases: Other names under which modules may be named in settings: short name → name of the module.
        example_shape: Size of an image or volume that the network can take; a segmentation network has a plan instead.
        class_axes: Tensors whose size follows the number of classes, each with the axes that do, as far as it is known.
        auxiliary_weight: Weight of the loss of each auxiliary output that :meth:`outputs` gives in training.
    """

    num_channels: int
    num_classes: int
    compatibility: Literal["none", "deepmedic"] = "none"
    aliases: Mapping[str, str] = {}
    class_axes: Mapping[str, tuple[int, ...]] = {}
    example_shape: tuple[int, ...] = (224, 224)
    auxiliary_weight: ClassVar[float] = 0.4

    @abstractmethod
    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return the scores from one tensor [N, C, …] per patch."""

    @abstractmethod
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return the layers in order, the head marked."""

    @abstractmethod
    def kernel_parameters(self) -> list[nn.Parameter]:
        """Return the weights of convolutions and linear layers: what L1, L2 and weight decay act on."""

    def outputs(self, patches: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the scores, and in training mode after them those of auxiliary outputs, for the loss."""
        return (self(patches),)

    def after_step(self) -> None:
        """Take note that an optimizer step has ended."""
        return


class Network(TrainableNetwork):
    """A segmentation network that says itself what it reads of a segment and what its layers are."""

    @abstractmethod
    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return class scores [N, classes, I, J, K] from one tensor [N, C, I, J, K] per patch of the plan."""

    @abstractmethod
    def segment_plan(self, segment: Triple) -> SegmentPlan:
        """Return what the network reads of a segment of this size, and which block its output covers.

        Raises:
            ModelError: The network cannot take a segment of this size; an allowed size is named.
        """
