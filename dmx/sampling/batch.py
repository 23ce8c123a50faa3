"""What a training step gets from the sampler."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Segments or images of one forward pass, on the device that trains.

    Attributes:
        inputs: One float32 tensor ``[N, C, I, J, K]`` per patch of the plan, in its order; of images a single one,
            ``[N, 3, H, W]``.
        target: Labels of the output blocks, int64 ``[N, I, J, K]``; :data:`~dmx.cohort.regions.IGNORED` (-1) outside of
            the volume and where nobody annotated: losses and metrics leave these voxels out. Of images the class, int64
            ``[N]`` (-1 where it is unknown), or numbers, float32 ``[N, targets]``.
        cases: Name of the case of each segment, or of each image.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor
    cases: tuple[str, ...]
