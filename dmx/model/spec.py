"""From the section of the network to one entry per layer, every list checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from dmx.config.model import Kernel, Kernels, ModelSection, Padding, PathwaySection
from dmx.errors import ModelError
from dmx.geometry import Triple, receptive_field, triple

Value = TypeVar("Value")


@dataclass(frozen=True)
class LayerSpec:
    """One layer: [normalization or bias] → activation → dropout → kernel.

    Attributes:
        name: Prefix of its names in the state dict.
        pathway: Pathway that it belongs to.
        position: Number within the pathway, from 1.
        depth: Number of layers from the input to this one, from 1.
        in_channels: Channels that it gets.
        out_channels: Channels that it gives.
        kernel: Size of the kernel.
        padding: What stands for voxels outside of its input.
        dropout: Share of its input that is dropped in training.
        residual: Whether the input of the layer before is added to its output.
        low_rank: Whether the kernel is factorized into one per axis.
        plain: Whether bias and no activation stand before the kernel: the first layer of a parallel pathway.
        is_head: Whether it gives the class scores.
    """

    name: str
    pathway: str
    position: int
    depth: int
    in_channels: int
    out_channels: int
    kernel: Triple
    padding: Padding
    dropout: float
    residual: bool = False
    low_rank: bool = False
    plain: bool = False
    is_head: bool = False


@dataclass(frozen=True)
class PathwaySpec:
    """The layers of a pathway and how coarse its voxels are."""

    name: str
    factor: Triple
    layers: tuple[LayerSpec, ...]

    @property
    def receptive_field(self) -> Triple:
        """Voxels of the pathway's own grid that one of its output voxels sees."""
        return receptive_field([layer.kernel for layer in self.layers])

    @property
    def shrinkage(self) -> Triple:
        """Voxels by which the output is smaller than the input."""
        valid = [layer.kernel for layer in self.layers if layer.padding == "valid"]
        return triple([n - 1 for n in receptive_field(valid)])


@dataclass(frozen=True)
class NetworkSpec:
    """All pathways; the head is the last layer of ``fc``."""

    normal: PathwaySpec
    subsampled: tuple[PathwaySpec, ...]
    fc: PathwaySpec

    @property
    def parallel(self) -> tuple[PathwaySpec, ...]:
        """The pathways that read the scan, in the order of the network's inputs."""
        return (self.normal, *self.subsampled)


def size_text(voxels: Sequence[int]) -> str:
    """Return a size as words: ``(37, 37, 37)`` is 37x37x37."""
    return "x".join(map(str, voxels))


def _per_layer(field: str, value: Value | tuple[Value, ...], count: int) -> tuple[Value, ...]:
    """Return one value per layer from one for all or a list."""
    if not isinstance(value, tuple):
        return (value,) * count
    if len(value) != count:
        raise ModelError(
            f"{field} must have one entry for each of the {count} layers, got {len(value)}: {_text(value)}."
        )
    return value


def _text(value: object) -> str:
    """Return tuples as the lists that stand in the experiment."""
    return str(value).replace("(", "[").replace(",)", "]").replace(")", "]")


def _kernels(field: str, value: Kernels, count: int) -> tuple[Triple, ...]:
    """Return one kernel per layer; a list with a single kernel of three sizes is for all layers."""
    if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], tuple):
        value = value * count
    if isinstance(value, tuple) and len(value) == 3 != count and all(isinstance(size, int) for size in value):
        sizes = list(value)
        raise ModelError(
            f"{field} must have one entry for each of the {count} layers, got 3: {sizes}. "
            f"For one kernel of three sizes in all layers write [{sizes}]."
        )
    entries: tuple[Kernel, ...] = _per_layer(field, value, count)
    for entry in entries:
        if (isinstance(entry, tuple) and len(entry) != 3) or min(triple(entry)) < 1:
            raise ModelError(f"{field} must be at least 1 on each of three axes, got {_text(entry)}.")
    return tuple(triple(entry) for entry in entries)


def _positions(field: str, positions: Sequence[int], *, lowest: int, highest: int) -> frozenset[int]:
    """Return positions of layers, each within the pathway."""
    for position in positions:
        if not lowest <= position <= highest:
            allowed = f"must hold positions from {lowest} to {highest}" if highest >= lowest else "must be empty"
            raise ModelError(f"{field} {allowed}, got {position}.")
    return frozenset(positions)


