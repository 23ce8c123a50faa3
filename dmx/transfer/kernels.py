"""Kernels of different sizes: how taps become other taps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dmx.transfer.report import size_text


@dataclass(frozen=True)
class KernelStep:
    """One axis of a kernel that changes.

    Attributes:
        kind: ``collapse`` adds the outer taps to the outermost that stay, ``grow`` puts zeros around, ``inflate``
            inserts the axis and divides by its length, ``flatten`` adds up all taps of the axis and removes it.
        axis: Axis among the taps, from 0.
        source: Taps before.
        target: Taps after.
    """

    kind: Literal["collapse", "grow", "inflate", "flatten"]
    axis: int
    source: int
    target: int

    @property
    def exact(self) -> bool:
        """Whether the same is computed, apart from how much of the border is lost."""
        if self.kind == "grow":
            return (self.target - self.source) % 2 == 0
        return self.source == self.target

    def __str__(self) -> str:
        """Return the step as words."""
        words = {
            "collapse": f"axis {self.axis} collapsed from {self.source} to {self.target} by sum",
            "grow": f"axis {self.axis} grown from {self.source} to {self.target} by zeros",
            "inflate": f"inflated along axis {self.axis}, divided by {self.target}",
            "flatten": f"flattened along axis {self.axis} by sum",
        }
        return words[self.kind]


def kernel_steps(source: Sequence[int], target: Sequence[int]) -> tuple[KernelStep, ...] | None:
    """Return how a kernel of one size becomes one of another, or None where it cannot.

    >>> [str(step) for step in kernel_steps((3, 3), (3, 3, 5))]
    ['inflated along axis 2, divided by 5']
    """
    taps, steps = list(source), []
    if len(target) - len(taps) == 1:
        axis = _odd_one(target, source)
        # The step's axis is inserted with all of its taps at once.
        steps.append(KernelStep("inflate", axis, 1, target[axis]))
        taps.insert(axis, target[axis])
    elif len(taps) - len(target) == 1:
        axis = _odd_one(source, target)
        steps.append(KernelStep("flatten", axis, taps.pop(axis), 1))
    if len(taps) != len(target) or not taps:
        return None
    for axis, (before, after) in enumerate(zip(taps, target, strict=True)):
        if before != after:
            steps.append(KernelStep("grow" if after > before else "collapse", axis, before, after))
    return tuple(steps)


def _odd_one(more: Sequence[int], fewer: Sequence[int]) -> int:
    """Return the axis without which the sizes agree: the last one that fits, else the last one."""
    axes = range(len(more) - 1, -1, -1)
    fits = (axis for axis in axes if (*more[:axis], *more[axis + 1 :]) == tuple(fewer))
    return next(fits, len(more) - 1)


def kernel_text(steps: Sequence[KernelStep], source: Sequence[int], target: Sequence[int]) -> str:
    """Return the rule of a kernel as words."""
    return f"kernel {size_text(source)} to {size_text(target)}: {', '.join(map(str, steps))}"
