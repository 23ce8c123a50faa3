"""Figures as matplotlib ``Figure`` objects. Nothing here touches pyplot, so nothing is shown, kept or shared."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dmx.evaluation.metrics import FOREGROUND, Classes, Score, label_sets, statuses

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASS_COLORS = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#009E73", "#D55E00")
"""Color of class 1, 2, …: told apart by color-blind readers, and from gray scans (Okabe and Ito 2008)."""
_LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_INK = "#444444"
_RUN_PANELS = ("train/mean_loss", "val/loss", "val/dice", "val_volume/dice", "val/balanced_accuracy", "val/r2")

History = Sequence[Mapping[str, float | None]]


def new_figure(size: tuple[float, float]) -> "Figure":
    """Return an empty figure of a size in inches, whose parts keep clear of each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def figure_png(figure: "Figure", *, dpi: int = 110) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def figure_image(figure: "Figure", *, dpi: int = 110) -> NDArray[np.uint8]:
    """Return the figure as an image [height, width, 3] of uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def dice_figure(rows: Sequence[Mapping[str, Score]], classes: Classes) -> "Figure":
    """Show the Dice score of every case, by class: each case a point, the quartiles as a box.

    Classes that were missed or predicted where there are none count as 0, are drawn as crosses and counted below the
    name; cases that have the class nowhere are counted there too.

    Args:
        rows: Rows of :func:`~dmx.evaluation.metrics.score_case`; ``case`` names the lowest point of each class.
        classes: Class names, background first; or region → its labels.
    """
    names = list(label_sets(classes))
    if len(names) > 1:
        names = [FOREGROUND, *names]
    figure = new_figure((max(4.5, 1.5 * len(names) + 1.5), 4.4))
    panel = figure.subplots()
    for place, name in enumerate(names):
        _dice_column(panel, rows, name, place)
    panel.set_xticks(range(len(names)), [_with_counts(rows, name) for name in names])
    panel.set_xlim(-0.6, len(names) - 0.4)
    values = [value for name in names for row in rows if isinstance(value := row[f"dice/{name}"], float)]
    # At least the upper tenth: cases that all score 1 would leave an axis without extent.
    bottom = min(np.floor(10 * min(values, default=0.0)) / 10, 0.9)
    panel.set_ylim(bottom - 0.04 * (1 - bottom), 1 + 0.02 * (1 - bottom))
    panel.set_ylabel("Dice")
    panel.set_title(f"Dice per case, {len(rows)} {'case' if len(rows) == 1 else 'cases'}", loc="left")
    quiet(panel)
    return figure


def _dice_column(panel: "Axes", rows: Sequence[Mapping[str, Score]], name: str, place: int) -> None:
    found = [(row[f"dice/{name}"], row) for row in rows]
    scored = [(value, row) for value, row in found if isinstance(value, float)]
    if not scored:
        return
    values = np.array([value for value, _ in scored])
    color = _INK if name == FOREGROUND else _LINE_COLORS[(place - 1) % len(_LINE_COLORS)]
    if len(values) >= 5:
        panel.boxplot(
            values,
            positions=[place],
            widths=0.5,
            showfliers=False,
            medianprops={"color": color, "linewidth": 2},
            boxprops={"color": _INK, "linewidth": 0.8},
            whiskerprops={"color": _INK, "linewidth": 0.8},
            capprops={"color": _INK, "linewidth": 0.8},
        )
    # Spread evenly instead of at random: the same rows give the same picture.
    across = place + 0.16 * np.sin(np.arange(len(values)) * 2.4)
    present = np.array([row[f"status/{name}"] == "present" for _, row in scored])
    panel.scatter(across[present], values[present], s=22, color=color, alpha=0.7, linewidths=0, zorder=3)
    panel.scatter(across[~present], values[~present], s=30, color=color, marker="x", linewidths=1.3, zorder=3)
    lowest = int(values.argmin())
    case = scored[lowest][1].get("case")
    if case is not None and len(values) > 1:
        offset, side = ((0, 6), "bottom") if values[lowest] < 0.06 else ((0, -6), "top")
        panel.annotate(
            str(case),
            (across[lowest], values[lowest]),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va=side,
            fontsize=7,
            color=_INK,
        )


def _with_counts(rows: Sequence[Mapping[str, Score]], name: str) -> str:
    """Return a class name with what is not simply present, one count a line."""
    counts = statuses(rows, name)
    words = (counts["missed"], "missed"), (counts["false_positive"], "false positive"), (counts["absent"], "absent")
    return "\n".join([name, *(f"{count} {word}" for count, word in words if count)])


def confusion_figure(counts: NDArray[np.integer[Any]], classes: Sequence[str], *, unit: str = "voxels") -> "Figure":
    """Show which class the voxels or cases of each true class were given: shares of the row, and counts below them.

    Args:
        counts: Counts, true classes in rows, predicted ones in columns.
        classes: Class names; in segmentation the background is the first.
        unit: What is counted.
    """
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    side = 1.1 * len(classes) + 1.9
    figure = new_figure((side + 0.5, side))
    panel = figure.subplots()
    image = panel.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(share):
        text = f"{100 * value:.1f} %\n{_short(int(counts[row, column]))}" if total[row, 0] else f"no {unit}"
        color = "white" if value > 0.55 else "black"
        panel.text(column, row, text, ha="center", va="center", fontsize=9, color=color)
    panel.set_xticks(range(len(classes)), classes, rotation=30 if max(map(len, classes)) > 9 else 0)
    panel.set_yticks(range(len(classes)), classes)
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    panel.set_title("Confusion, share of the true class", loc="left", fontsize=11)
    panel.tick_params(length=0)
    figure.colorbar(image, ax=panel, shrink=0.8, format=lambda value, _: f"{100 * value:.0f} %")
    return figure


def _short(count: int) -> str:
    """Return a count in three digits.

    >>> [_short(n) for n in (0, 950, 12345, 8900000)]
    ['0', '950', '12.3 k', '8.90 M']
    """
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.{max(0, 2 - int(np.log10(value)))}f} {letter}"
    return str(count)


def curves_figure(history: History) -> "Figure":
    """Show how losses and scores went on: one panel each, every metric of the history a line.

    With two classes the Dice of the foreground, of its only class and the mean are the same; one line stands for all.

    Args:
        history: One row per epoch with ``epoch`` and metrics such as ``train/mean_loss``, ``val/dice/core``,
            ``val_volume/dice``; a metric may be missing in a row.
    """
    keys = [key for key in _metrics(history) if key.rpartition("/")[2] in ("loss", "mean_loss") or "/dice" in key]
    losses = [key for key in keys if "/dice" not in key]
    scores = _distinct(history, sorted((key for key in keys if "/dice" in key), key=len))
    panels = [(name, group) for name, group in (("loss", losses), ("Dice", scores)) if group]
    figure = new_figure((5.2 * max(len(panels), 1), 3.9))
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for panel, (name, group) in zip(axes, panels, strict=False):
        _lines(panel, history, group)
        panel.set_title(name, loc="left")
        panel.legend(frameon=False, fontsize=8)
        if name == "Dice":
            panel.set_ylim(0, 1)
    for panel in axes:
        over_epochs(panel)
    return figure


def _distinct(history: History, keys: Sequence[str]) -> list[str]:
    """Return the metrics whose values no earlier one over the same data has in all epochs."""
    kept: dict[tuple[object, ...], str] = {}
    for key in keys:
        kept.setdefault((key.partition("/")[0], *(row.get(key) for row in history)), key)
    return list(kept.values())


def runs_figure(histories: Mapping[str, History]) -> "Figure":
    """Show the learning curves of several runs: one panel for each metric that any of them has, one line per run.

    Args:
        histories: Name of a run → one row per epoch, as for :func:`curves_figure`.
    """
    from matplotlib.lines import Line2D

    keys = [key for key in _RUN_PANELS if any(key in row for rows in histories.values() for row in rows)]
    columns = min(max(len(keys), 1), 2)
    lines = max(-(-len(keys) // columns), 1)
    figure = new_figure((4.8 * columns, 3.2 * lines + 0.25 * len(histories) + 0.2))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for panel, key in zip(axes, keys, strict=False):
        for place, rows in enumerate(histories.values()):
            _line(panel, rows, key, place=place, label="")
        panel.set_title(key, loc="left")
        panel.tick_params(labelbottom=True)
        over_epochs(panel)
    for panel in axes[len(keys) :]:
        panel.set_axis_off()
    # One legend for all panels, also of runs that lack a metric.
    handles = [Line2D([], [], **_look(place), label=name) for place, name in enumerate(histories)]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=8)
    return figure


def lr_figure(history: History) -> "Figure":
    """Show the learning rate over epochs, on a logarithmic axis where it spans more than a factor of 20.

    Args:
        history: Rows with ``epoch`` and ``lr``.
    """
    figure = new_figure((5.2, 3.4))
    panel = figure.subplots()
    _lines(panel, history, ["lr"])
    rates = [row["lr"] for row in history if row.get("lr")]
    found = [rate for rate in rates if rate is not None]
    if found and max(found) > 20 * min(found):
        panel.set_yscale("log")
    panel.set_title("learning rate", loc="left")
    over_epochs(panel)
    return figure


def _metrics(history: History) -> list[str]:
    """Return the keys of all rows in the order of their first appearance."""
    return list(dict.fromkeys(key for row in history for key in row))


def _lines(panel: "Axes", history: History, keys: Sequence[str]) -> None:
    for place, key in enumerate(keys):
        _line(panel, history, key, place=place, label=key)


def _line(panel: "Axes", history: History, key: str, *, place: int, label: str) -> None:
    points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
    if points:
        epochs, values = zip(*points, strict=True)
        # A line of one point would be invisible.
        marker = "o" if len(points) < 15 else ""
        panel.plot(epochs, values, marker=marker, markersize=3.5, label=label, **_look(place))


def _look(place: int) -> dict[str, Any]:
    """Return color and dashes of a line."""
    dashes = ("-", "--", ":")[place // len(_LINE_COLORS) % 3]
    return {"color": _LINE_COLORS[place % len(_LINE_COLORS)], "linestyle": dashes, "linewidth": 1.6}


def over_epochs(panel: "Axes") -> None:
    """Label a panel whose horizontal axis is the epochs."""
    from matplotlib.ticker import MaxNLocator

    panel.set_xlabel("epoch")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    quiet(panel)


def quiet(panel: "Axes") -> None:
    """Take away what is not data."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
