"""Prepared cases as tensors for the sampler."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from dmx.children import usable_cpus
from dmx.cohort.case import Case
from dmx.paths import within
from dmx.preprocess.cache import CachedCase, CaseCache
from dmx.preprocess.contract import Contract
from dmx.preprocess.kept import KeptVolume, kept_volumes, kept_warnings
from dmx.sampling.source import CaseData, CaseSource, DeviceSource, MemoryMappedSource
from dmx.workflows.session import Session

Progress = Callable[[int, int, str], None]


def cache_folder(root: Path) -> Path:
    """Return where prepared cases are kept: DMX_CACHE, else ``mlruns/cache`` of the project."""
    named = os.environ.get("DMX_CACHE")
    return Path(named) if named else within(root / "mlruns", "cache", what="The folder of runs")


def prepare_cases(
    cases: Sequence[Case], contract: Contract, *, root: Path, progress: Progress | None = None
) -> list[CachedCase]:
    """Prepare cases once per content and contract; what is cached is only looked up."""
    processes = max(1, min(usable_cpus(), 8))
    return CaseCache(cache_folder(root)).prepare(cases, contract, progress=progress, processes=processes)


def kept_of(cached: Sequence[CachedCase], contract: Contract, session: Session) -> list[KeptVolume]:
    """Return what resampling and cropping left of each class, and warn of what it lost."""
    rows = kept_volumes((case.name, case.volumes) for case in cached)
    for sentence in kept_warnings(rows, spacing=contract.spacing):
        session.warn(sentence)
    return rows


def case_data(cached: CachedCase) -> CaseData:
    """Open a prepared case as tensors that read from its memory maps; nothing is copied."""
    return CaseData(
        name=cached.name,
        channels_CIJK=torch.from_numpy(cached.channels),
        labels_IJK=None if cached.labels is None else torch.from_numpy(cached.labels),
        roi_IJK=None if cached.roi is None else torch.from_numpy(cached.roi),
        centers={name: torch.from_numpy(indices) for name, indices in cached.centers.items()},
        weight_cumsums={name: torch.from_numpy(sums) for name, sums in cached.weight_cumsums.items()},
    )


def case_source(cached: Sequence[CachedCase], *, device: torch.device, memory_gb: float) -> CaseSource:
    """Return the cases for the sampler, on the device that trains as far as its memory goes."""
    mapped = MemoryMappedSource([partial(case_data, case) for case in cached])
    return mapped if device.type == "cpu" else DeviceSource(mapped, device=device, memory_gb=memory_gb)
