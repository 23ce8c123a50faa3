"""Pictures of cases: channels, label map, volumes and intensities on one page."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dmx.cohort.case import Case, Cohort
from dmx.cohort.files import atomic_file
from dmx.cohort.view import Array, CaseView, class_name, class_volumes, inside, load_view
from dmx.errors import CohortError, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Voxels that nobody annotated.
_UNKNOWN = "#7F9FBF"
# Okabe and Ito (2008): told apart by people with any color vision; yellow and orange first, they stand out on gray.
_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#0072B2")
_COLUMN_INCHES = 2.8
_HISTOGRAM_INCHES = 1.5
_BINS = 80
_MAX_BARS = 6
# Name, axis across the page, axis up the page, letters at the left and right edge; axes are those of RAS.
_PLANES = (("axial", 0, 1, "LR"), ("coronal", 0, 2, "LR"), ("sagittal", 1, 2, "PA"))


@dataclass(frozen=True)
class ShownCase:
    """What was shown of a case.

    Attributes:
        name: Its name.
        picture: The file.
        volumes_ml: Volume of each class but the background, in milliliters; empty without label map.
    """

    name: str
    picture: Path
    volumes_ml: dict[str, float]


def show_cohort(
    cohort: Cohort,
    folder: Path,
    *,
    names: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[ShownCase]:
    """Write ``<case>.png`` for each case, or for the named ones.

    Raises:
        CohortError: A named case is not in the cohort, or a file of a case cannot be used.
    """
    known = {case.name: case for case in cohort.cases}
    for name in names:
        if name not in known:
            raise CohortError(f"Cohort '{cohort.name}' has no case '{name}'.{suggest(name, known)}")
    shown = []
    cases = [known[name] for name in dict.fromkeys(names)] or list(cohort.cases)
    for index, case in enumerate(cases):
        view = load_view(case, cohort=cohort)
        picture = folder / f"{case.name}.png"
        _save(_draw(case, view, cohort.classes), picture)
        volumes = class_volumes(view, cohort.classes)
        named = {class_name(label, cohort.classes): volume for label, volume in volumes.items()}
        shown.append(ShownCase(case.name, picture, named))
        if progress is not None:
            progress(index + 1, len(cases))
    return shown


def case_figure(case: Case, classes: Sequence[str] = ()) -> "Figure":
    """Return the page of one case: three planes through its label map per channel, overlay, histograms, volumes.

    Raises:
        CohortError: A file of the case cannot be used, or its files differ in shape.
    """
    return _draw(case, load_view(case), classes)


def class_color(index: int) -> str:
    """Return the color of a class other than the background."""
    return _COLORS[(index - 1) % len(_COLORS)]


def _draw(case: Case, view: CaseView, classes: Sequence[str]) -> "Figure":
    from matplotlib.figure import Figure

    columns = len(view.channels) + (view.labels is not None)
    widest = max(view.sizes_mm[:2])
    heights = [max(0.6, _COLUMN_INCHES * view.sizes_mm[up] / widest) for _, _, up, _ in _PLANES]
    ratios = [*heights, _HISTOGRAM_INCHES]
    figure = Figure(
        figsize=(_COLUMN_INCHES * columns + 0.4, sum(ratios) + 1.1), layout="constrained", facecolor="white"
    )
    figure.suptitle(_title(case), fontsize=11, x=0.02, ha="left", parse_math=False)
    axes = figure.subplots(len(ratios), columns, squeeze=False, height_ratios=ratios)
    for column, (name, array) in enumerate(view.channels.items()):
        axes[0, column].set_title(name, fontsize=10, parse_math=False)
        for row, _ in enumerate(_PLANES):
            _draw_plane(axes[row, column], view, row, array)
        _draw_histogram(axes[-1, column], view, array)
    if view.labels is not None:
        base = next(array for array in view.channels.values() if array is not None)
        axes[0, -1].set_title("label map", fontsize=10)
        for row, _ in enumerate(_PLANES):
            _draw_plane(axes[row, -1], view, row, base)
            _draw_labels(axes[row, -1], view, row)
        _draw_volumes(axes[-1, -1], _largest(class_volumes(view, classes)), classes)
    for row, (name, *_) in enumerate(_PLANES):
        axes[row, 0].set_ylabel(name, fontsize=9)
    return figure


def _title(case: Case) -> str:
    parts = [case.name, f"subject {case.subject}" if case.subject != case.name else "", case.split]
    return " · ".join(part for part in parts if part)


def _cut(array: Array, view: CaseView, row: int) -> Array:
    """Return a plane with rows up the page."""
    _, across, up, _ = _PLANES[row]
    through = 3 - across - up
    plane: Array = np.take(array, view.center[through], axis=through).T
    return plane


def _draw_plane(axes: "Axes", view: CaseView, row: int, array: Array | None) -> None:
    from matplotlib.patheffects import withStroke

    _, across, up, letters = _PLANES[row]
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if array is None:
        axes.text(0.5, 0.5, "missing", ha="center", va="center", color="gray", transform=axes.transAxes)
        return
    low, high = _window(array, view)
    axes.imshow(
        _cut(array, view, row),
        cmap="gray",
        origin="lower",
        vmin=low,
        vmax=high,
        aspect=view.spacing[up] / view.spacing[across],
        interpolation="nearest",
    )
    for letter, x, side in ((letters[0], 0.02, "left"), (letters[1], 0.98, "right")):
        axes.text(
            x,
            0.5,
            letter,
            color="white",
            fontsize=8,
            ha=side,
            va="center",
            transform=axes.transAxes,
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


def _draw_labels(axes: "Axes", view: CaseView, row: int) -> None:
    from matplotlib.colors import to_rgb

    assert view.labels is not None
    plane = _cut(view.labels, view, row)
    overlay = np.zeros((*plane.shape, 4))
    overlay[plane < 0] = (*to_rgb(_UNKNOWN), 0.35)
    for label in np.unique(plane[plane > 0]).tolist():
        color = class_color(label)
        overlay[plane == label] = (*to_rgb(color), 0.4)
        if min(plane.shape) > 1:
            axes.contour(plane == label, levels=[0.5], colors=[color], linewidths=1.0)
    axes.imshow(overlay, origin="lower", aspect=axes.get_aspect(), interpolation="nearest")


def _window(array: Array, view: CaseView) -> tuple[float, float]:
    low, high = np.percentile(array[inside(array, view)], (0.5, 99.5)).tolist()
    return (low, high) if high > low else (low, low + 1.0)


def _draw_histogram(axes: "Axes", view: CaseView, array: Array | None) -> None:
    """Draw intensities of the region, and of each class as a share of its own voxels."""
    axes.set_yticks([])
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    if array is None:
        axes.set_xticks([])
        return
    bins = _bins(array, _window(array, view))
    style = {"bins": bins.tolist(), "density": True}
    axes.hist(array[inside(array, view)], color="lightgray", **style)
    if view.labels is not None:
        for label in _largest(class_volumes(view, ())):
            values = array[view.labels == label]
            if ((values >= bins[0]) & (values <= bins[-1])).any():
                axes.hist(values, color=class_color(label), histtype="step", **style)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("intensity", fontsize=8)


def _bins(array: Array, window: tuple[float, float]) -> Array:
    """Return bin edges; whole numbers get bins of whole width, else empty bins stand like teeth of a comb."""
    low, high = window
    if not (array == np.rint(array)).all():
        return np.linspace(low, high, _BINS + 1)
    width = max(1, math.ceil((high - low) / _BINS))
    return np.arange(math.floor(low) - 0.5, high + width, width)


def _largest(volumes: dict[int, float]) -> dict[int, float]:
    """Return the classes that a small chart has room for, in the order of their labels."""
    kept = sorted(volumes, key=volumes.__getitem__, reverse=True)[:_MAX_BARS]
    return {label: volumes[label] for label in sorted(kept)}


def _draw_volumes(axes: "Axes", volumes: dict[int, float], classes: Sequence[str]) -> None:
    positions = range(len(volumes))
    axes.barh(positions, list(volumes.values()), color=[class_color(label) for label in volumes], height=0.6)
    axes.set_yticks([])
    # A few bars keep the height that many have.
    axes.set_ylim(max(len(volumes), 4) - 0.5, -0.8)
    for position, (label, volume) in enumerate(volumes.items()):
        text = f"{class_name(label, classes)}  {volume:.3g} ml"
        axes.text(0, position - 0.34, text, fontsize=7, va="bottom", parse_math=False)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("volume in ml", fontsize=8)


def _save(figure: "Figure", path: Path) -> None:
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # A name in letters that the font lacks is shown as boxes, which is no news for a user.
        warnings.simplefilter("ignore")
        figure.savefig(picture, format="png", dpi=110)
    try:
        with atomic_file(path) as file:
            file.write(picture.getvalue())
    except OSError as error:
        raise CohortError(f"'{path}' cannot be written: {error.strerror or error}.") from error
