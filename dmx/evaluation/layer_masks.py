"""``.dmask.csv``: which channels, rows and columns of which layers, as DNNBrain writes it.

A line ``layer=chn,row`` names a layer and axes; then comes a line of numbers per axis, counted from 1. An axis that is
not named is taken whole; a line ``layer=`` takes the whole layer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from dmx.errors import ConfigError, ModelError

SUFFIX: Final = ".dmask.csv"
_AXES: Final = {"chn": "channels", "row": "rows", "col": "columns"}


@dataclass(frozen=True, kw_only=True)
class LayerMask:
    """Which part of a layer's output is wanted; numbers count from 1, and their order is kept.

    Attributes:
        channels: Channels; None: all.
        rows: Rows of two-dimensional feature maps; None: all.
        columns: Columns; None: all.
    """

    channels: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None

    def axes(self) -> dict[str, tuple[int, ...]]:
        """Return the chosen numbers by the file's name of the axis."""
        found = {axis: getattr(self, field) for axis, field in _AXES.items()}
        return {axis: numbers for axis, numbers in found.items() if numbers is not None}

    def apply(self, output_NC: Tensor, *, layer: str) -> Tensor:
        """Return the wanted part of a layer's output [N, channels, rows, columns].

        Raises:
            ModelError: The output has no such channel, row or column.
        """
        for axis, (name, numbers) in enumerate(self._all(), start=1):
            if numbers is None:
                continue
            size = output_NC.shape[axis] if axis < output_NC.ndim else 0
            wrong = next((number for number in numbers if not 1 <= number <= size), None)
            if wrong is not None:
                raise ModelError(f"Layer '{layer}' has {size} {name}, counted from 1, got {name[:-1]} {wrong}.")
            output_NC = output_NC[(slice(None),) * axis + ([number - 1 for number in numbers],)]
        return output_NC

    def _all(self) -> Iterator[tuple[str, tuple[int, ...] | None]]:
        return ((field, getattr(self, field)) for field in _AXES.values())


ALL: Final = LayerMask()


def read_masks(path: Path) -> dict[str, LayerMask]:
    """Return the masks of a file by layer, in its order.

    Raises:
        ConfigError: The file is missing or says something else; the line is named.
    """
    if not path.name.endswith(SUFFIX):
        raise ConfigError(f"A file of masks must end with {SUFFIX}, got '{path}'.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The masks '{path}' cannot be read ({error}).") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip(" ,\t")]
    masks: dict[str, LayerMask] = {}
    place = 0
    while place < len(lines):
        number, line = lines[place]
        layer, sign, words = line.partition("=")
        layer = layer.strip()
        axes = [word.strip() for word in words.split(",") if word.strip()]
        if not sign or not layer:
            raise _wrong(path, number, f"it must name a layer, such as 'conv5=chn', got '{line}'")
        if layer in masks:
            raise _wrong(path, number, f"layer '{layer}' is named twice")
        if any(axis not in _AXES for axis in axes) or len(set(axes)) < len(axes):
            raise _wrong(path, number, f"axes must be chn, row and col, each once, got '{words}'")
        values = {}
        for offset, axis in enumerate(axes, start=1):
            values[_AXES[axis]] = _numbers(path, lines, place + offset, axis)
        masks[layer] = LayerMask(**values)
        place += 1 + len(axes)
    return masks


def _numbers(path: Path, lines: list[tuple[int, str]], place: int, axis: str) -> tuple[int, ...]:
    """Return the numbers of the line that belongs to an axis."""
    if place >= len(lines):
        raise _wrong(path, lines[-1][0], f"the line with the numbers of '{axis}' is missing after it")
    number, line = lines[place]
    words = [word.strip() for word in line.split(",") if word.strip()]
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise _wrong(path, number, f"the numbers of '{axis}' must count from 1, separated by commas, got '{line}'")
    return tuple(int(word) for word in words)


def _wrong(path: Path, number: int, why: str) -> ConfigError:
    return ConfigError(f"'{path}', line {number}: {why}.")


def write_masks(masks: Mapping[str, LayerMask], path: Path) -> None:
    """Write masks by layer.

    Raises:
        ConfigError: The name does not end with ``.dmask.csv``, or a layer's name cannot stand in the file.
    """
    if not path.name.endswith(SUFFIX):
        raise ConfigError(f"A file of masks must end with {SUFFIX}, got '{path}'.")
    lines = []
    for layer, mask in masks.items():
        if not layer.strip() or "=" in layer or "\n" in layer:
            raise ConfigError(f"A layer in a file of masks must have a name without '=', got '{layer}'.")
        axes = mask.axes()
        lines += [f"{layer}={','.join(axes)}", *(",".join(map(str, numbers)) for numbers in axes.values())]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
