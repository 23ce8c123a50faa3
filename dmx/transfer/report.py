"""A plan as lines that a person reads and as rows of a table."""

from collections.abc import Sequence

from dmx.transfer.values import LayerOutline, Run, SourceTensor, TensorPlan

# Parts of an axis that a layer's line writes out; the table has all.
_SHOWN_RUNS = 3
_ORDER = ("initialized", "adapted", "sliced", "copied")


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


def layer_lines(layers: Sequence[LayerOutline], tensors: Sequence[TensorPlan]) -> list[str]:
    """Return a line per layer with parameters: what it receives, from where, and how much of it."""
    counted = [layer for layer in layers if layer.depth]
    width = max((len(layer.name) for layer in counted), default=0)
    return [f"{layer.name:<{width}}  {_outcome(layer, tensors)}" for layer in counted]


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
            {**empty, "action": "unused", "network": tensor.network, "source": tensor.name, "source_shape": shape}
        )
    return rows
