"""How much memory there is, and how much a network needs for one forward pass."""

import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmx.geometry import SegmentPlan
from dmx.model.meta import meta_call, meta_patches, meta_state, mode

_WORKSPACE = 2.0
"""Convolutions copy input and output into their own layout; measured on a CPU against the process' peak."""


KEEP_ON_DEVICE = 0.15
"""Share of an accelerator's free memory up to which a volume stays there, so that no tile waits for a copy."""


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a prediction may still take on a device, containers' limits included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    candidates = [_available_memory(), *_container_headroom()]
    return max(0, min(candidates))


def _available_memory() -> int:
    """Return MemAvailable of Linux, or half of the physical memory where that is not told."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _container_headroom() -> list[int]:
    """Return what the control group still allows (version 2, then 1), or an empty list without a limit."""
    folder = Path("/sys/fs/cgroup")
    pairs = (
        (folder / "memory.max", folder / "memory.current"),
        (folder / "memory/memory.limit_in_bytes", folder / "memory/memory.usage_in_bytes"),
    )
    headroom = []
    for limit, usage in pairs:
        # Version 2 writes "max" where there is no limit, version 1 a number beyond any memory.
        with suppress(OSError, ValueError):
            headroom.append(int(limit.read_text()) - int(usage.read_text()))
    return headroom


class PeakOfTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow the bytes of all tensors that are made while the mode is on.

    Attributes:
        peak: Largest number of bytes alive at the same time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        known = self._storages.get(key)
        if known is not None and known() is storage:
            return
        size = storage.nbytes()
        self._alive += size
        self.peak = max(self.peak, self._alive)
        self._storages[key] = weakref.ref(storage, lambda _: self._forget(size))

    def _forget(self, size: int) -> None:
        self._alive -= size


def forward_bytes(network: nn.Module, plan: SegmentPlan, *, channels: int, batch: int = 1) -> int:
    """Estimate the peak memory of one forward pass without gradients, in float32, without running it.

    The network runs on tensors that have shapes but no content; what its operations make is added up and taken twice,
    for the layouts that convolutions copy into. Weights are not counted: they are there already.

    Args:
        network: Network on any device.
        plan: What a segment is read as.
        channels: Channels of the case.
        batch: Segments per pass.
    """
    patches = meta_patches(plan, batch_size=batch, num_channels=channels)
    inputs = sum(patch.nbytes for patch in patches)
    try:
        with mode(network, training=False), torch.no_grad():
            state = meta_state(network)
            with PeakOfTensors() as follower:
                meta_call(network, state, patches)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        # Networks that look at values or make tensors on a fixed device cannot run without content.
        return int(_WORKSPACE * _guess(network, patches))
    return int(_WORKSPACE * (inputs + follower.peak))


def _guess(network: nn.Module, patches: Sequence[Tensor]) -> int:
    """Return the bytes of the widest layer's input, output and one copy at the size of the patches."""
    widths = [parameter.shape[0] for parameter in network.parameters() if parameter.dim() >= 2]
    voxels = sum(patch[:, 0].numel() for patch in patches)
    return 3 * 4 * voxels * max(widths, default=1)
