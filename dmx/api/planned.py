"""A transfer that has been planned: to read, to keep, to carry out."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from dmx.cohort.files import atomic_file
from dmx.errors import TransferError
from dmx.transfer.apply import TensorReader, apply_plan
from dmx.transfer.picture import mapping_html
from dmx.transfer.plan import TransferPlan
from dmx.transfer.report import layer_action
from dmx.transfer.values import LayerOutline, SourceTensor, TensorPlan
from dmx.workflows.provenance import Origin, remember_plan

Module = TypeVar("Module", bound=nn.Module)

_WIDTH = 80
_LONGEST_NAME = 25
_SHOWN_LAYERS = 8


class PlannedTransfer:
    """What each tensor of a target receives from one or more sources. Print it to read it.

    Args:
        plan: The plan.
        readers: Tensors of each source, by the source's name in the plan.
        origins: Where each source comes from, where that is known: a run, a file, or a module that remembers it.

    Attributes:
        plan: The plan, with one entry per tensor.
    """

    def __init__(
        self,
        plan: TransferPlan,
        readers: Mapping[str, TensorReader],
        origins: Mapping[str, Origin | nn.Module] | None = None,
    ) -> None:
        self.plan = plan
        self._readers = dict(readers)
        self._origins = dict(origins or {})

    @property
    def received(self) -> int:
        """Return how many of the target's parameters a source decides."""
        return self.plan.received

    @property
    def parameters(self) -> int:
        """Return how many parameters the target has."""
        return self.plan.parameters

    @property
    def share(self) -> float:
        """Return the share of the parameters that are received, from 0 to 1."""
        return self.plan.share

    @property
    def unused(self) -> tuple[SourceTensor, ...]:
        """Return the tensors of the sources that find no place although they were asked for."""
        return self.plan.unused

    def rows(self) -> list[dict[str, str]]:
        """Return a line per tensor of the target, then one per tensor of a source of which nothing is used."""
        return self.plan.rows()

    def to_html(self, path: str | Path) -> Path:
        """Write a page that shows both networks side by side, with a line per layer that receives; return its path."""
        file = Path(path)
        with atomic_file(file) as stream:
            stream.write(mapping_html(self.plan).encode())
        return file

    def apply(self, target: Module) -> Module:
        """Write what the plan says into a network, in place; what it leaves as initialized stays as it is.

        A source that is a module gives the weights that it has now, not those it had when the transfer was planned.

        Args:
            target: The network that was planned for, or another one of the same names and shapes.

        Returns:
            The target.

        Raises:
            TransferError: The target or a source has other tensors than were planned for; nothing is changed then.
        """
        state: Mapping[str, Tensor] = target.state_dict()
        extra = [name for name in state if name not in {tensor.name for tensor in self.plan.tensors}]
        if extra:
            raise TransferError(
                f"The plan is for another network: it knows nothing of {extra[0]}"
                f"{f' and {len(extra) - 1} more tensors' if len(extra) > 1 else ''}. Plan the transfer again."
            )
        apply_plan(self.plan, self._readers, state)
        remember_plan(target, self.plan, self._origins)
        return target

    def __repr__(self) -> str:
        names = ", ".join(source.name for source in self.plan.sources)
        return f"<transfer {names} → {self.plan.target.name}: {self.received:,} of {self.parameters:,} parameters>"

    def __str__(self) -> str:
        """Return a table of the layers, and what else is worth knowing, within 80 columns."""
        plan = self.plan
        names = ", ".join(source.name for source in plan.sources)
        remarks = [*_reasons(plan), *plan.notes, *(f"Warning: {warning}" for warning in plan.warnings)]
        return "\n".join(
            [
                *_wrapped(f"Transfer {names} → {plan.target.name}"),
                "",
                *_table(plan),
                "",
                *(line for remark in remarks for line in _wrapped(remark)),
                *_wrapped(plan.total),
            ]
        )


def _table(plan: TransferPlan) -> list[str]:
    """Return a line per layer that has parameters."""
    several = len(plan.sources) > 1
    rows = [("layer", "what", "from", "parameters")]
    for layer in plan.target.layers:
        if layer.depth:
            own = _own(plan, layer)
            rows.append((_short(layer.name), layer_action(own), _short(_origin(own, several)), _received(layer, own)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        f"{name:<{widths[0]}}  {what:<{widths[1]}}  {source:<{widths[2]}}  {count:>{widths[3]}}"
        for name, what, source, count in rows
    ]


def _own(plan: TransferPlan, layer: LayerOutline) -> list[TensorPlan]:
    return [tensor for tensor in plan.tensors if tensor.layer == layer.name]


def _origin(tensors: Sequence[TensorPlan], several: bool) -> str:
    given = dict.fromkeys(
        f"{tensor.network}:{tensor.source_layer}" if several else tensor.source_layer
        for tensor in tensors
        if tensor.action != "initialized"
    )
    return ", ".join(given) or "-"


def _received(layer: LayerOutline, tensors: Sequence[TensorPlan]) -> str:
    received = sum(tensor.received for tensor in tensors if tensor.learned)
    return f"{received:,} of {layer.parameters:,}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _reasons(plan: TransferPlan) -> list[str]:
    """Return a sentence per reason why layers receive nothing."""
    found: dict[str, list[str]] = {}
    for layer in plan.target.layers:
        own = _own(plan, layer)
        if layer.depth and layer_action(own) == "initialized":
            # A reason may name the tensor, which the layer's name says as well.
            reason = next((tensor.reason.partition(" of the name ")[0] for tensor in own if tensor.reason), "")
            found.setdefault(reason or "no reason given", []).append(layer.name)
    return [
        f"Initialized ({reason}): {', '.join(names[:_SHOWN_LAYERS])}"
        + (f" and {len(names) - _SHOWN_LAYERS} more." if len(names) > _SHOWN_LAYERS else ".")
        for reason, names in found.items()
    ]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False) or [""]
