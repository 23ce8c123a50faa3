"""A network of which only the head is trained: what comes before is the same in every epoch, so it is computed once."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dmx.model.meta import mode
from dmx.model.network import TrainableNetwork
from dmx.sampling.batch import Batch
from dmx.training.device import seed_generators
from dmx.transfer.freeze import FreezePlan
from dmx.transfer.freeze_apply import hold

_SEEDS = (1, 2)


@dataclass(frozen=True)
class _Seen:
    """What went through the head in a pass.

    Attributes:
        entered: Its input each time.
        left: Its output each time.
        scores: What the network gave.
    """

    entered: list[tuple[Any, ...]]
    left: list[Any]
    scores: tuple[Tensor, ...]


def fixed_head(network: TrainableNetwork, plan: FreezePlan, batch: Batch) -> nn.Module | None:
    """Return the head of a network whose other parts always give the same for the same image or volume.

    That is so when everything outside of the head is frozen for good, statistics included, and a pass in training mode,
    whatever the random numbers, brings to the head what a pass in inference mode brings. The head must give the
    network's scores itself.

    Args:
        network: The network, on its device; it is left as it was.
        plan: What is frozen.
        batch: Some cases.
    """
    heads = [group for group in network.layer_groups() if group.is_head]
    if len(heads) != 1 or plan.epochs:
        return None
    frozen, prefix = set(plan.frozen_tensors(0)), f"{heads[0].name}."
    if not all(name in frozen for name in network.state_dict() if not name.startswith(prefix)):
        return None
    head = network.get_submodule(heads[0].name)
    with mode(network, training=False):
        plain = _pass(network, head, batch)
    if not _is_last(plain):
        return None
    for seed in _SEEDS:
        with mode(network, training=True):
            hold(network, plan, 0)
            seed_generators(seed, batch.target.device)
            seen = _pass(network, head, batch)
        if not (_is_last(seen) and torch.equal(seen.entered[0][0], plain.entered[0][0])):
            return None
    return head


def _is_last(seen: _Seen) -> bool:
    """Return whether a head ran once, on one tensor, and what it gave are the scores."""
    if len(seen.left) != 1 or len(seen.entered[0]) != 1 or len(seen.scores) != 1:
        return False
    return isinstance(seen.entered[0][0], Tensor) and seen.left[0] is seen.scores[0]


@torch.no_grad()
def _pass(network: TrainableNetwork, head: nn.Module, batch: Batch) -> _Seen:
    entered: list[tuple[Any, ...]] = []
    left: list[Any] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        entered.append(inputs)
        left.append(output)

    handle = head.register_forward_hook(note)
    try:
        scores = network.outputs(batch.inputs)
    finally:
        handle.remove()
    return _Seen(entered, left, scores)


class _ReachedError(Exception):
    """Ends a pass at the head."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


@torch.no_grad()
def head_inputs(
    network: TrainableNetwork, head: nn.Module, batches: Iterable[Batch], *, dtype: torch.dtype | None
) -> Iterator[Tensor]:
    """Yield what comes to the head for each batch, in inference mode; the head does not run.

    Args:
        network: The network, on the device of the batches.
        head: What :func:`fixed_head` returned.
        batches: All cases.
        dtype: bfloat16 or float16 for mixed precision; None: float32.
    """
    with mode(network, training=False), _stopped_at(head):
        for batch in batches:
            device = batch.target.device.type
            try:
                with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                    network(batch.inputs)
            except _ReachedError as reached:
                yield reached.features


@contextmanager
def _stopped_at(head: nn.Module) -> Iterator[None]:
    def stop(_module: nn.Module, inputs: tuple[Any, ...]) -> NoReturn:
        raise _ReachedError(inputs[0])

    handle = head.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()
