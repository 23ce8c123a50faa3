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


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a source, and whether anything of it is used."""

    network: str
    name: str
    layer: str
    shape: tuple[int, ...]
    used: bool


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
