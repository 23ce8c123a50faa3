"""The outcome of planning: for every tensor what happens to it, as values that can be kept and read again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dmx.errors import TransferError
from dmx.transfer.options import MapRule, TransferOptions
from dmx.transfer.report import layer_lines, tensor_rows
from dmx.transfer.unused import lost_parameters
from dmx.transfer.values import (
    AxisRule,
    EqualOutput,
    LayerOutline,
    NetworkOutline,
    Run,
    SourceTensor,
    TensorPlan,
    percent,
)

FORMAT_VERSION = 1


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

    @property
    def unused(self) -> tuple[SourceTensor, ...]:
        """Tensors of the sources that find no place although they were asked for, and what is computed lacks them."""
        return tuple(tensor for tensor in self.source_tensors if tensor.matters)

    @property
    def total(self) -> str:
        """How much is received, and how much of what the sources learned finds no place."""
        received = f"{self.received:,} of {self.parameters:,} parameters received ({percent(self.share)})"
        return f"{received}; {self.loss}" if self.loss else received

    @property
    def loss(self) -> str:
        """How much of what the sources learned finds no place, as words; empty: nothing."""
        whose = "source's" if len(self.sources) == 1 else "sources'"
        return f"{lost_parameters(self.source_tensors):,} of the {whose} find no place here" if self.unused else ""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values from which :meth:`from_dict` makes the same plan."""
        totals = {
            "received": self.received,
            "parameters": self.parameters,
            "share": self.share,
            "unused": lost_parameters(self.source_tensors),
        }
        return {"format_version": FORMAT_VERSION, **totals, **asdict(self)}

    @classmethod
    def from_json(cls, text: str) -> "TransferPlan":
        """Return the plan that a file holds.

        Raises:
            TransferError: It was written by another version, or is no plan.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError(f"a {type(values).__name__} instead of an object")
            return cls.from_dict(values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise TransferError(
                f"The transfer plan is damaged ({type(error).__name__}: {error}). Transfer again."
            ) from error

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
        return tensor_rows(self.tensors, self.source_tensors)

    def layer_lines(self, *, folded: bool = False) -> list[str]:
        """Return a line per layer; if folded, those in a row that are copied whole as one, where layers are many."""
        return layer_lines(self.target.layers, self.tensors, folded=folded)

    def summary(self, *, folded: bool = False, warnings: bool = True) -> list[str]:
        """Return a line per layer, notes and warnings, ending with how much is received and what is lost.

        Args:
            folded: Make one line of layers in a row that are copied whole, where there are many.
            warnings: Whether the warnings are part of it.
        """
        lines = self.layer_lines(folded=folded)
        hidden = folded and lines != self.layer_lines()
        return [
            *lines,
            *(["Layer by layer: transfer/mapping.csv of the run, or dmx transfer --dry-run."] if hidden else []),
            *self.notes,
            *(f"Warning: {warning}" for warning in self.warnings if warnings),
            self.total,
        ]

    def __str__(self) -> str:
        """Return the summary."""
        return "\n".join(self.summary())


def _runs(values: Sequence[Mapping[str, int]]) -> tuple[Run, ...]:
    return tuple(Run(**run) for run in values)


def _tensor(values: Mapping[str, Any]) -> TensorPlan:
    parts = tuple(None if part is None else _runs(part) for part in values["parts"])
    shapes = {key: tuple(values[key]) for key in ("shape", "source_shape")}
    rules = tuple(
        AxisRule(**{**rule, "source": tuple(rule["source"]), "target": tuple(rule["target"])})
        for rule in values.get("axis_rules", ())
    )
    return TensorPlan(**{**values, **shapes, "parts": parts, "axis_rules": rules})


def _outline(values: Mapping[str, Any]) -> NetworkOutline:
    layers = tuple(LayerOutline(**{**layer, "kernel": tuple(layer["kernel"])}) for layer in values["layers"])
    return NetworkOutline(values["name"], tuple(values["channels"]), tuple(values["classes"]), layers)


def _options(values: Mapping[str, Any]) -> TransferOptions:
    rules = tuple(MapRule(**rule) for rule in values["map"])
    lists = {key: tuple(values.get(key, ())) for key in ("layers", "exclude")}
    return TransferOptions(**{**values, **lists, "map": rules})
