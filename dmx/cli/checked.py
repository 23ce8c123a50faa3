"""What a check of scans or images has found, as tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from dmx.cli.console import out

if TYPE_CHECKING:
    from dmx.cohort.check import CheckReport
    from dmx.cohort.check_images import ImageReport

_MOST_CLASSES = 30
_MOST_MODES = 6


def print_findings(report: "CheckReport", *, cases: str = "cases") -> None:
    """Print a row for each finding, then how many there are of what is called cases."""
    if report.findings:
        table = Table("severity", "case", "column", "finding", show_lines=False)
        for finding in report.findings:
            color = "red" if finding.severity == "error" else "yellow"
            cells = (escape(text) for text in (finding.case, finding.column, finding.message))
            table.add_row(f"[{color}]{finding.severity}[/]", *cells)
        out.print(table)
    out.print(
        f"{escape(report.cohort)}: {report.num_cases} {cases}, {report.num_files} files, "
        f"{len(report.errors)} errors, {len(report.warnings)} warnings"
    )


def print_images(report: "ImageReport") -> None:
    """Print how many images there are of each class and split, and what the files are."""
    splits = list(report.counts)
    names = list(dict.fromkeys(name for counts in report.counts.values() for name in counts))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for split in splits:
        table.add_column(escape(split or "images"), justify="right")
    for name in names[:_MOST_CLASSES]:
        table.add_row(escape(name or "no label"), *(str(report.counts[split].get(name, 0)) for split in splits))
    if len(names) > _MOST_CLASSES:
        table.add_row(f"… {len(names) - _MOST_CLASSES} more", *("" for _ in splits))
    if len(names) > 1:
        table.add_row("all", *(str(sum(report.counts[split].values())) for split in splits), style="bold")
    out.print(table)
    facts = [*_kinds(report), *_numbers(report)]
    if facts:
        grid = Table.grid(padding=(0, 2))
        for name, value in facts:
            grid.add_row(escape(name), escape(value))
        out.print(grid)


def _kinds(report: "ImageReport") -> list[tuple[str, str]]:
    """Return sizes and modes of the files that can be read."""
    if not report.sizes:
        return []
    shortest, tallest = (choose(size[0] for size in report.sizes) for choose in (min, max))
    narrowest, widest = (choose(size[1] for size in report.sizes) for choose in (min, max))
    if len(report.sizes) == 1:
        size = f"{shortest} × {narrowest} pixels (height × width)"  # noqa: RUF001  # the sign of sizes
    else:
        size = f"{shortest} to {tallest} pixels high, {narrowest} to {widest} wide, {len(report.sizes)} sizes"
    return [("size", size), ("mode", _modes(report.modes))]


def _modes(modes: Mapping[str, int]) -> str:
    common = sorted(modes.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{mode} {count}" for mode, count in common[:_MOST_MODES])
    return shown if len(common) <= _MOST_MODES else f"{shown}, …"


def _numbers(report: "ImageReport") -> list[tuple[str, str]]:
    return [
        (name, f"{facts.low:g} to {facts.high:g}" + (f", missing in {facts.missing}" if facts.missing else ""))
        for name, facts in report.numbers.items()
    ]
