"""What planning says about each tensor and each network: plain values."""

from dataclasses import dataclass
from typing import Literal

Action = Literal["copied", "sliced", "adapted", "initialized"]


@dataclass(frozen=True)
class Run:
    """Consecutive channels: ``length`` of them from ``source`` on go to ``target`` on."""

    target: int
    source: int
    length: int

    def __str__(self) -> str:
        """Return ``[60:70] from [30:40]``."""
        to, of = f"{self.target}:{self.target + self.length}", f"{self.source}:{self.source + self.length}"
        return f"[{to}]" if to == of else f"[{to}] from [{of}]"


@dataclass(frozen=True)
class AxisRule:
    """How one axis of a source's tensor is changed before its channels are taken.

    Attributes:
        kind: ``places`` interpolates a table from one grid to another; ``repeat`` takes input channels again and again,
            ``mean`` takes their mean for each; kernels are scaled so that the sum over the channels stays.
        axis: The axis.
        source: Size along it in the source: of the grid, or the number of channels.
        target: The same in the target.
        lead: Entries before those of the grid, which are copied.
        scaled: Whether the weights of repeated or averaged channels are scaled.
    """

    kind: Literal["places", "repeat", "mean"]
    axis: int
    source: tuple[int, ...]
    target: tuple[int, ...]
    lead: int = 0
    scaled: bool = False


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one tensor of the target.

    Attributes:
        name: Its name in the target's state dict.
        layer: Layer that it belongs to.
        shape: Its size.
        learned: Whether it is a parameter; a buffer otherwise.
        action: ``copied`` whole, ``sliced`` (a part of it), ``adapted`` by a rule, or ``initialized``: left as it is.
        network: Source network; empty when initialized.
        source: Name in the source.
        source_layer: Layer of the source that it belongs to.
        source_shape: Size in the source.
        parts: Per axis the channels that are received, or None for the whole axis.
        zeroed: Whether weights from channels that are not received to channels that are become zero.
        rule: How it is adapted, e.g. ``mean of the rows``.
        exact: Whether the rule keeps what the layer computes.
        reason: Why it is initialized, sliced or not exact.
        received: Values that the source decides.
        axis_rules: What is done to single axes.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    learned: bool
    action: Action
    network: str = ""
    source: str = ""
    source_layer: str = ""
    source_shape: tuple[int, ...] = ()
    parts: tuple[tuple[Run, ...] | None, ...] = ()
    zeroed: bool = False
    rule: str = ""
    exact: bool = True
    reason: str = ""
    received: int = 0
    axis_rules: tuple[AxisRule, ...] = ()


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a source, and what became of it.

    Attributes:
        network: Name of the source.
        name: Name of the tensor.
        layer: Layer that it belongs to.
        shape: Its size.
        used: Whether anything of it is.
        learned: Whether it is a parameter; a buffer otherwise.
        reason: Why it is not used.
        matters: Whether it is not used although nobody wanted that, and the source computed something with it.
        within: Whether it belongs to a layer or block of which other tensors are used.
    """

    network: str
    name: str
    layer: str
    shape: tuple[int, ...]
    used: bool
    learned: bool = True
    reason: str = ""
    matters: bool = False
    within: bool = False


@dataclass(frozen=True)
class LayerOutline:
    """A layer as a picture shows it."""

    name: str
    pathway: str
    position: int
    depth: int
    is_head: bool
    channels: int
    kernel: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class NetworkOutline:
    """A network as a picture shows it."""

    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    layers: tuple[LayerOutline, ...]


@dataclass(frozen=True)
class EqualOutput:
    """Channels of a target layer that must equal channels of a source layer, in inference, for the same input."""

    layer: str
    network: str
    source: str
    runs: tuple[Run, ...]


def percent(share: float) -> str:
    """Return a share from 0 to 1 as text with a decimal; only the whole is 100 %."""
    return f"{min(share, 0.999) if share < 1 else share:.1%}"
