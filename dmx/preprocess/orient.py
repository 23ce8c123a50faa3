"""Axes of arrays: from a scan's own to those that the network sees, and back. Views, no voxel is changed."""

from typing import Any

from numpy.typing import NDArray

from dmx.geometry import Triple, triple

Flips = tuple[bool, bool, bool]
_PAIRS = ("RL", "AP", "SI")


def axes_and_flips(code: str, target: str) -> tuple[Triple, Flips]:
    """Return which axis of the scan becomes each axis of the target, and which of them run backwards.

    Args:
        code: Where the scan's axes point, e.g. ``LPS``.
        target: Where they shall point, e.g. ``RAS``; ``native`` for the axes as they are.

    >>> axes_and_flips("LIA", "RAS")
    ((0, 2, 1), (True, False, True))
    """
    if target == "native":
        return (0, 1, 2), (False, False, False)
    pairs = [next(pair for pair in _PAIRS if letter in pair) for letter in target]
    axes = triple([next(axis for axis, letter in enumerate(code) if letter in pair) for pair in pairs])
    i, j, k = (code[axis] != letter for axis, letter in zip(axes, target, strict=True))
    return axes, (i, j, k)


def orient(array: NDArray[Any], axes: Triple, flips: Flips) -> NDArray[Any]:
    """Turn the last three axes of a native array into the target's."""
    lead = array.ndim - 3
    turned = array.transpose(*range(lead), *(lead + axis for axis in axes))
    return _mirror(turned, flips)


def orient_back(array: NDArray[Any], axes: Triple, flips: Flips) -> NDArray[Any]:
    """Undo :func:`orient`."""
    lead = array.ndim - 3
    back = [axes.index(axis) for axis in range(3)]
    return _mirror(array, flips).transpose(*range(lead), *(lead + axis for axis in back))


def _mirror(array: NDArray[Any], flips: Flips) -> NDArray[Any]:
    i, j, k = (slice(None, None, -1 if flip else 1) for flip in flips)
    mirrored: NDArray[Any] = array[..., i, j, k]
    return mirrored
