"""What a transfer knows of a network: names, shapes and how its layers are joined; never a weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What an axis of a tensor follows: the channels that a layer gives or gets, taps of a kernel, rows of a ring buffer,
# places of a grid; or nothing that may differ between two networks.
Axis = Literal["out", "in", "kernel", "row", "place", "fixed"]
Setting = str | int | float | bool


@dataclass(frozen=True)
class Meaning:
    """What the type of a module says about one of its tensors.

    Attributes:
        axes: What each of its axes follows.
        blocks: Equal parts of its channels out: 3 where query, key and value are one kernel.
        grid: Places per axis of space along an axis ``place``; empty: not known, a square or cube where that fits.
        lead: Entries before those of the grid, such as a class token's.
        computed: Whether the network computes it from its own sizes, so that another network's has no place in it.
    """

    axes: tuple[Axis, ...]
    blocks: int = 1
    grid: tuple[int, ...] = ()
    lead: int = 0
    computed: bool = False


@dataclass(frozen=True)
class TensorSketch:
    """A parameter or buffer.

    Attributes:
        name: Its name in the state dict.
        shape: Its size.
        axes: What each of its axes follows.
        part: Its name within the layer, e.g. ``conv.weight``.
        learned: Whether it is a parameter; a buffer otherwise.
        dtype: Its type, e.g. ``float32``.
        meaning: What its module says about it; None: only names and shapes are known.
        by_class: Axes whose size follows the number of classes.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    part: str
    learned: bool = True
    dtype: str = "float32"
    meaning: Meaning | None = None
    by_class: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps per axis; empty where it is no kernel."""
        return tuple(size for size, axis in zip(self.shape, self.axes, strict=True) if axis == "kernel")


@dataclass(frozen=True)
class LayerSketch:
    """One layer, and what it reads.

    Attributes:
        name: Prefix of its names in the state dict.
        pathway: ``normal``, ``subsampled_1``, …, ``fc``; ``network`` in networks without pathways.
        position: Number within the pathway, from 1; 0: a module without parameters, which is not counted.
        depth: Number of layers from the input to this one, from 1; ``fc`` follows the longest parallel pathway.
        is_head: Whether it gives the class scores.
        tensors: Its parameters and buffers.
        in_channels: Channels that it gets.
        out_channels: Channels that it gives.
        reads: Layers whose concatenated outputs it reads; empty: the scan; None: not known.
        residual: Layers whose concatenated outputs are added to its own; empty: the scan; None: nothing is added.
        settings: What else decides its output: normalization, epsilon, activation, padding, dropout_scale, ….
    """

    name: str
    pathway: str
    position: int
    depth: int
    is_head: bool
    tensors: tuple[TensorSketch, ...]
    in_channels: int = 0
    out_channels: int = 0
    reads: tuple[str, ...] | None = None
    residual: tuple[str, ...] | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def part(self, name: str) -> TensorSketch | None:
        """Return a tensor by its name within the layer."""
        return next((tensor for tensor in self.tensors if tensor.part == name), None)

    @property
    def parameters(self) -> int:
        """Number of learned values."""
        return sum(tensor.size for tensor in self.tensors if tensor.learned)


@dataclass(frozen=True)
class NetworkSketch:
    """A network without its weights.

    Attributes:
        name: What messages and the plan call it, e.g. the run's name.
        layers: All layers in order, the head included.
        pathways: Parallel pathways in order; empty in any other network, whose tensors are paired by name.
        channels: Names of the input channels; empty: not known.
        classes: Names of the classes; empty: not known.
        settings: What the whole network decides: upsampling, subsampling, the factor of each pathway.
        prefix: What a tool put before all names of the tensors, and layers are named without.
        aliases: Short name → layer or module, for those that it may also be asked for by.
        ordered: Whether the order of the layers is the network's; otherwise depths mean nothing.
    """

    name: str
    layers: tuple[LayerSketch, ...]
    pathways: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    prefix: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = True

    @property
    def tensors(self) -> tuple[TensorSketch, ...]:
        """All parameters and buffers."""
        return tuple(tensor for layer in self.layers for tensor in layer.tensors)

    @property
    def num_channels(self) -> int:
        """Channels of the scan, as the first layer reads them; 0: not known."""
        return next((layer.in_channels for layer in self.layers if layer.reads == ()), 0)

    @property
    def head(self) -> LayerSketch | None:
        """The classification layer: the module that gives the scores, the one with a kernel where it has several."""
        heads = [layer for layer in reversed(self.layers) if layer.is_head]
        return next((layer for layer in heads if layer.in_channels), heads[0] if heads else None)

    def pathway(self, name: str) -> tuple[LayerSketch, ...]:
        """Return the layers of a pathway in order, without the head."""
        return tuple(layer for layer in self.layers if layer.pathway == name and not layer.is_head)

    def layer(self, name: str) -> LayerSketch | None:
        """Return a layer by name."""
        return next((layer for layer in self.layers if layer.name == name), None)


@dataclass(frozen=True)
class TensorInfo:
    """A line of a file's table of contents, or of a state dict.

    Attributes:
        name: Name of the tensor.
        shape: Its size.
        dtype: Its type, e.g. ``float32``.
        learned: Whether it is a parameter; a buffer otherwise.
        meaning: What its module says about it; None: nothing but this line is known.
        by_class: Axes whose size follows the number of classes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    learned: bool = True
    meaning: Meaning | None = None
    by_class: tuple[int, ...] = ()
