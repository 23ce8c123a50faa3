"""What runs have to do with each other, as a person sees it: their family as a tree, their scores side by side."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from dmx.cli.console import out

if TYPE_CHECKING:
    from dmx.evaluation.paired import PairedDifference
    from dmx.tracking.family import Family
    from dmx.tracking.scores import PairedScores

_DIGITS = dict.fromkeys(("hd95_mm", "hd95_mm_penalized", "assd_mm", "assd_mm_penalized"), 2)
_OF_VOXELS = {"dice", "surface_dice", *_DIGITS}


def print_family(family: "Family") -> None:
    """Print the ancestors and descendants of a run as trees, one for each run that came from no other."""
    branches: dict[str, Tree] = {}
    roots = []
    for member, source, _ in family.walk():
        label = _label(family, member)
        if source is None:
            branches[member] = Tree(label, guide_style="dim")
            roots.append(branches[member])
        else:
            branches[member] = branches[source].add(label)
    for root in roots:
        out.print(root)


def _label(family: "Family", member: str) -> str:
    run = family.members[member]
    mark = "  [bold red]← this run[/]" if member == family.run else ""
    style = "bold reverse" if member == family.run else "bold"
    lines = [*family.origin(member), *run.facts]
    head = f"[{style}]{escape(run.title)}[/]  {run.id[:8]}{mark}"
    return "\n".join((head, *map(escape, lines)))


def print_paired(paired: "PairedScores") -> None:
    """Print how scores differ from those of the first run, per subject."""
    from dmx.evaluation.summary import FEWEST_SUBJECTS

    first, *others = paired.evaluations
    # Of whole images and volumes each is often a subject of its own.
    whole = not _OF_VOXELS & {metric.partition("/")[0] for metric in paired.differences}
    alone = whole and all(len(set(one.subjects.values())) == len(one.subjects) for one in paired.evaluations)
    unit = "case" if alone else "subject"
    where = ", ".join(part for part in (paired.cohort, f"split {paired.split}" if paired.split else "") if part)
    out.print(f"\n[bold]{escape(where)}[/]: differences to {escape(first.run.name)} {first.run.id[:8]}, per {unit}")
    for other in others:
        table = Table(
            title=f"{escape(other.run.name)} {other.run.id[:8]}",
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
        )
        for title in ("metric", "first", "this", "difference [95 %]", "p", "n"):
            table.add_column(title, justify="left" if title == "metric" else "right", overflow="fold")
        for metric, differences in paired.differences.items():
            if other.run.id in differences:
                table.add_row(escape(metric), *_cells(metric, differences[other.run.id]))
        out.print(table)
    out.print(
        f"n: {unit}s; interval: bootstrap over {unit}s, from {FEWEST_SUBJECTS} on; p: Wilcoxon signed-rank test"
        + (", not corrected for the number of comparisons." if len(others) > 1 else ".")
    )
    _print_left_out(paired)
    if paired.unpaired:
        out.print(f"{paired.unpaired} cases are not in all evaluations and were left out where they have no partner.")
    for run in paired.without:
        out.print(f"{escape(run.name)} {run.id[:8]} has no evaluation on {escape(where)}.")


def _print_left_out(paired: "PairedScores") -> None:
    """Say which scores are of fewer cases, and what was not compared at all."""
    first, *others = paired.evaluations
    for other in others:
        name = escape(f"{other.run.name} {other.run.id[:8]}")
        for metric, found in paired.left_out.items():
            if left := found.get(other.run.id):
                out.print(
                    f"{escape(metric)}: left out {left.first} cases that {name} has no value of, and {left.other} that "
                    f"{escape(first.run.name)} has none of.",
                    soft_wrap=True,
                )
        if other.run.id in paired.otherwise:
            out.print(
                f"{name} has measured surfaces in another way ({other.surface}) than {escape(first.run.name)} "
                f"({first.surface}), so these scores are not compared. Evaluate one of them again.",
                soft_wrap=True,
            )


def _cells(metric: str, found: "PairedDifference") -> tuple[str, ...]:
    digits = _DIGITS.get(metric.partition("/")[0], 3)
    interval = "" if found.low is None else f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return (
        f"{found.first:.{digits}f}",
        f"{found.second:.{digits}f}",
        escape(f"{found.difference:+.{digits}f}{interval}"),
        "-" if found.p is None else f"{found.p:.2g}",
        str(found.subjects),
    )
