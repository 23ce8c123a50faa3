"""Where the layers of both networks and the lines between them are drawn: pathways as columns, depth downward."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dmx.transfer.values import LayerOutline, NetworkOutline

BOX_HEIGHT = 38
PANEL_GAP = 130
LONGEST_NAME = 22
"""Letters of a layer's name that a box has room for."""
_COLUMN_GAP, _MARGIN = 24, 16
# Boxes are as wide as the longest name needs, in a wide font; the size below it needs the first number.
_NARROWEST, _LETTER, _PADDING = 108, 7, 18
_TITLE, _HEADING = 30, 24
# Distance of lines that run beside each other, and of the first one from the boxes.
_LANE, _LANE_MARGIN = 6, 9


@dataclass(frozen=True)
class Box:
    """A layer on the page, in pixels; ``lane`` is the height at which its line runs between two rows."""

    layer: LayerOutline
    x: int
    y: int
    lane: int
    width: int


@dataclass(frozen=True)
class Panel:
    """A network on the page.

    Attributes:
        network: The network.
        x: Left end.
        y: Upper end.
        width: Width.
        height: Height.
        boxes: Layers by name.
        headings: Names of the pathways with their place (x of the middle, y).
    """

    network: NetworkOutline
    x: int
    y: int
    width: int
    height: int
    boxes: Mapping[str, Box]
    headings: Sequence[tuple[str, int, int]]


@dataclass(frozen=True)
class Drawing:
    """Sources on the left, one below the other, the target on the right."""

    sources: tuple[Panel, ...]
    target: Panel
    width: int = field(default=0)
    height: int = field(default=0)


def draw(sources: Sequence[NetworkOutline], target: NetworkOutline) -> Drawing:
    """Return the places of all layers."""
    left: list[Panel] = []
    y = _MARGIN
    box = max(_box_width(network) for network in (*sources, target))
    for network in sources:
        left.append(_panel(network, x=_MARGIN, y=y, box=box))
        y = left[-1].y + left[-1].height + 2 * _MARGIN
    right = _panel(target, x=_MARGIN + max(panel.width for panel in left) + PANEL_GAP, y=_MARGIN, box=box)
    height = max(y, right.y + right.height + 2 * _MARGIN)
    return Drawing(tuple(left), right, right.x + right.width + _MARGIN, height)


def bare_name(layer: LayerOutline) -> str:
    """Return a layer's name without its pathway, which stands above."""
    return layer.name.removeprefix(f"{layer.pathway}.")


def _box_width(network: NetworkOutline) -> int:
    longest = max((len(bare_name(layer)) for layer in network.layers if layer.depth), default=0)
    return max(_NARROWEST, min(longest, LONGEST_NAME) * _LETTER + _PADDING)


def columns(network: NetworkOutline) -> list[str]:
    """Return the pathways that stand side by side; ``fc`` stands below them."""
    names = dict.fromkeys(layer.pathway for layer in network.layers)
    parallel = [name for name in names if name != "fc"]
    return parallel or list(names)


def _panel(network: NetworkOutline, *, x: int, y: int, box: int) -> Panel:
    names = columns(network)
    row = BOX_HEIGHT + 2 * _LANE_MARGIN + _LANE * (len(names) - 1)
    width = len(names) * (box + _COLUMN_GAP) - _COLUMN_GAP
    top = y + _TITLE + _HEADING
    boxes: dict[str, Box] = {}
    lowest = 0
    # Modules without parameters have no depth and are not drawn.
    for layer in (layer for layer in network.layers if layer.depth):
        below = layer.pathway == "fc" and "fc" not in names
        column = 0 if below else names.index(layer.pathway)
        left = x + (width - box) // 2 if below else x + column * (box + _COLUMN_GAP)
        upper = top + (layer.depth - 1) * row + (_HEADING if below else 0)
        boxes[layer.name] = Box(layer, left, upper, upper + BOX_HEIGHT + _LANE_MARGIN + column * _LANE, box)
        lowest = max(lowest, upper + row)
    return Panel(network, x, y, width, lowest - y, boxes, list(_headings(boxes)))


def _headings(boxes: Mapping[str, Box]) -> Iterator[tuple[str, int, int]]:
    """Give each pathway's name above its first layer."""
    for pathway in dict.fromkeys(box.layer.pathway for box in boxes.values()):
        first = next(box for box in boxes.values() if box.layer.pathway == pathway)
        if pathway != "network":
            yield pathway, first.x + first.width // 2, first.y - 8


def line(source: Panel, target: Panel, pair: tuple[str, str]) -> str:
    """Return the path of the line from a source layer to a target layer, in the words of SVG.

    It leaves the box to the right, runs between two rows out of the panel, crosses over, and comes in the same way.
    """
    start, end = source.boxes[pair[0]], target.boxes[pair[1]]
    x0, y0 = start.x + start.width, start.y + BOX_HEIGHT // 2
    x3, y3 = end.x, end.y + BOX_HEIGHT // 2
    edge, half = source.x + source.width, _COLUMN_GAP // 2
    parts = [f"M{x0} {y0}"]
    if x0 < edge:
        parts.append(f"C{x0 + half} {y0} {x0} {start.lane} {x0 + half} {start.lane} H{edge}")
        x0, y0 = edge, start.lane
    middle = (edge + target.x) // 2
    if x3 > target.x:
        parts.append(f"C{middle} {y0} {middle} {end.lane} {target.x} {end.lane} H{x3 - half}")
        parts.append(f"C{x3} {end.lane} {x3 - half} {y3} {x3} {y3}")
    else:
        parts.append(f"C{middle} {y0} {middle} {y3} {x3} {y3}")
    return " ".join(parts)
