"""What a training step gets from the sampler."""

from dataclasses import dataclass
from typing import Final

from torch import Tensor

IGNORED: Final = -1
"""Label of voxels of the output block that lie outside of the volume; losses and metrics leave them out."""


@dataclass(frozen=True)
class Batch:
    """Segments or images of one forward pass, on the device that trains.

    Attributes:
        inputs: One float32 tensor ``[N, C, I, J, K]`` per patch of the plan, in its order; of images a single one,
            ``[N, 3, H, W]``.
        target: Labels of the output blocks, int64 ``[N, I, J, K]``; :data:`IGNORED` (-1) outside of the volume. Of
            images the class, int64 ``[N]`` (-1 where it is unknown), or numbers, float32 ``[N, targets]``.
        cases: Name of the case of each segment, or of each image.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor
    cases: tuple[str, ...]
