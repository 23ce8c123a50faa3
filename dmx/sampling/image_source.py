"""Prepared images as tensors: memory-mapped on the CPU, or copied to the device that trains where they fit."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images by index; safe to read from several threads.

    Attributes:
        ids: Name of each image, for batches and sentences.
        packed: All pixels, uint8 [num_bytes].
        offsets: Where in ``packed`` each image begins; images may share a place.
        sizes: Height and width of each image.
        target: Class index of each image, int64 [images], -1 where it is unknown; or the numbers of a regression,
            float32 [images, targets], ``nan`` where one is unknown.
    """

    ids: tuple[str, ...]
    packed: Tensor
    offsets: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    target: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        """Return an image, uint8 [3, H, W]; red, green, blue, on the source's device."""
        height, width = self.sizes[index]
        return self.packed.narrow(0, self.offsets[index], 3 * height * width).view(3, height, width)

    def on(self, device: torch.device | str, *, memory_gb: float) -> "ImageSource":
        """Return the source with its pixels on a device, or itself where they take more than ``memory_gb`` · 10⁹ bytes.

        What stays on the CPU is cut there, and only the cut-out goes to the device.
        """
        device = torch.device(device)
        if device.type == "cpu" or self.packed.numel() > memory_gb * 1e9:
            return self
        return replace(self, packed=self.packed.to(device))
