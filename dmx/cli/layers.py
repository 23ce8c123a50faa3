"""Tables of what a network is made of and what it costs."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from dmx.cli.console import out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmx.model.show import LayerReport, ModelReport
    from dmx.model.show_scores import ScoringLayer, ScoringReport

_SHOWN = 6
_UNITS = ("", " k", " M", " G", " T")


def print_network(report: "ModelReport | ScoringReport") -> None:
    """Print the layers of a network, then the network as a whole."""
    from dmx.model.show import ModelReport

    if isinstance(report, ModelReport):
        out.print(_layer_table(report.layers))
        out.print(_summary(report))
    else:
        out.print(_scoring_table(report.layers))
        out.print(_scoring_summary(report))


def _scoring_table(layers: "Sequence[ScoringLayer]") -> Table:
    """Return one row per layer of a network that scores whole images or volumes; what no layer has has no column."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    aliases = any(layer.short_names for layer in layers)
    frozen = any(layer.frozen_parameters for layer in layers)
    if aliases:
        table.add_column("also")
    for heading in ("kernel", "channels", "output", "parameters", "mult-adds"):
        table.add_column(heading, justify="right", no_wrap=True)
    if frozen:
        table.add_column("frozen")
    for layer in layers:
        report = layer.report
        name = Text(layer.name)
        if layer.is_head and layer.name != "head":
            name.append(" (head)", style="bold")
        table.add_row(
            name,
            *([Text(", ".join(layer.short_names))] if aliases else []),
            _kernels(report.kernels),
            "" if report.in_channels is None else f"{report.in_channels}→{report.out_channels}",
            _size(report.output_shape),
            f"{layer.parameters:,}",
            _count(report.multiply_adds) if report.multiply_adds else "",
            *([_held(layer)] if frozen else []),
        )
    return table


def _held(layer: "ScoringLayer") -> str:
    if not layer.frozen_parameters:
        return ""
    return "yes" if layer.frozen_parameters == layer.parameters else "in part"


def _scoring_summary(report: "ScoringReport") -> Table:
    """Return the network as a whole."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    unit = "image" if len(report.size) == 2 else "volume"
    pixels = "pixels" if len(report.size) == 2 else "voxels"
    scores = f"{len(report.outputs)} score{'s' if len(report.outputs) > 1 else ''}: {_few(report.outputs)}"
    table.add_row(unit, f"{_size(report.size)} {pixels} → {scores}")
    frozen = report.freeze.num_frozen_parameters()
    held = f", of which {frozen:,} are frozen" if frozen else ""
    table.add_row("parameters", f"{report.parameters:,} (kernels, biases, scales, slopes){held}")
    if report.freeze.epochs:
        table.add_row("", f"some train later, from epoch {' and '.join(map(str, report.freeze.epochs))} on")
    table.add_row("multiply-adds", f"{_count(report.multiply_adds)} per {unit}, in kernels")
    training, prediction = (
        "not known" if size is None else _bytes(size) for size in (report.training_bytes, report.prediction_bytes)
    )
    table.add_row("memory", f"{training} to train, {prediction} to predict")
    per_pass = f"{report.batch_size} {unit}{'s' if report.batch_size > 1 else ''} per pass"
    table.add_row("", f"{per_pass}; all tensors in single precision; libraries' working space comes on top")
    if unit == "volume":
        table.add_row("", "volumes have sizes of their own: --segment sets the one that this is told for")
    return table


def _few(names: "Sequence[str]") -> str:
    """Return some names, and how many more there are.

    >>> _few(["a", "b"]), _few([str(number) for number in range(12)])
    ('a, b', '0, 1, 2, 3, 4, 5, … (12)')
    """
    return ", ".join(names) if len(names) <= _SHOWN else f"{', '.join(names[:_SHOWN])}, … ({len(names)})"


def _layer_table(layers: "Sequence[LayerReport]") -> Table:
    """Return one row per layer, one part per pathway; narrow enough for 80 columns."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    # Without parallel pathways the depth is the number.
    parallel = any(layer.depth != layer.position for layer in layers)
    table.add_column("no", justify="right")
    table.add_column("depth" if parallel else "", justify="right")
    for heading in ("kernel", "channels", "output", "parameters", "mult-adds"):
        table.add_column(heading, justify="right", no_wrap=True)
    pathway = None
    for layer in layers:
        if layer.pathway != pathway:
            pathway = layer.pathway
            table.add_row(Text(pathway, style="bold cyan"))
        name = Text(f"  {layer.name.removeprefix(f'{pathway}.')}")
        if layer.is_head and layer.name != "head":
            name.append(" (head)", style="bold")
        channels = "" if layer.in_channels is None else f"{layer.in_channels}→{layer.out_channels}"
        table.add_row(
            name,
            str(layer.position),
            str(layer.depth) if parallel else "",
            _kernels(layer.kernels),
            channels,
            _size(layer.output_shape),
            f"{layer.parameters:,}",
            _count(layer.multiply_adds) if layer.multiply_adds else "",
        )
    return table


def _summary(report: "ModelReport") -> Table:
    """Return the network as a whole."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for pathway in report.pathways:
        grid = "" if pathway.receptive_field_scan is None else f" = {_size(pathway.receptive_field_scan)} of the scan"
        factor = f" at factor {_size(pathway.factor)}" if max(pathway.factor) > 1 else ""
        own = f"{_size(pathway.receptive_field)} voxels{factor}"
        table.add_row(f"sees {pathway.name}", own + (grid if factor else ""))
    plan = report.plan
    table.add_row("segment", f"{_size(plan.shape)} voxels → output {_size(plan.output_shape)}")
    table.add_row("parameters", f"{report.parameters:,} trainable (kernels, biases, scales, slopes)")
    table.add_row("multiply-adds", f"{_count(report.multiply_adds)} per segment, in kernels")
    segments = f"{report.batch_size} segment{'s' if report.batch_size > 1 else ''} per pass"
    table.add_row("memory", f"{_bytes(report.training_bytes)} to train, {_bytes(report.prediction_bytes)} to predict")
    table.add_row("", f"{segments}; all tensors in single precision; libraries' working space comes on top")
    return table


def _size(voxels: "Sequence[int]") -> str:
    return "×".join(map(str, voxels))  # noqa: RUF001  (the sign of sizes)


def _kernels(kernels: "Sequence[Sequence[int]]") -> str:
    """Return a kernel's size; factors are joined by a plus."""
    return "+".join(_size(kernel) for kernel in kernels)


def _count(number: float) -> str:
    """Return a number with three digits and a unit.

    >>> _count(16_888_447_350)
    '16.9 G'
    """
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            break
        number /= 1000
    return f"{number:.3g}{unit}"


def _bytes(number: int) -> str:
    """Return bytes as GiB or MiB."""
    gib = number / 2**30
    return f"{gib:.2f} GiB" if gib >= 1 else f"{number / 2**20:.0f} MiB"
