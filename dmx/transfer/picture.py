"""A transfer as one self-contained page: both networks side by side, a line per layer that receives."""

import json
import re
from collections.abc import Iterator, Sequence
from html import escape

from dmx.transfer.drawing import BOX_HEIGHT, LONGEST_NAME, PANEL_GAP, Box, Drawing, Panel, bare_name, draw, line
from dmx.transfer.page import ACTIONS, PAGE
from dmx.transfer.plan import TransferPlan
from dmx.transfer.report import layer_action, layer_lines, part_text, size_text
from dmx.transfer.values import TensorPlan, percent

# Pixels of a letter of a network's name, and of the word before it.
_LETTER, _SIDE = 9, 60


def mapping_html(plan: TransferPlan, *, origins: Sequence[str] = ()) -> str:
    """Return a page that shows what each layer of the target receives; it loads nothing and stores nothing.

    Args:
        plan: The plan.
        origins: Sentences about where the weights come from.
    """
    drawing = draw(plan.sources, plan.target)
    title = f"{', '.join(source.name for source in plan.sources)} → {plan.target.name}"
    fields = {
        "title": escape(title),
        "received": f"{plan.received:,}",
        "lost": escape(plan.loss),
        "parameters": f"{plan.parameters:,}",
        "share": percent(plan.share),
        "bar": f"{100 * plan.share:.2f}",
        "remarks": "".join(_remarks(plan, origins)),
        "legend": "".join(_legend(plan)),
        "width": str(drawing.width),
        "height": str(drawing.height),
        "drawing": "\n".join(_svg(plan, drawing)),
        "table": "".join(_table(plan)),
        # Nothing in the text can end the script.
        "data": json.dumps(_details(plan)).replace("<", "\\u003c"),
    }
    # In one pass: a name such as "@table@" in the text stays as it is.
    return re.sub(r"@(\w+)@", lambda place: fields[place[1]], PAGE)


def _remarks(plan: TransferPlan, origins: Sequence[str]) -> Iterator[str]:
    for origin in origins:
        yield f"<p>{escape(origin)}</p>"
    for warning in plan.warnings:
        yield f'<p class="warning">{escape(warning)}</p>'
    for note in plan.notes:
        yield f"<p>{escape(note)}</p>"


def _own(plan: TransferPlan) -> dict[str, list[TensorPlan]]:
    """Return the tensors of each layer of the target."""
    own: dict[str, list[TensorPlan]] = {layer.name: [] for layer in plan.target.layers}
    for tensor in plan.tensors:
        own[tensor.layer].append(tensor)
    return own


def _legend(plan: TransferPlan) -> Iterator[str]:
    counted = {layer.name for layer in plan.target.layers if layer.depth}
    actions = [layer_action(tensors) for name, tensors in _own(plan).items() if name in counted]
    for action, meaning in ACTIONS.items():
        count = actions.count(action)
        layers = "layer" if count == 1 else "layers"
        yield f'<li class="{action}"><i></i><b>{action}</b> {escape(meaning)} <em>{count} {layers}</em></li>'


def _svg(plan: TransferPlan, drawing: Drawing) -> Iterator[str]:
    own = _own(plan)
    used = {(tensor.network, tensor.source_layer) for tensor in plan.tensors if tensor.action != "initialized"}
    panels = {panel.network.name: panel for panel in drawing.sources}
    for number, (target, network, source) in enumerate(plan.pairs):
        action = layer_action(own[target])
        drawn = target in drawing.target.boxes and source in panels[network].boxes
        if drawn and (network, source) in used and action != "initialized":
            path = line(panels[network], drawing.target, (source, target))
            yield f'<path class="line {action}" data-line="{number}" d="{path}"/>'
    for panel in drawing.sources:
        yield from _heading(panel, "Source")
        for box in panel.boxes.values():
            state = "used" if (panel.network.name, box.layer.name) in used else "unused"
            yield _box(box, state, key=f"{panel.network.name}:{box.layer.name}", share=None)
    yield from _heading(drawing.target, "Target")
    for box in drawing.target.boxes.values():
        tensors = own[box.layer.name]
        received = sum(tensor.received for tensor in tensors if tensor.learned)
        share = received / box.layer.parameters if box.layer.parameters else 0.0
        action = layer_action(tensors) if tensors else "initialized"
        yield _box(box, action, key=f":{box.layer.name}", share=share)


