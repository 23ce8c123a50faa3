"""Running statistics of a step whose passes several processes have done: what one process alone would have had."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmx.errors import TrainingError
from dmx.model.norms import RollingBatchNorm


@dataclass(frozen=True)
class _Average:
    """Buffers of a batch normalization by their numbers; the momentum of torch, None: the mean of all passes."""

    mean: int
    variance: int
    count: int
    momentum: float | None


class StatisticsMerge:
    """Adds to the buffers of a network what the passes of other processes have made of them.

    One pass turns a running mean ``r`` into ``(1 - m) r + m b``, with the momentum ``m`` and the statistics ``b`` of
    the batch. So ``k`` passes turn it into ``(1 - m)^k r + s``, where ``s`` depends on the passes alone: a process that
    began with ``r`` and ended with ``e`` has ``s = e - (1 - m)^k r``. The processes follow each other in the order of
    their parts, as the passes of one process would. Without a momentum the result is the mean of all passes: with ``n``
    passes before the step, ``n r + t = (n + k) e`` gives the sum ``t`` of the process. Sums and counts add up.

    Args:
        model: The network; the order of its tensors is that of :func:`dmx.training.exchange.parameters_and_buffers`.
    """

    def __init__(self, model: nn.Module) -> None:
        first = len(list(model.parameters()))
        self._names = {first + index: name for index, (name, _) in enumerate(model.named_buffers())}
        numbers = {id(buffer): first + index for index, buffer in enumerate(model.buffers())}

        def number(buffer: Tensor | None) -> int:
            assert buffer is not None
            return numbers[id(buffer)]

        self._averages: list[_Average] = []
        self._sums: list[int] = []
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                count = number(module.num_batches_tracked)
                self._averages.append(
                    _Average(number(module.running_mean), number(module.running_var), count, module.momentum)
                )
                self._sums.append(count)
            elif isinstance(module, RollingBatchNorm):
                self._sums += map(number, (module.pending_mean, module.pending_variance, module.pending_count))
        moved = {*self._sums, *(index for one in self._averages for index in (one.mean, one.variance))}
        self._still = [index for index in self._names if index not in moved]

    def shares(
        self, before: Sequence[Tensor], found: Sequence[Tensor], *, earlier: Sequence[Tensor]
    ) -> dict[int, float]:
        """Turn what a process ended with into its share ``s``, in place.

        Args:
            before: All tensors as all processes began the step with them, on the CPU.
            found: All tensors as the process has left them, on the CPU; its buffers are changed.
            earlier: All tensors of the network with the shares of all processes before this one.

        Returns:
            Factor by buffer: its value becomes the factor times the value, plus the share.

        Raises:
            TrainingError: A buffer has changed of which nobody knows how such changes add up.
        """
        factors: dict[int, float] = {}
        for one in self._averages:
            passes = int(found[one.count]) - int(before[one.count])
            if not passes:
                self._require_same((one.mean, one.variance), before, found)
            for index in (one.mean, one.variance):
                if one.momentum is None:
                    start, past = int(before[one.count]), int(earlier[one.count])
                    factors[index] = past / max(past + passes, 1)
                    found[index].mul_(start + passes).sub_(before[index] * start).div_(max(past + passes, 1))
                    # No pass, no share: the line above leaves rounding where a difference of equals is taken.
                    if not passes:
                        found[index].zero_()
                else:
                    factors[index] = (1.0 - one.momentum) ** passes
                    found[index].sub_(before[index] * factors[index])
        for index in self._sums:
            factors[index] = 1.0
            found[index].sub_(before[index])
        self._require_same(self._still, before, found)
        return factors

    @staticmethod
    @torch.no_grad()
    def add(tensors: Sequence[Tensor], shares: Sequence[Tensor], *, factors: Mapping[int, float]) -> None:
        """Give the buffers of a network the shares of a process; both are on its device."""
        for index, factor in factors.items():
            if factor != 1.0:
                tensors[index].mul_(factor)
            tensors[index].add_(shares[index])

    def _require_same(self, numbers: Sequence[int], before: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        for index in numbers:
            if not torch.equal(before[index].reshape(-1).view(torch.uint8), found[index].reshape(-1).view(torch.uint8)):
                raise TrainingError(
                    f"The buffer '{self._names[index]}' of the network changes while it trains, and dmx does not know "
                    "how what several processes make of it adds up. Set training.processes: 1."
                )
