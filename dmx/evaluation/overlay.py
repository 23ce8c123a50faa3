"""A picture of a case: its channels, the truth and the prediction on the slices that tell most."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmx.evaluation.figures import CLASS_COLORS, new_figure
from dmx.evaluation.metrics import Classes, label_sets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]

_UNKNOWN = "#7F9FBF"


def overlay_figure(
    channels: Mapping[str, Array],
    prediction: Array,
    *,
    truth: Array | None = None,
    classes: Classes,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    title: str = "",
) -> "Figure":
    """Show three slices across the third axis: every channel, and truth and prediction drawn on the first one.

    Args:
        channels: Channel name → array [I, J, K].
        prediction: Label map [I, J, K].
        truth: Label map [I, J, K], -1 where nobody annotated; left out where there is none.
        classes: Class names, background first; or region → its labels. Regions are drawn over each other in their
            order.
        spacing: Voxel size in mm, for the proportions.
        title: One line above, e.g. the case and its Dice.
    """
    sets = label_sets(classes)
    chosen = telling_slices(prediction if truth is None else truth, prediction, count=3)
    box = _content_box(next(iter(channels.values())))
    label_maps = {"prediction": prediction} if truth is None else {"truth": truth, "prediction": prediction}
    height = (box[1].stop - box[1].start) * spacing[1]
    width = (box[0].stop - box[0].start) * spacing[0]
    columns = len(channels) + len(label_maps)
    size = 2.2
    figure = new_figure((columns * size * min(width / height, 1.6) + 0.3, len(chosen) * size + 0.8))
    axes = figure.subplots(len(chosen), columns, squeeze=False)
    for row, index in zip(axes, chosen, strict=True):
        cut = (*box, index)
        for panel, (name, array) in zip(row, channels.items(), strict=False):
            _show_slice(panel, array, cut, spacing)
            _label(panel, name, first_row=index == chosen[0])
        row[0].set_ylabel(f"slice {index}")
        for panel, (name, labels) in zip(row[len(channels) :], label_maps.items(), strict=True):
            _show_slice(panel, next(iter(channels.values())), cut, spacing)
            _draw_classes(panel, labels[cut], [*sets.values()])
            _label(panel, name, first_row=index == chosen[0])
    _legend(figure, [*sets], unknown=truth is not None and bool((truth < 0).any()))
    if title:
        figure.suptitle(title)
    return figure


def telling_slices(truth: Array, prediction: Array, *, count: int) -> list[int]:
    """Return slices of the third axis, spread over where foreground is, drawn towards where the two differ.

    >>> labels = np.zeros((2, 2, 9)); labels[..., 4:7] = 1
    >>> telling_slices(labels, labels, count=3)
    [4, 5, 6]
    """
    differs = np.count_nonzero((truth != prediction) & (truth >= 0), axis=(0, 1))
    weight = np.count_nonzero((truth > 0) | (prediction > 0), axis=(0, 1)) + 2.0 * differs
    if not weight.any():
        weight = np.ones(truth.shape[2])
    share = np.cumsum(weight) / weight.sum()
    wanted = [(n + 0.5) / count for n in range(count)]
    return sorted({int(np.searchsorted(share, level)) for level in wanted})


def _content_box(channel: Array) -> tuple[slice, slice]:
    """Return the part of the slices that is not empty around the scan, with two voxels to spare."""
    filled = channel != channel[0, 0, 0]
    box = []
    for axis, other in ((0, 1), (1, 0)):
        hits = np.flatnonzero(filled.any(axis=2).any(axis=other))
        length = channel.shape[axis]
        box.append(slice(max(hits[0] - 2, 0), min(hits[-1] + 3, length)) if len(hits) else slice(0, length))
    return box[0], box[1]


def _show_slice(panel: "Axes", array: Array, cut: tuple[Any, ...], spacing: Sequence[float]) -> None:
    image = np.asarray(array[cut], dtype=np.float32)
    content = image[image != array[0, 0, 0]]
    low, high = np.percentile(content, [1, 99.5]) if content.size else (0.0, 1.0)
    panel.imshow(
        image.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect=spacing[1] / spacing[0]
    )
    panel.set_xticks([])
    panel.set_yticks([])
    for side in panel.spines.values():
        side.set_visible(False)


def _draw_classes(panel: "Axes", labels: Array, sets: Sequence[Sequence[int]]) -> None:
    """Tint each class or region and draw its outline along the voxels' edges; veil what nobody annotated."""
    from matplotlib.colors import to_rgba

    shown = labels.T
    tint = np.zeros((*shown.shape, 4))
    tint[shown < 0] = to_rgba(_UNKNOWN, 0.35)
    for index, members in enumerate(sets):
        region = np.isin(shown, members)
        if not region.any():
            continue
        color = CLASS_COLORS[index % len(CLASS_COLORS)]
        tint[region] = to_rgba(color, 0.25)
        # Repeated voxels make the contour follow edges instead of cutting corners.
        fine = np.repeat(np.repeat(region, 4, axis=0), 4, axis=1)
        columns = (np.arange(fine.shape[1]) + 0.5) / 4 - 0.5
        rows = (np.arange(fine.shape[0]) + 0.5) / 4 - 0.5
        panel.contour(columns, rows, fine, levels=[0.5], colors=[color], linewidths=0.9)
    panel.imshow(tint, origin="lower", aspect=panel.get_aspect(), interpolation="nearest")


def _label(panel: "Axes", name: str, *, first_row: bool) -> None:
    if first_row:
        panel.set_title(name, fontsize=10)


def _legend(figure: "Figure", names: Sequence[str], *, unknown: bool) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=CLASS_COLORS[index % len(CLASS_COLORS)], label=name) for index, name in enumerate(names)]
    if unknown:
        handles.append(Patch(facecolor=_UNKNOWN, label="not annotated"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
