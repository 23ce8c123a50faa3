"""The multi-scale network: parallel pathways at several resolutions, joined by a fully convolutional one.

Kamnitsas et al. 2017, Efficient multi-scale 3D CNN with fully connected CRF for accurate brain lesion segmentation.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import cast

import torch
from torch import Tensor, nn

from dmx.config.model import ModelSection
from dmx.errors import ModelError
from dmx.geometry import SegmentPlan, Triple, triple
from dmx.model.blocks import Block, Convolution
from dmx.model.groups import LayerGroup
from dmx.model.network import Network
from dmx.model.norms import Compatibility, move_rings
from dmx.model.plan import plan_segment
from dmx.model.spec import NetworkSpec, PathwaySpec
from dmx.model.upsampling import upsample


def run_blocks(blocks: Sequence[Block], x_NCIJK: Tensor) -> Tensor:
    """Run blocks one after the other; a residual one also gets the input of the block before."""
    shortcut: Tensor | None = None
    for block, following in zip_longest(blocks, blocks[1:]):
        result = block(x_NCIJK, shortcut)
        # Kept only where it is needed: in prediction all other features are freed at once.
        shortcut = x_NCIJK if following is not None and following.spec.residual else None
        x_NCIJK = result
    return x_NCIJK


def channels_last(x_NCIJK: Tensor) -> Tensor:
    """Return a tensor with its channels innermost in memory, also a single one, which torch takes for any layout."""
    _, c, i, j, k = x_NCIJK.shape
    dense = x_NCIJK.contiguous(memory_format=torch.channels_last_3d)
    return dense.as_strided(dense.shape, (c * i * j * k, 1, c * j * k, c * k, c))


def _faster_channels_last(patch_NCIJK: Tensor) -> bool:
    """Tell whether a prediction in bf16 on a CPU begins here: its kernels copy every other layout forth and back.

    A training says itself which layout it wants.
    """
    return patch_NCIJK.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()


class Pathway(nn.ModuleDict):
    """A row of blocks, named ``block_1``, ``block_2`` and so on."""

    def __init__(self, spec: PathwaySpec, section: ModelSection, compatibility: Compatibility) -> None:
        layers = [layer for layer in spec.layers if not layer.is_head]
        super().__init__({f"block_{layer.position}": Block(layer, section, compatibility) for layer in layers})

    def forward(self, x_NCIJK: Tensor) -> Tensor:
        """Return the features of the last block."""
        return run_blocks(self.blocks(), x_NCIJK)

    def blocks(self) -> list[Block]:
        """Return the blocks in order."""
        return [cast(Block, block) for block in self.values()]


class MultiScaleNet(Network):
    """Network of parallel pathways.

    The names in its state dict are a contract: ``normal.block_1.conv.weight``, ``subsampled_1.block_2.norm.weight``,
    ``fc.block_1.activation.weight``, ``head.conv.bias``, ….

    Args:
        spec: All layers.
        section: Settings that all layers share.
        compatibility: ``deepmedic`` computes exactly what DeepMedic v0.8.4 does.
    """

    def __init__(self, spec: NetworkSpec, section: ModelSection, *, compatibility: Compatibility = "none") -> None:
        super().__init__()
        self.section = section
        self.spec = spec
        self.num_channels = spec.normal.layers[0].in_channels
        self.num_classes = spec.fc.layers[-1].out_channels
        self.compatibility = compatibility
        self.upsampling = section.upsampling
        for pathway in (*spec.parallel, spec.fc):
            self.add_module(pathway.name, Pathway(pathway, section, compatibility))
        self.head = Block(spec.fc.layers[-1], section, compatibility)

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return class scores [N, classes, I, J, K] from one tensor [N, C, I, J, K] per pathway, `normal` first.

        Any size is allowed that keeps to a plan of :meth:`segment_plan`.
        """
        if len(patches) != len(self.spec.parallel):
            raise ModelError(f"This network reads {len(self.spec.parallel)} patches of a segment, got {len(patches)}.")
        if _faster_channels_last(patches[0]):
            patches = [channels_last(patch) for patch in patches]
        return run_blocks([*self._pathway("fc").blocks(), self.head], self._join(patches))

    def _pathway(self, name: str) -> Pathway:
        return cast(Pathway, self.get_submodule(name))

    def _join(self, patches: Sequence[Tensor]) -> Tensor:
        """Return the channels of all parallel pathways at full resolution."""
        features = [self._pathway("normal")(patches[0])]
        for pathway, patch in zip(self.spec.subsampled, patches[1:], strict=True):
            coarse = self._pathway(pathway.name)(patch)
            features.append(upsample(coarse, pathway.factor, features[0], self.upsampling))
        return torch.cat(features, dim=1) if len(features) > 1 else features[0]

    def segment_plan(self, segment: Triple) -> SegmentPlan:
        """Return what the pathways read of a segment; see :func:`dmx.model.plan.plan_segment`."""
        return plan_segment(self.spec, triple(segment), upsampling=self.upsampling, compatibility=self.compatibility)

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return the layers: ``normal``, ``subsampled_1``, …, ``fc``, the head last."""
        groups = []
        for pathway in (*self.spec.parallel, self.spec.fc):
            for layer in pathway.layers:
                block = self.get_submodule(layer.name)
                groups.append(
                    LayerGroup(
                        pathway=layer.pathway,
                        position=layer.position,
                        depth=layer.depth,
                        name=layer.name,
                        modules=(block,),
                        is_head=layer.is_head,
                        parameters=dict(block.named_parameters(prefix=layer.name)),
                    )
                )
        return tuple(groups)

    def kernel_parameters(self) -> list[nn.Parameter]:
        """Return the weights of all convolutions, the head's included."""
        return [cast(nn.Parameter, module.weight) for module in self.modules() if isinstance(module, Convolution)]

    def after_step(self) -> None:
        """Let the ring buffers of rolling statistics move on."""
        move_rings(self)
