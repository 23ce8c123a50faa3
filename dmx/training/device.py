"""The device that trains: find it, prepare it, and leave it as it was."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmx.config.sections import TrainingSection
from dmx.errors import ConfigError

_GIB = 2.0**30


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: The name is none of these, or this machine has no such device.
    """
    count = torch.cuda.device_count() if name != "cpu" else 0
    if name == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index.isdigit() or name == "cuda"):
        raise ConfigError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got '{name}'.")
    if int(index or 0) >= count:
        raise ConfigError(
            f"device '{name}' is not on this machine, which has {count or 'no'} CUDA device{'s' * (count != 1)}. "
            "Use 'auto' or 'cpu'."
        )
    return torch.device("cuda", int(index or 0))


def resolve_devices(training: TrainingSection) -> tuple[torch.device, ...]:
    """Return the device of each process of a training: the CPU for all, or one GPU after the other.

    Raises:
        ConfigError: The device is absent, or there are fewer GPUs than processes.
    """
    first = resolve_device(training.device)
    if first.type == "cpu":
        return (first,) * training.processes
    count, start = torch.cuda.device_count(), first.index
    if start + training.processes > count:
        raise ConfigError(
            f"training.processes: {training.processes} takes a GPU for each process, from '{first}' on, and this "
            f"machine has {count}. Set fewer processes, or training.device: cpu."
        )
    return tuple(torch.device("cuda", start + process) for process in range(training.processes))


def threads_of(training: TrainingSection) -> int | None:
    """Return the CPU threads of each process; None: as torch chooses."""
    if training.threads is not None or training.processes == 1:
        return training.threads
    return max(1, torch.get_num_threads() // training.processes)


@contextmanager
def prepared(training: TrainingSection, device: torch.device) -> Iterator[None]:
    """Set threads, deterministic algorithms and the random state for a training; restore all of it afterwards."""
    cudnn = torch.backends.cudnn
    # A module that torch replaces by an object, which the type checker does not see.
    filling = cast(Any, torch.utils.deterministic)
    before = (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        filling.fill_uninitialized_memory,
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )
    try:
        threads = threads_of(training)
        if threads is not None:
            torch.set_num_threads(threads)
        if training.deterministic:
            # cuBLAS reads it when the first matrix product runs.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # The same as torch.use_deterministic_algorithms without its import of the compiler, which takes seconds.
        torch.set_deterministic_debug_mode("error" if training.deterministic else "default")
        # Filling new memory is a debugging aid of the deterministic mode and costs bandwidth.
        filling.fill_uninitialized_memory = False
        cudnn.deterministic = training.deterministic
        cudnn.benchmark = not training.deterministic
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        filling.fill_uninitialized_memory = before[2]
        cudnn.deterministic, cudnn.benchmark = before[3], before[4]
        if before[5] is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def seed_generators(key: int, device: torch.device) -> None:
    """Set the generators of the CPU and of the device that trains.

    Not ``torch.manual_seed``, which also asks every other backend: a millisecond, and a list that grows at each call
    where CUDA is not in use.
    """
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(key)


def place(model: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    """Move a network to the device, in the wished memory layout."""
    model.to(device)
    if channels_last:
        for parameter in model.parameters():
            parameter.data = lay_out(parameter.data, channels_last=True)


def lay_out(tensor: Tensor, *, channels_last: bool) -> Tensor:
    """Return a 5D tensor with its channels innermost in memory, if that is wished; others as they are."""
    if channels_last and tensor.dim() == 5:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Return the peak memory of the process, and of the GPU since the last call, in GiB."""
    metrics = {"system/cpu_peak_memory_gib": _peak_memory() / _GIB}
    if device.type == "cuda":
        metrics["system/gpu_peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
        torch.cuda.reset_peak_memory_stats(device)
    return metrics


def _peak_memory() -> float:
    """Return the largest resident size of this process in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return float(peak) if sys.platform == "darwin" else peak * 1024.0
