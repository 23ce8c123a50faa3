"""Tables with an entry per place of a grid: position embeddings, and biases by the offset within a window."""

from collections.abc import Sequence

from dmx.transfer.describe import TensorSketch
from dmx.transfer.report import size_text
from dmx.transfer.values import AxisRule

# As Swin (Liu et al. 2021) and ViT (Dosovitskiy et al. 2021) do it for images; torch has no cubic rule for volumes.
MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}
"""How values between places are found, by the number of axes of the grid, as torch calls it."""

_MOST_LEADING = 2


def cube(places: int, *, axes: int) -> tuple[tuple[int, ...], int]:
    """Return the square or cube that so many places are, and how many entries stand before it; empty: they are none.

    >>> cube(27, axes=3), cube(197, axes=2), cube(144, axes=3)
    (((3, 3, 3), 0), ((14, 14), 1), ((), 0))
    """
    for lead in range(_MOST_LEADING + 1):
        side = round(max(places - lead, 0) ** (1 / axes))
        if side > 1 and side**axes == places - lead:
            return (side,) * axes, lead
    return (), 0


def place_rule(target: TensorSketch, source: TensorSketch) -> AxisRule | str | None:
    """Return how a table becomes one of another grid; None where the grids are the same; words where it cannot.

    Args:
        target: The table that receives, which has an axis ``place``.
        source: The table that gives.
    """
    assert target.meaning is not None
    axis = target.axes.index("place")
    ours, lead = target.meaning.grid, target.meaning.lead
    known = source.meaning
    theirs, before = (known.grid, known.lead) if known is not None else ((), 0)
    if not theirs and source.shape[axis] == target.shape[axis]:
        theirs, before = ours, lead
    elif not theirs and ours:
        theirs, before = cube(source.shape[axis], axes=len(ours))
    if theirs == ours and before == lead and (ours or source.shape[axis] == target.shape[axis]):
        return None
    if not theirs or len(theirs) != len(ours) or before != lead:
        return (
            f"its {target.shape[axis]} entries here{_grid_text(ours, lead)} and {source.shape[axis]} in the source"
            f"{_grid_text(theirs, before)} are no grids of which one could become the other"
        )
    return AxisRule("places", axis, theirs, ours, lead)


def place_text(rule: AxisRule) -> str:
    """Return a rule as words."""
    return (
        f"{size_text(rule.source)} places interpolated to {size_text(rule.target)} ({MODES[len(rule.target)]}"
        f"{', all but the leading ' + str(rule.lead) if rule.lead else ''})"
    )


def _grid_text(grid: Sequence[int], lead: int) -> str:
    if not grid:
        return ""
    return f" ({size_text(grid)}{f' and {lead} before them' if lead else ''})"
