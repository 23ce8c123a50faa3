"""A moving average of the weights, which validates and predicts better than the last weights do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dmx.errors import CheckpointError


class MovingAverage:
    """Average the weights over the steps (Polyak and Juditsky 1992, exponential form).

    After t updates: ``average = d·average + (1 - d)·weights`` with ``d = min(decay, (1 + t) / (10 + t))``, so that the
    first steps do not keep the initial weights for long. Buffers, such as the statistics of a normalization, are not
    averaged but copied, and so are frozen weights, of which an average would lose bits (-0, infinite values).

    Args:
        model: The network.
        decay: Share of the average that remains after a step.

    Attributes:
        tensors: Name → tensor, with the names of the network's ``state_dict``.
        updates: Steps that have been averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of the network into account."""
        self.updates += 1
        decay = min(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        ours = [self.tensors[name] for name in trained]
        theirs: list[Tensor] = list(trained.values())
        if ours:
            torch._foreach_lerp_(ours, theirs, 1.0 - decay)
        for name, tensor in model.state_dict().items():
            if name not in trained:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the average into the network for the duration of a block, then the weights back, bit for bit."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        _copy_into(model, self.tensors)
        try:
            yield
        finally:
            _copy_into(model, weights)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Take over an average.

        Raises:
            CheckpointError: It is that of another network.
        """
        if set(tensors) != set(self.tensors):
            names = sorted(set(tensors) ^ set(self.tensors))
            raise CheckpointError(f"The moving average does not fit the network; in only one of them: {names}.")
        self.updates = updates
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)


@torch.no_grad()
def _copy_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[name])
