"""Reflections and turns by 90 degrees: nothing is interpolated, only what is read and how it is laid out changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dmx.errors import ConfigError
from dmx.geometry import PatchPlan, SegmentPlan, Triple, triple

PLANES = {"xy": (0, 1), "yz": (1, 2), "xz": (0, 2)}


@dataclass(frozen=True)
class Orientation:
    """How the axes of a segment lie in the volume.

    Attributes:
        axes: Axis of the volume that each axis of the segment follows.
        flips: Whether each axis of the segment runs backwards.
    """

    axes: Triple = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def upright(self) -> bool:
        """Tell whether nothing changes."""
        return self == Orientation()

    def reflected(self, axis: int) -> "Orientation":
        """Return this orientation with one axis of the segment turned round."""
        i, j, k = (flip != (at == axis) for at, flip in enumerate(self.flips))
        return replace(self, flips=(i, j, k))

    def turned(self, plane: tuple[int, int], quarters: int) -> "Orientation":
        """Return this orientation turned by 90 degrees in a plane, so often, from its first axis to its second."""
        turned = self
        for _ in range(quarters % 4):
            a, b = plane
            axes, flips = list(turned.axes), list(turned.flips)
            axes[a], axes[b] = axes[b], axes[a]
            flips[a], flips[b] = not flips[b], flips[a]
            # As in rot90: swap the axes, then turn the first one of the plane round.
            turned = Orientation(triple(axes), (flips[0], flips[1], flips[2]))
        return turned

    def lay(self, array: Tensor) -> Tensor:
        """Lay out the last three axes of an array read from the volume as the segment has them."""
        lead = list(range(array.ndim - 3))
        moved = array.permute(*lead, *(len(lead) + axis for axis in self.axes))
        return moved.flip([len(lead) + axis for axis, flip in enumerate(self.flips) if flip])

    def upright_plan(self, plan: SegmentPlan) -> SegmentPlan:
        """Return the plan of what must be read from the volume for a segment that lies so."""
        return SegmentPlan(
            shape=self._upright(plan.shape),
            output_shape=self._upright(plan.output_shape),
            margin_before=self._upright(self._ahead(plan.margin_before, plan.margin_after)),
            margin_after=self._upright(self._ahead(plan.margin_after, plan.margin_before)),
            patches=tuple(self._patch(patch, plan.shape) for patch in plan.patches),
        )

    def _patch(self, patch: PatchPlan, segment: Triple) -> PatchPlan:
        behind = triple(
            [s - o - n * f for s, o, n, f in zip(segment, patch.offset, patch.shape, patch.factor, strict=True)]
        )
        return replace(
            patch,
            shape=self._upright(patch.shape),
            factor=self._upright(patch.factor),
            offset=self._upright(self._ahead(patch.offset, behind)),
        )

    def _ahead(self, before: Triple, after: Triple) -> Triple:
        """Return what lies before each axis of the segment, seen along the volume."""
        return triple([b if flip else a for a, b, flip in zip(before, after, self.flips, strict=True)])

    def _upright(self, values: Triple) -> Triple:
        placed = [0, 0, 0]
        for axis, value in zip(self.axes, values, strict=True):
            placed[axis] = value
        return triple(placed)


def require_square(plan: SegmentPlan, plane: str, setting: str) -> None:
    """Refuse turns by 90 or 270 degrees in a plane whose sides differ.

    Raises:
        ConfigError: A segment or patch has different sides or factors in the plane.
    """
    a, b = PLANES[plane]
    sizes: list[tuple[str, Sequence[int]]] = [("segment", plan.shape), ("output", plan.output_shape)]
    sizes += [(f"patch '{p.name}'", p.shape) for p in plan.patches]
    sizes += [(f"factor of patch '{p.name}'", p.factor) for p in plan.patches]
    for what, size in sizes:
        if size[a] != size[b]:
            raise ConfigError(
                f"{setting}.{plane} turns by 90 or 270 degrees, which needs equal sides in the plane; the {what} has "
                f"{size[a]} and {size[b]}. Choose a segment with equal sides there, or turns by 0 and 180 degrees only."
            )
