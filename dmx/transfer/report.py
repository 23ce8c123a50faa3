"""A plan as lines that a person reads and as rows of a table."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from dmx.transfer.values import LayerOutline, Run, SourceTensor, TensorPlan

# Parts of an axis that a layer's line writes out; the table has all.
_SHOWN_RUNS = 3
_ORDER = ("initialized", "adapted", "sliced", "copied")
# Layers that a screen has room for, and those of a row that are told one by one all the same.
_SCREEN = 30
_FEW = 2


def size_text(sizes: Sequence[int]) -> str:
    """Return a size as words: ``(3, 3, 3)`` is 3x3x3."""
    return "x".join(map(str, sizes))


def part_text(parts: Sequence[tuple[Run, ...] | None], *, most: int | None = None) -> str:
    """Return which channels are received, axis by axis: ``[0:30], [:]``; whole axes at the end are left out.

    Args:
        parts: What is received per axis, None for all of it.
        most: Runs of an axis that are written out; None: all.
    """
    last = max((axis for axis, runs in enumerate(parts) if runs is not None), default=-1)
    return ", ".join("[:]" if runs is None else _runs_text(runs, most) for runs in parts[: last + 1])


def _runs_text(runs: Sequence[Run], most: int | None) -> str:
    text = " + ".join(map(str, runs[:most]))
    return text if most is None or len(runs) <= most else f"{text} + {len(runs) - most} more parts"


def layer_action(tensors: Sequence[TensorPlan]) -> str:
    """Return one word for a layer: that of its parameters if they agree, else ``sliced``; statistics do not decide."""
    actions = {tensor.action for tensor in tensors if tensor.learned} or {tensor.action for tensor in tensors}
    if len(actions) == 1:
        return next(iter(actions))
    given = sorted(actions - {"initialized"}, key=_ORDER.index)
    return "adapted" if "adapted" in given else "sliced"


def layer_lines(layers: Sequence[LayerOutline], tensors: Sequence[TensorPlan], *, folded: bool = False) -> list[str]:
    """Return a line per layer with parameters: what it receives, from where, and how much of it.

    Args:
        layers: Layers of the target.
        tensors: What its tensors receive.
        folded: Make one line of layers in a row that are copied whole, where there are more than a screen shows.
    """
    counted = [layer for layer in layers if layer.depth]
    if folded and len(counted) > _SCREEN:
        pairs = list(_folded(counted, tensors))
    else:
        pairs = [(layer.name, _outcome(layer, tensors)) for layer in counted]
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:<{width}}  {outcome}" for name, outcome in pairs]


def _folded(layers: Sequence[LayerOutline], tensors: Sequence[TensorPlan]) -> Iterator[tuple[str, str]]:
    own: dict[str, list[TensorPlan]] = defaultdict(list)
    for tensor in tensors:
        own[tensor.layer].append(tensor)
    for network, members in groupby(layers, lambda layer: _copied_from(own[layer.name])):
        run = list(members)
        if not network or len(run) <= _FEW:
            yield from ((layer.name, _outcome(layer, own[layer.name])) for layer in run)
            continue
        first, last = (own[layer.name][0].source_layer for layer in (run[0], run[-1]))
        parameters = sum(layer.parameters for layer in run)
        size = f"{len(run)} layers, {parameters:,} parameters"
        yield f"{run[0].name} … {run[-1].name}", f"copied from {network}:{first} … {last} ({size})"


def _copied_from(tensors: Sequence[TensorPlan]) -> str:
    """Return the network that gives a layer as a whole; empty where none does."""
    networks = {tensor.network if tensor.action == "copied" else "" for tensor in tensors}
    return networks.pop() if len(networks) == 1 else ""


def _outcome(layer: LayerOutline, tensors: Sequence[TensorPlan]) -> str:
    own = [tensor for tensor in tensors if tensor.layer == layer.name]
    given = [tensor for tensor in own if tensor.action != "initialized"]
    if not given:
        return f"initialized: {next((tensor.reason for tensor in own if tensor.reason), 'no tensors')}"
    origins = dict.fromkeys(f"{tensor.network}:{tensor.source_layer}" for tensor in given)
    received = sum(tensor.received for tensor in own if tensor.learned)
    remarks = list(dict.fromkeys(remark for tensor in own if (remark := _remark(tensor))))
    shown = "; ".join([f"{received:,} of {layer.parameters:,} parameters", *remarks])
    return f"{layer_action(own)} from {', '.join(origins)} ({shown})"


def _remark(tensor: TensorPlan) -> str:
    """Return what is worth saying of a tensor in its layer's line."""
    part = tensor.name.removeprefix(f"{tensor.layer}.")
    if tensor.action == "adapted":
        return f"{part}: {tensor.rule}, {'exact' if tensor.exact else 'not exact'}"
    if tensor.action == "initialized":
        return f"{part} stays as initialized"
    if tensor.action == "sliced" and len(tensor.shape) > 1 and tensor.learned:
        return f"{part} {part_text(tensor.parts, most=_SHOWN_RUNS)}" + (
            ", from new to old channels 0" if tensor.zeroed else ""
        )
    return ""


def tensor_rows(tensors: Sequence[TensorPlan], sources: Sequence[SourceTensor]) -> list[dict[str, str]]:
    """Return a row per tensor of the target, then one per tensor of a source of which nothing is used."""
    rows = [
        {
            "target_layer": tensor.layer,
            "target": tensor.name,
            "target_shape": size_text(tensor.shape),
            "action": tensor.action,
            "network": tensor.network,
            "source": tensor.source,
            "source_shape": size_text(tensor.source_shape),
            "part": part_text(tensor.parts),
            "rule": tensor.rule,
            "exact": "" if tensor.action == "initialized" else "yes" if tensor.exact else "no",
            "received": str(tensor.received),
            "reason": tensor.reason,
        }
        for tensor in tensors
    ]
    empty = dict.fromkeys(rows[0], "") if rows else {}
    unused = [tensor for tensor in sources if not tensor.used]
    for tensor in unused:
        shape = size_text(tensor.shape)
        rows.append(
            {
                **empty,
                "action": "unused",
                "network": tensor.network,
                "source": tensor.name,
                "source_shape": shape,
                "reason": tensor.reason,
            }
        )
    return rows
