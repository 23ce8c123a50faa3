"""The family of a run as one self-contained HTML page: a tree as inline SVG, without scripts, storage or network."""

from collections.abc import Sequence
from html import escape

from dmx.tracking.family import Family

_INDENT = 30
_WIDTH = 600
_LINE = 17
_PADDING = 9
_GAP = 12
_MARGIN = 16
_LONGEST = 88
_COLORS = {
    "train": "#0072B2",
    "finetune": "#D55E00",
    "transfer": "#009E73",
    "import": "#CC79A7",
    "evaluate": "#777777",
    "predict": "#777777",
    "activations": "#777777",
    "ablate": "#777777",
    "probe": "#777777",
}
_OTHER_COLOR = "#444444"
_STYLE = (
    "body{margin:0;background:#fff;color:#222;font:13px/1.4 system-ui,sans-serif}"
    "h1{font-size:16px;margin:16px 16px 4px}"
    "p{margin:0 16px 4px;color:#555}text{font:12px system-ui,sans-serif;fill:#333}"
    ".title{font-weight:600;font-size:13px}.id{font-family:ui-monospace,monospace;fill:#666}.this{fill:#b00020}"
    ".box{fill:#fff;stroke:#bbb}.named{fill:#fff8e6;stroke:#222;stroke-width:2}"
    ".edge{fill:none;stroke:#888;stroke-width:1.5}.also{stroke-dasharray:5 4}"
)


def lineage_html(family: Family) -> str:
    """Return a page with a box per run, below and to the right of the run that its weights came from.

    Dashed lines lead to the further sources of a run. The run that was asked for has a heavy frame.
    """
    named = family.members[family.run]
    boxes, edges = [], []
    places: dict[str, tuple[int, int]] = {}
    top = _MARGIN
    for member, source, depth in family.walk():
        lines = _lines(family, member)
        left = _MARGIN + _INDENT * depth
        height = 2 * _PADDING + _LINE * (len(lines) + 1)
        places[member] = (left, top)
        boxes.append(_box(family, member, lines, (left, top, height)))
        if source is not None:
            edges.append(_edge(places[source], places[member]))
        top += height + _GAP
    further = [link for member in places for link in family.sources(member)[1:]]
    edges += [_second_edge(places[link.source], places[link.child]) for link in further]
    width = max(left for left, _ in places.values()) + _WIDTH + 3 * _MARGIN
    title = f"Lineage of {named.title}"
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n<p>Each run stands below the run that its weights came from.</p>\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" role="img" '
        f'aria-label="{escape(title)}">\n' + "\n".join((*edges, *boxes)) + "\n</svg>\n</body></html>\n"
    )


def _lines(family: Family, member: str) -> Sequence[str]:
    return [*family.origin(member), *family.members[member].facts]


def _box(family: Family, member: str, lines: Sequence[str], place: tuple[int, int, int]) -> str:
    left, top, height = place
    run = family.members[member]
    this = member == family.run
    baseline = top + _PADDING + 13
    mark = '<tspan class="this" dx="8">this run</tspan>' if this else ""
    texts = [
        f'<text class="title" x="{left + 16}" y="{baseline}">{_text(run.title, _LONGEST - 24)}'
        f'<tspan class="id" dx="8">{escape(run.id[:8])}</tspan>{mark}</text>'
    ]
    texts += [
        f'<text x="{left + 16}" y="{baseline + _LINE * number}">{_text(line, _LONGEST)}</text>'
        for number, line in enumerate(lines, 1)
    ]
    full = escape("\n".join((run.title, run.id, *lines)))
    return (
        f'<g><title>{full}</title><rect class="box{" named" if this else ""}" x="{left}" y="{top}" width="{_WIDTH}" '
        f'height="{height}" rx="5"/><rect x="{left}" y="{top}" width="6" height="{height}" rx="3" '
        f'fill="{_COLORS.get(run.kind, _OTHER_COLOR)}"/>{"".join(texts)}</g>'
    )


def _edge(source: tuple[int, int], child: tuple[int, int]) -> str:
    """Return the line from the left edge of a box down to a child's box."""
    x, y = source[0] + _INDENT // 2, child[1] + 2 * _PADDING
    return f'<path class="edge" d="M{x} {source[1] + 2 * _PADDING}V{y}H{child[0]}"/>'


def _second_edge(source: tuple[int, int], child: tuple[int, int]) -> str:
    """Return the line on the right side from a further source."""
    (x0, y0), (x1, y1) = ((left + _WIDTH, top + 2 * _PADDING) for left, top in (source, child))
    far = max(x0, x1) + _MARGIN
    return f'<path class="edge also" d="M{x0} {y0}H{far}V{y1}H{x1}"/>'


def _text(text: str, longest: int) -> str:
    """Return a text that fits into its box; the whole of it is in the box's tooltip."""
    return escape(text if len(text) <= longest else f"{text[: longest - 1]}…")
