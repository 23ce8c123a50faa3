"""The cases as tensors: memory-mapped on the CPU, or copied to the device that trains as far as its memory goes."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Final, Protocol

import torch
from torch import Tensor

from dmx.geometry import Triple, triple

WHOLE_IMAGE: Final = "image"
"""Category of all voxels; every case has it. Cases with voxels that nobody annotated list all others."""
WEIGHTS: Final = "weight_"
"""Prefix of the categories that weight maps stand for."""


@dataclass(frozen=True)
class CaseData:
    """One case as the sampler reads it.

    Attributes:
        name: Name of the case.
        channels_CIJK: Channels, floating point.
        labels_IJK: Label map, integers; None where a case has none.
        roi_IJK: Region of interest; None where a case has none.
        centers: Category: flat voxel indices (C order, int64) that belong to it, on the CPU.
        weight_cumsums: Weight map: cumulative weights over all voxels (C order), on the CPU.
    """

    name: str
    channels_CIJK: Tensor
    labels_IJK: Tensor | None = None
    roi_IJK: Tensor | None = None
    centers: Mapping[str, Tensor] = field(default_factory=dict)
    weight_cumsums: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def spatial_shape(self) -> Triple:
        """Size of the volume in voxels."""
        return triple(self.channels_CIJK.shape[1:])

    def has(self, category: str) -> bool:
        """Tell whether a center can be drawn from a category."""
        if category == WHOLE_IMAGE and category not in self.centers:
            return True
        if category.startswith(WEIGHTS):
            weights = self.weight_cumsums.get(category.removeprefix(WEIGHTS))
            return weights is not None and weights.numel() > 0 and bool(weights.reshape(-1)[-1] > 0)
        centers = self.centers.get(category)
        return centers is not None and centers.numel() > 0

    def num_bytes(self) -> int:
        """Return the memory that the arrays take which go to the device."""
        arrays = (self.channels_CIJK, self.labels_IJK, self.roi_IJK)
        return sum(array.numel() * array.element_size() for array in arrays if array is not None)


class CaseSource(Protocol):
    """A cohort's cases by index. Safe to read from several threads."""

    def __len__(self) -> int:
        """Return the number of cases."""
        ...

    def __getitem__(self, index: int) -> CaseData:
        """Return a case, its arrays on the source's device."""
        ...

    def has(self, index: int, category: str) -> bool:
        """Tell whether a center can be drawn from a category of the case."""
        ...


class MemoryMappedSource:
    """Cases that are opened when they are needed and read voxel by voxel from memory maps; nothing is copied.

    Args:
        loaders: One function per case that opens it, with tensors made from memory maps.
        keep_open: Cases that stay open. A process may hold some ten thousand memory maps only.
    """

    def __init__(self, loaders: Sequence[Callable[[], CaseData]], *, keep_open: int = 512) -> None:
        self._loaders = tuple(loaders)
        self._keep_open = keep_open
        self._open: OrderedDict[int, CaseData] = OrderedDict()
        self._has: dict[tuple[int, str], bool] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._loaders)

    def __getitem__(self, index: int) -> CaseData:
        with self._lock:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
        # Opened outside of the lock: two threads may open the same case, which costs less than waiting for each other.
        case = self._loaders[index]()
        with self._lock:
            self._open[index] = case
            while len(self._open) > self._keep_open:
                self._open.popitem(last=False)
        return case

    def has(self, index: int, category: str) -> bool:
        """Tell whether a center can be drawn from a category of the case; asks the files once."""
        key = (index, category)
        if key not in self._has:
            self._has[key] = self[index].has(category)
        return self._has[key]


class DeviceSource:
    """Cases on the device that trains: copied when first read, dropped least recently used first.

    Args:
        cases: Where cases come from.
        device: Where their channels, label map and roi go; centers stay where draws are made, on the CPU.
        memory_gb: Memory of the device that kept cases may take, in 10⁹ bytes. A case larger than that is used and
            not kept.
    """

    def __init__(self, cases: CaseSource, *, device: torch.device | str, memory_gb: float) -> None:
        self._cases = cases
        self._device = torch.device(device)
        self._budget = int(memory_gb * 1e9)
        self._kept: OrderedDict[int, CaseData] = OrderedDict()
        self._kept_bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> CaseData:
        # One copy at a time: parallel copies to one device are no faster and would exceed the budget.
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            case = self._copy(self._cases[index])
            self._kept[index] = case
            self._kept_bytes += case.num_bytes()
            while self._kept_bytes > self._budget:
                _, dropped = self._kept.popitem(last=False)
                self._kept_bytes -= dropped.num_bytes()
            return case

    def has(self, index: int, category: str) -> bool:
        """Tell whether a center can be drawn from a category of the case, without copying it."""
        return self._cases.has(index, category)

    def _copy(self, case: CaseData) -> CaseData:
        def moved(array: Tensor | None) -> Tensor | None:
            return None if array is None else array.to(self._device, copy=True)

        channels = case.channels_CIJK.to(self._device, torch.float32, copy=True)
        return replace(case, channels_CIJK=channels, labels_IJK=moved(case.labels_IJK), roi_IJK=moved(case.roi_IJK))
