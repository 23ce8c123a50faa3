"""Networks whose scores have fewer than three axes of space: of images, or one score per class for a whole scan."""

from collections.abc import Sequence

from torch import Tensor

from dmx.errors import ModelError
from dmx.model.module import ModuleNetwork

_AXES = 3


class LiftedNetwork(ModuleNetwork):
    """A module whose scores get axes of length one, so that losses and counts see a volume.

    ``[N, classes, H, W]`` becomes ``[N, classes, 1, H, W]`` and ``[N, classes]`` becomes ``[N, classes, 1, 1, 1]``.
    """

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return class scores [N, classes, I, J, K] of the one input [N, C, …]."""
        return lift(super().forward(patches), axes_before=2)

    def plain_scores(self, inputs: Tensor) -> Tensor:
        """Return the scores as the module gives them."""
        return super().forward([inputs])


def lift(tensor: Tensor, *, axes_before: int) -> Tensor:
    """Return a tensor with three axes of space, the first of which are new where it has fewer.

    Args:
        tensor: Scores ``[N, classes, …]`` or labels ``[N, …]``.
        axes_before: Axes before those of space: 2 or 1.

    Raises:
        ModelError: It has more than three axes of space.
    """
    missing = _AXES - (tensor.ndim - axes_before)
    if not 0 <= missing <= _AXES:
        raise ModelError(f"Scores must be [N, classes], or with one to three axes more, got {[*tensor.shape]}.")
    return tensor.reshape(*tensor.shape[:axes_before], *(1,) * missing, *tensor.shape[axes_before:])
