"""Scores of an evaluation, as a person sees them: each mean with what it is the mean of."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from dmx.cli.console import out

if TYPE_CHECKING:
    from dmx.evaluation.summary import ScoreTable, Summary

_OVERLAP = {"dice": "Dice [95 %]", "sensitivity": "sensitivity", "precision": "precision"}
_COUNTS = {"present": "found", "missed": "missed", "false_positive": "false"}
_ZERO = "A class that is missed, or predicted where there is none, counts as 0 in Dice and surface Dice"


def print_scores(table: "ScoreTable") -> None:
    """Print the means of a segmentation's scores, the number of cases behind them, and what they are."""
    _print_overlap(table)
    out.print()
    _print_surfaces(table)
    for sentence in _sentences(table):
        out.print(escape(sentence), soft_wrap=True)


def _names(table: "ScoreTable") -> tuple[str, ...]:
    # The whole foreground of one class is that class.
    return ("foreground", *table.classes) if len(table.classes) > 1 else table.classes


def _print_overlap(table: "ScoreTable") -> None:
    grid = _grid("class", *_OVERLAP.values(), *_COUNTS.values())
    for name in _names(table):
        cells = [
            _cell(table.summaries[f"{metric}/{name}"], table, digits=3, interval=metric == "dice")
            for metric in _OVERLAP
        ]
        grid.add_row(escape(name), *cells, *(str(table.statuses[name][status]) for status in _COUNTS))
    grid.add_row("mean over cases", _cell(table.summaries["dice/mean"], table, digits=3, interval=True))
    mean = table.dice_class_mean
    grid.add_row("mean over classes", "-" if mean is None else f"{mean:.3f}")
    out.print(grid)


def _print_surfaces(table: "ScoreTable") -> None:
    titles = {
        "surface_dice": f"surface Dice at {table.surface.tolerance_mm:g} mm",
        "hd95_mm": "HD95 mm",
        "hd95_mm_penalized": "penalized",
        "assd_mm": "ASSD mm",
        "assd_mm_penalized": "penalized",
    }
    # Older evaluations have not all of them.
    titles = {metric: title for metric, title in titles.items() if f"{metric}/foreground" in table.summaries}
    grid = _grid("class", *titles.values())
    for name in _names(table):
        cells = [
            _cell(table.summaries[f"{metric}/{name}"], table, digits=3 if metric == "surface_dice" else 2)
            for metric in titles
        ]
        grid.add_row(escape(name), *cells)
    out.print(grid)


def _grid(*titles: str) -> Table:
    grid = Table(box=None, pad_edge=False)
    for place, title in enumerate(titles):
        grid.add_column(escape(title), justify="right" if place else "left", no_wrap="[" in title)
    return grid


def _cell(summary: "Summary", table: "ScoreTable", *, digits: int, interval: bool = False) -> str:
    """Return a mean with its interval where that is shown, and the number of its cases where it is not that of all."""
    if summary.mean is None:
        return "-"
    ends = f" [{summary.low:.{digits}f}, {summary.high:.{digits}f}]" if interval and summary.low is not None else ""
    cases = f" ({summary.cases})" if summary.cases < table.cases else ""
    return escape(f"{summary.mean:.{digits}f}{ends}{cases}")


def _sentences(table: "ScoreTable") -> list[str]:
    """Return what the numbers are, as far as it matters for these."""
    from dmx.evaluation.summary import FEWEST_SUBJECTS

    found = [
        f"Distances are between {table.surface.words}. HD95: the larger of the two directed 95th percentiles; ASSD: "
        "the mean over both surfaces."
    ]
    shown = [table.summaries[f"{metric}/{name}"] for metric in ("dice", "hd95_mm") for name in _names(table)]
    if any(summary.cases < table.cases for summary in shown):
        found.append(f"(n): the mean of the n of {table.cases} cases that have a value.")
    if any(table.statuses[name][status] for name in table.classes for status in ("missed", "false_positive")):
        found.append(f"{_ZERO}; it has no distance, and the diagonal of the image under 'penalized'.")
    found.append(
        "found, missed, false: cases with the class in truth and prediction, in truth, or in prediction alone."
    )
    found.append("mean over cases: of each case's mean over its classes; mean over classes: as nnU-Net reports it.")
    subjects = table.summaries["dice/mean"].subjects
    if subjects < FEWEST_SUBJECTS:
        found.append(f"Intervals need {FEWEST_SUBJECTS} subjects, and there are {subjects}.")
    return found
