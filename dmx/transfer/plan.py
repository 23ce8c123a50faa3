"""The outcome of planning: for every tensor what happens to it, as values that can be kept and read again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dmx.errors import TransferError
from dmx.transfer.options import MapRule, TransferOptions

FORMAT_VERSION = 1
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


@dataclass(frozen=True)
class TransferPlan:
    """All of a transfer.

    Attributes:
        options: What was asked for.
        target: Outline of the target.
        sources: Outlines of the sources.
        pairs: Layers that correspond: (target layer, network, source layer).
        tensors: One entry per tensor of the target, in its order.
        source_tensors: One entry per tensor of each source.
        equal: Outputs that must equal the source's; empty when the plan implies none.
        notes: What is worth knowing, "not exact" among it.
        warnings: What is probably not meant.
    """

    options: TransferOptions
    target: NetworkOutline
    sources: tuple[NetworkOutline, ...]
    pairs: tuple[tuple[str, str, str], ...]
    tensors: tuple[TensorPlan, ...]
    source_tensors: tuple[SourceTensor, ...]
    equal: tuple[EqualOutput, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def received(self) -> int:
        """Parameters of the target that the source decides."""
        return sum(tensor.received for tensor in self.tensors if tensor.learned)

    @property
    def parameters(self) -> int:
        """Parameters of the target."""
        return sum(layer.parameters for layer in self.target.layers)

    @property
    def share(self) -> float:
        """Share of the parameters that are received, from 0 to 1."""
        return self.received / self.parameters if self.parameters else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values from which :meth:`from_dict` makes the same plan."""
        totals = {"received": self.received, "parameters": self.parameters, "share": self.share}
        return {"format_version": FORMAT_VERSION, **totals, **asdict(self)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "TransferPlan":
        """Return the plan that :meth:`as_dict` described.

        Raises:
            TransferError: It was written by another version, or is no plan.
        """
        if values.get("format_version") != FORMAT_VERSION:
            raise TransferError(
                f"A transfer plan of format {FORMAT_VERSION} is needed, got {values.get('format_version')}. "
                "Plan the transfer again with this version of dmx."
            )
        return TransferPlan(
            options=_options(values["options"]),
            target=_outline(values["target"]),
            sources=tuple(_outline(source) for source in values["sources"]),
            pairs=tuple((str(a), str(b), str(c)) for a, b, c in values["pairs"]),
            tensors=tuple(_tensor(tensor) for tensor in values["tensors"]),
            source_tensors=tuple(
                SourceTensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in values["source_tensors"]
            ),
            equal=tuple(EqualOutput(**{**entry, "runs": _runs(entry["runs"])}) for entry in values["equal"]),
            notes=tuple(values["notes"]),
            warnings=tuple(values["warnings"]),
        )

    def rows(self) -> list[dict[str, str]]:
        """Return a line per tensor of the target, then one per unused tensor of a source, for a CSV file."""
        from dmx.transfer.report import plan_rows

        return plan_rows(self)

    def summary(self) -> list[str]:
        """Return a line per layer, notes and warnings, ending with ``N of M parameters received``."""
        from dmx.transfer.report import plan_summary

        return plan_summary(self)

    def __str__(self) -> str:
        """Return the summary."""
        return "\n".join(self.summary())


def _runs(values: Sequence[Mapping[str, int]]) -> tuple[Run, ...]:
    return tuple(Run(**run) for run in values)


def _tensor(values: Mapping[str, Any]) -> TensorPlan:
    parts = tuple(None if part is None else _runs(part) for part in values["parts"])
    shapes = {key: tuple(values[key]) for key in ("shape", "source_shape")}
    return TensorPlan(**{**values, **shapes, "parts": parts})


def _outline(values: Mapping[str, Any]) -> NetworkOutline:
    layers = tuple(LayerOutline(**{**layer, "kernel": tuple(layer["kernel"])}) for layer in values["layers"])
    return NetworkOutline(values["name"], tuple(values["channels"]), tuple(values["classes"]), layers)


def _options(values: Mapping[str, Any]) -> TransferOptions:
    rules = tuple(MapRule(**rule) for rule in values["map"])
    return TransferOptions(**{**values, "layers": tuple(values["layers"]), "map": rules})
