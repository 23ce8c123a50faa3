"""Measure what a transfer plan implies: outputs of the new network that must equal the source's."""

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from dmx import seeding
from dmx.errors import ModelError
from dmx.geometry import PatchPlan, triple
from dmx.model.network import Network
from dmx.transfer.plan import TransferPlan
from dmx.transfer.values import Run

_SIZES = (24, 32, 48, 64, 96)


def equivalence_error(plan: TransferPlan, target: Network, sources: Mapping[str, Network]) -> float | None:
    """Return the largest difference of outputs that must be equal, relative to the largest value of the source's.

    Both networks read the same random segment in inference mode; channels that only the target has hold other noise.

    Args:
        plan: The plan, carried out.
        target: The new network.
        sources: Source networks by their name in the plan, with the weights that were given.

    Returns:
        ``None`` where the plan implies no equal output, or none that one segment can show.
    """
    errors = []
    for name, source in sources.items():
        equal = [entry for entry in plan.equal if entry.network == name]
        size = _common_size(target, source)
        if not equal or size is None:
            continue
        inputs = _inputs(plan, target, source, size=size, name=name)
        ours = _outputs(target, [entry.layer for entry in equal], inputs[0])
        theirs = _outputs(source, [entry.source for entry in equal], inputs[1])
        errors += [
            _difference(ours[entry.layer], theirs[entry.source], entry.runs)
            for entry in equal
            if ours[entry.layer].shape[2:] == theirs[entry.source].shape[2:]
        ]
    return max(errors, default=None)


def _common_size(target: Network, source: Network) -> int | None:
    """Return a segment size for which both networks read the same voxels."""
    for size in _SIZES:
        try:
            plans = [network.segment_plan(triple(size)) for network in (target, source)]
        except ModelError:
            continue
        shared = min(len(plan.patches) for plan in plans)
        if plans[0].patches[:shared] == plans[1].patches[:shared]:
            return size
    return None


def _inputs(
    plan: TransferPlan, target: Network, source: Network, *, size: int, name: str
) -> tuple[list[Tensor], list[Tensor]]:
    theirs = [_noise(patch, source.num_channels, name) for patch in source.segment_plan(triple(size)).patches]
    ours = [_noise(patch, target.num_channels, "target") for patch in target.segment_plan(triple(size)).patches]
    runs = _channel_runs(plan, name, min(source.num_channels, target.num_channels))
    for index, patch in enumerate(ours):
        # An extra pathway of the target reads what the source's last one reads, if its patch has the same size.
        given = theirs[min(index, len(theirs) - 1)]
        if given.shape[2:] != patch.shape[2:]:
            continue
        for run in runs:
            patch[:, run.target : run.target + run.length] = given[:, run.source : run.source + run.length]
    return ours, theirs


def _noise(patch: PatchPlan, channels: int, name: str) -> Tensor:
    return seeding.normal(seeding.derive(0, "probe", name, patch.name), (1, channels, *patch.shape))


def _channel_runs(plan: TransferPlan, name: str, shared: int) -> tuple[Run, ...]:
    """Return how input channels correspond, from the first kernel that the source gives."""
    for tensor in plan.tensors:
        if tensor.network == name and len(tensor.shape) == 5 and len(tensor.parts) > 1:
            return tensor.parts[1] or (Run(0, 0, shared),)
    return (Run(0, 0, shared),)


@torch.no_grad()
def _outputs(network: Network, layers: list[str], patches: list[Tensor]) -> dict[str, Tensor]:
    """Return the outputs of layers in inference mode."""
    groups = {group.name: group.modules[-1] for group in network.layer_groups()}
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        found[name] = output.detach().clone()

    training = network.training
    network.eval()
    with ExitStack() as stack:
        for name in layers:
            hook = groups[name].register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
            stack.callback(hook.remove)
        network(patches)
    network.train(training)
    return found


def _difference(ours: Tensor, theirs: Tensor, runs: tuple[Run, ...]) -> float:
    largest = 0.0
    scale = float(theirs.abs().max().clamp(min=1e-12))
    for run in runs:
        mine = ours[:, run.target : run.target + run.length]
        given = theirs[:, run.source : run.source + run.length]
        largest = max(largest, float((mine - given).abs().max()) / scale)
    return largest