def _heading(panel: Panel, side: str) -> Iterator[str]:
    # It must not run into the other network's name.
    name = escape(_shortened(panel.network.name, (panel.width + PANEL_GAP - _SIDE) // _LETTER))
    yield f'<text class="network" x="{panel.x}" y="{panel.y + 12}"><tspan>{side}</tspan> {name}</text>'
    for pathway, x, y in panel.headings:
        yield f'<text class="pathway" x="{x}" y="{y}">{escape(pathway)}</text>'


def _shortened(name: str, longest: int) -> str:
    """Return the end of a name that is too long, which tells more than its beginning."""
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def _box(box: Box, state: str, *, key: str, share: float | None) -> str:
    layer = box.layer
    shown = _shortened(bare_name(layer), LONGEST_NAME)
    size = f"{layer.channels} ch" + (f" · {size_text(layer.kernel)}" if layer.kernel else "")
    bar = (
        ""
        if share is None
        else f'<rect class="share" y="{BOX_HEIGHT - 4}" width="{box.width * share:.1f}" height="4"/>'
    )
    shape = f'<rect class="shape" width="{box.width}" height="{BOX_HEIGHT}" rx="5"/>'
    return (
        f'<g class="box {state}" data-key="{escape(key)}" tabindex="0" transform="translate({box.x},{box.y})">'
        f"<title>{escape(layer.name)}</title>{shape}{bar}"
        f'<text x="9" y="15">{escape(shown)}</text><text class="size" x="9" y="29">{escape(size)}</text></g>'
    )


def _details(plan: TransferPlan) -> dict[str, object]:
    """Return what the page shows about a layer under the pointer, and which lines belong to it."""
    texts = {f":{layer.name}": layer_lines([layer], plan.tensors) for layer in plan.target.layers}
    for tensor in plan.tensors:
        texts[f":{tensor.layer}"].append(_tensor_text(tensor))
    links: dict[str, list[int]] = {}
    for number, (target, network, source) in enumerate(plan.pairs):
        links.setdefault(f":{target}", []).append(number)
        links.setdefault(f"{network}:{source}", []).append(number)
    ends = [[f"{network}:{source}", f":{target}"] for target, network, source in plan.pairs]
    for given in plan.source_tensors:
        key = f"{given.network}:{given.layer}"
        size = size_text(given.shape) or "one value"
        texts.setdefault(key, [key]).append(f"{given.name}  {size}  {'used' if given.used else 'not used'}")
    return {"texts": texts, "links": links, "ends": ends}


def _tensor_text(tensor: TensorPlan) -> str:
    said = [tensor.name, size_text(tensor.shape) or "one value", tensor.action]
    if tensor.source and tensor.action != "initialized":
        said.append(f"from {tensor.source} ({size_text(tensor.source_shape) or 'one value'})")
    part = part_text(tensor.parts)
    said += [text for text in (part, tensor.rule, "" if tensor.exact else "not exact", tensor.reason) if text]
    return "  ".join(said)


def _table(plan: TransferPlan) -> Iterator[str]:
    rows = plan.rows()
    names = ("target", "target_shape", "action", "network", "source", "source_shape", "part", "rule", "reason")
    yield "<tr>" + "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names) + "</tr>"
    for row in rows:
        yield f'<tr class="{row["action"]}">' + "".join(f"<td>{escape(row[name])}</td>" for name in names) + "</tr>"
