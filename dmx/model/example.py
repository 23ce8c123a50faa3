"""An input that a network could read, as shapes without values."""

from contextlib import suppress

import torch
from torch import Tensor

from dmx.errors import ModelError
from dmx.geometry import SegmentPlan, triple
from dmx.model.meta import meta_patches
from dmx.model.network import Network, TrainableNetwork

# Segments, in voxels a side, of which one suits every network that halves its features a few times.
_SIZES = (32, 64, 96, 128)


def example_patches(network: TrainableNetwork) -> list[Tensor] | None:
    """Return patches [1, C, ...] without values that a network could read; None: no size that is tried suits it."""
    if not isinstance(network, Network):
        return [torch.empty(1, network.num_channels, *network.example_shape, device="meta")]
    plan = _small_plan(network)
    return None if plan is None else meta_patches(plan, batch_size=1, num_channels=network.num_channels)


def _small_plan(network: Network) -> SegmentPlan | None:
    """Return the plan of a small segment that the network can take."""
    for size in _SIZES:
        with suppress(ModelError):
            return network.segment_plan(triple(size))
    return None
