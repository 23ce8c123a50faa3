"""Memory that the processes of one training share: the tensors of a network, once per process."""

import math
import mmap
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

# So that a tensor of any type can begin at any place.
_ALIGNMENT = 16


def parameters_and_buffers(model: nn.Module) -> list[Tensor]:
    """Return the tensors of a network in the order in which they are exchanged."""
    return [*model.parameters(), *model.buffers()]


def new_memory() -> int:
    """Return the descriptor of new memory that others can be given; it is gone when nobody has it any more."""
    if sys.platform == "linux":
        return os.memfd_create("dmx")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Exchange:
    """One row of memory per process, each with room for all tensors of a network.

    Row 0 holds the weights and buffers that all begin a step with; row k what process k has found: its gradients in the
    places of the parameters, and the buffers as its passes have left them.

    Args:
        model: The network, on its device.
        memory: Descriptor of the memory, which is made large enough.
        processes: Number of rows.
    """

    def __init__(self, model: nn.Module, memory: int, *, processes: int) -> None:
        tensors = parameters_and_buffers(model)
        self._kinds = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
        sizes = [-(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT for tensor in tensors]
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        row = max(sum(sizes), _ALIGNMENT)
        if os.fstat(memory).st_size < row * processes:
            os.truncate(memory, row * processes)
        whole = torch.frombuffer(mmap.mmap(memory, row * processes), dtype=torch.uint8)
        self._rows = [whole[row * index : row * (index + 1)] for index in range(processes)]
        self._views = [self._tensors(bytes_) for bytes_ in self._rows]
        device = tensors[0].device if tensors else torch.device("cpu")
        self._staged = None if device.type == "cpu" else torch.empty(row, dtype=torch.uint8, device=device)

    def _tensors(self, row: Tensor) -> list[Tensor]:
        views = []
        for start, (dtype, shape) in zip(self._starts, self._kinds, strict=True):
            num_bytes = math.prod(shape) * dtype.itemsize
            views.append(row[start : start + num_bytes].view(dtype).view(shape))
        return views

    @property
    def described(self) -> list[str]:
        """Types and shapes of the tensors, by which two processes know that they have the same network."""
        return [f"{dtype} {list(shape)}" for dtype, shape in self._kinds]

    def row(self, process: int) -> list[Tensor]:
        """Return the tensors of a row where they lie."""
        return self._views[process]

    @torch.no_grad()
    def write(self, process: int, tensors: Mapping[int, Tensor]) -> None:
        """Put tensors by their number into a row; the others are left as they are."""
        if not tensors:
            return
        if self._staged is None:
            torch._foreach_copy_([self._views[process][index] for index in tensors], list(tensors.values()))
            return
        # One transfer of everything is faster than one per tensor.
        views = self._tensors(self._staged)
        torch._foreach_copy_([views[index] for index in tensors], list(tensors.values()))
        self._rows[process].copy_(self._staged)

    def read(self, process: int) -> Sequence[Tensor]:
        """Return the tensors of a row on the network's device; they are good until the next call."""
        if self._staged is None:
            return self._views[process]
        self._staged.copy_(self._rows[process])
        return self._tensors(self._staged)
