"""Faults that a request can bring into a process, by name; each takes one value."""

import importlib
import os
import shutil
import time
from pathlib import Path
from typing import Any

from tests.faults.kills_board import die


def apart(value: bool) -> None:
    """Let the artifacts be reached by copying only, as if they were on another machine."""
    from dmx.tracking.mlflow_reader import MlflowReader

    if value:
        MlflowReader.local_artifacts = lambda self, run_id: None  # type: ignore[assignment,method-assign]


def without_sampler_position(value: bool) -> None:
    """Let every process draw its segments from the beginning, as a sampler would that is not part of a checkpoint."""
    from dmx.sampling.prefetch import Prefetcher

    start: list[Any] = []
    inner = Prefetcher.get

    def get(self: Any, key: Any) -> Any:
        start.append((0, 0, 0) if not start else self._following(start[-1]))
        return inner(self, start[-1])

    Prefetcher.get = get  # type: ignore[method-assign]


def one_core(value: bool) -> None:
    """Prepare cases in this process."""
    if value:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def sampler_raises(after: int) -> None:
    """Let a draw fail in whichever thread makes it, with something that nobody foresaw."""
    from dmx.sampling.sampler import SegmentSampler

    inner = SegmentSampler.batch
    draws: list[int] = []

    def batch(self: Any, *key: int) -> Any:
        draws.append(1)
        if len(draws) > after:
            raise OSError(5, "Input/output error")
        return inner(self, *key)

    SegmentSampler.batch = batch  # type: ignore[method-assign]


def change_file(what: dict[str, str]) -> None:
    """Write something else into a file, or remove it, when a function is called (``after`` the check, or a read)."""
    path = Path(what["path"])
    module, _, name = what["when"].rpartition(".")
    owner = importlib.import_module(module)
    inner = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        if what["content"]:
            shutil.copy(what["content"], path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        return result

    setattr(owner, name, call)


def killed_while_preparing(value: bool) -> None:
    """Die when other processes have been started to prepare cases."""
    from concurrent.futures import ProcessPoolExecutor

    inner = ProcessPoolExecutor.submit
    jobs: list[int] = []

    def submit(self: Any, *args: Any) -> Any:
        future = inner(self, *args)
        jobs.append(1)
        if len(jobs) == 2:
            die()
        return future

    ProcessPoolExecutor.submit = submit  # type: ignore[assignment,method-assign]


def memory_for(voxels: int) -> None:
    """Let a pass over more voxels than that run out of memory."""
    import torch

    from dmx.model.multiscale import MultiScaleNet

    inner = MultiScaleNet.forward

    def forward(self: Any, patches: Any) -> Any:
        if not patches[0].is_meta and patches[0][:, 0].numel() > voxels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return inner(self, patches)

    MultiScaleNet.forward = forward  # type: ignore[method-assign]


def memory_group(folder: str) -> None:
    """Put this process into a control group."""
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))


def paced(seconds: float) -> None:
    """Let every step last longer without computing, so that an outage fits between two of them."""
    from dmx.training import loop

    inner = loop.train_step

    def step(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return inner(*args, **kwargs)

    loop.train_step = step