def _widths(field: str, widths: Sequence[int]) -> None:
    if not widths or min(widths) < 1:
        raise ModelError(f"{field} must hold a number of at least 1 for each layer, got {list(widths)}.")


def _rates(field: str, value: float | tuple[float, ...], count: int) -> tuple[float, ...]:
    rates = _per_layer(field, value, count)
    for rate in rates:
        if not 0.0 <= rate < 1.0:
            raise ModelError(f"{field} must be at least 0 and below 1, got {rate}.")
    return rates


def _parallel(name: str, section: PathwaySection, *, factor: Triple, num_channels: int) -> PathwaySpec:
    """Return a pathway that reads the scan."""
    widths = section.widths
    _widths(f"{name}.widths", widths)
    count = len(widths)
    kernels = _kernels(f"{name}.kernels", section.kernels, count)
    paddings: tuple[Padding, ...] = _per_layer(f"{name}.padding", section.padding, count)
    rates = _rates(f"{name}.dropout", section.dropout, count)
    residual = _positions(f"{name}.residual", section.residual, lowest=2, highest=count)
    low_rank = _positions(f"{name}.low_rank", section.low_rank, lowest=1, highest=count)
    layers = [
        LayerSpec(
            name=f"{name}.block_{position}",
            pathway=name,
            position=position,
            depth=position,
            in_channels=num_channels if position == 1 else widths[position - 2],
            out_channels=widths[position - 1],
            kernel=kernels[position - 1],
            padding=paddings[position - 1],
            dropout=rates[position - 1],
            residual=position in residual,
            low_rank=position in low_rank,
            plain=position == 1,
        )
        for position in range(1, count + 1)
    ]
    return PathwaySpec(name, factor, tuple(layers))


def _fc(section: ModelSection, *, in_channels: int, first_depth: int, num_classes: int) -> PathwaySpec:
    """Return the pathway that joins the others, the head last."""
    fc = section.fc
    if fc.widths:
        _widths("fc.widths", fc.widths)
    widths = (*fc.widths, num_classes)
    count = len(widths)
    kernels = _kernels("fc.kernels", fc.kernels, count)
    paddings: tuple[Padding, ...] = _per_layer("fc.padding", fc.padding, count)
    default = (0.5,) if count == 1 else (0.0, *(0.5,) * (count - 1))
    rates = _rates("fc.dropout", default if fc.dropout is None else fc.dropout, count)
    residual = _positions("fc.residual", fc.residual, lowest=2, highest=count)
    layers = [
        LayerSpec(
            name="head" if position == count else f"fc.block_{position}",
            pathway="fc",
            position=position,
            depth=first_depth + position - 1,
            in_channels=in_channels if position == 1 else widths[position - 2],
            out_channels=widths[position - 1],
            kernel=kernels[position - 1],
            padding=paddings[position - 1],
            dropout=rates[position - 1],
            residual=position in residual,
            is_head=position == count,
        )
        for position in range(1, count + 1)
    ]
    return PathwaySpec("fc", (1, 1, 1), tuple(layers))


def resolve(section: ModelSection, *, num_channels: int, num_classes: int) -> NetworkSpec:
    """Return every layer of the multi-scale network; what a subsampled pathway leaves out mirrors the normal one.

    Raises:
        ModelError: A list does not fit the layers; the sentence names field, allowed and got.
    """
    if num_channels < 1 or num_classes < 1:
        raise ModelError(
            f"A network needs at least 1 channel and 1 output, got {num_channels} channels and {num_classes} outputs."
        )
    normal = _parallel("normal", section.normal, factor=(1, 1, 1), num_channels=num_channels)
    subsampled = []
    for number, given in enumerate(section.subsampled, start=1):
        name = f"subsampled_{number}"
        fields = ("widths", "kernels", "residual", "padding", "dropout", "low_rank")
        own = {field: getattr(given, field) for field in fields if getattr(given, field) is not None}
        factor = triple(given.factor)
        pathway = replace(section.normal, **own)
        subsampled.append(_parallel(name, pathway, factor=factor, num_channels=num_channels))
    parallel = (normal, *subsampled)
    fc = _fc(
        section,
        in_channels=sum(pathway.layers[-1].out_channels for pathway in parallel),
        first_depth=1 + max(len(pathway.layers) for pathway in parallel),
        num_classes=num_classes,
    )
    return NetworkSpec(normal, tuple(subsampled), fc)
