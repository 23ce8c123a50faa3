"""What is frozen when: a plan of names, from which every epoch follows without any memory of the epochs before."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dmx.transfer.freeze_parts import outermost

NEVER = math.inf
"""The epoch from which something trains that never does."""

WHOLE = ("copied", "adapted")
"""States of a transfer after which nothing of a tensor is left as it was initialized."""

_LONGEST = 240


@dataclass(frozen=True, kw_only=True)
class FreezePlan:
    """What is frozen in which epoch. Without arguments nothing is.

    Attributes:
        positions: Pathway → positions that are frozen at the start.
        layers: What the names and globs stand for, outermost modules first.
        norm_statistics: Whether the statistics of frozen normalization layers stay or follow the new cohort.
        parameters: Parameter → epoch from which it trains, :data:`NEVER` if it never does.
        buffers: The same for buffers, such as the statistics of normalization.
        modules: The same for modules that act as in inference (dropout, normalization).
        sizes: Parameter → number of values, of those that are frozen at the start.
        num_parameters: Values of the whole network.
        flagged: Parameters that are frozen because they required no gradient before; whatever they hold is meant.
    """

    positions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    norm_statistics: Literal["frozen", "updating"] = "frozen"
    parameters: Mapping[str, float] = field(default_factory=dict)
    buffers: Mapping[str, float] = field(default_factory=dict)
    modules: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    num_parameters: int = 0
    flagged: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything is ever frozen."""
        return bool(self.parameters or self.modules)

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs at whose beginning something is unfrozen."""
        return tuple(sorted({int(epoch) for epoch in self.parameters.values() if epoch < NEVER}))

    def frozen_parameters(self, epoch: int) -> frozenset[str]:
        """Return the names of the parameters that do not train in an epoch, counted from 0."""
        return _until(self.parameters, epoch)

    def frozen_tensors(self, epoch: int) -> tuple[str, ...]:
        """Return the names of all parameters and buffers that keep their bits in an epoch."""
        return tuple(name for held in (self.parameters, self.buffers) for name, until in held.items() if until > epoch)

    def inference_modules(self, epoch: int) -> frozenset[str]:
        """Return the names of the modules that act as in inference in an epoch."""
        return _until(self.modules, epoch)

    def released(self, epoch: int) -> tuple[str, ...]:
        """Return the parameters and buffers that were frozen before this epoch and are not from it on."""
        return tuple(name for held in (self.parameters, self.buffers) for name, until in held.items() if until == epoch)

    def num_frozen_parameters(self, epoch: int = 0) -> int:
        """Return how many values do not train in an epoch."""
        return sum(self.sizes[name] for name in self.frozen_parameters(epoch))

    def untrained(self, received: Mapping[str, str]) -> tuple[str, ...]:
        """Return what is frozen although it is, at least in part, still as it was initialized.

        Args:
            received: Parameter → what the transfer did to it (``copied``, ``sliced``, ``adapted``); one that is
                missing was left as initialized.
        """
        known = set(self.flagged)
        return owners(name for name in self.parameters if received.get(name) not in WHOLE and name not in known)

    def params(self) -> dict[str, object]:
        """Return the params of a run, which are the same ones when nothing is frozen."""
        subsampled = {name: held for name, held in self.positions.items() if name.startswith("subsampled")}
        alike = len(set(subsampled.values())) <= 1
        return {
            "freeze.normal": _text(self.positions.get("normal", ())),
            "freeze.subsampled": _text(next(iter(subsampled.values()), ()))
            if alike
            else "; ".join(f"{name}: {_text(held) or 'none'}" for name, held in subsampled.items()),
            "freeze.fc": _text(self.positions.get("fc", ())),
            "freeze.layers": _names(self.layers),
            "freeze.norm_statistics": self.norm_statistics,
            "freeze.unfreeze": "; ".join(f"{epoch}: {self._released_layers(epoch)}" for epoch in self.epochs),
            "freeze.num_frozen_parameters": self.num_frozen_parameters(),
        }

    def _released_layers(self, epoch: int) -> str:
        """Return what trains from an epoch on, as a param."""
        return _names(outermost([name for name, until in self.modules.items() if until == epoch])) or _names(
            [name for name, until in self.parameters.items() if until == epoch]
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, with what is frozen from each epoch on at which that changes."""
        return {
            "positions": {name: list(held) for name, held in self.positions.items()},
            "layers": list(self.layers),
            "norm_statistics": self.norm_statistics,
            "num_parameters": self.num_parameters,
            "epochs": {
                str(epoch): {
                    "num_frozen_parameters": self.num_frozen_parameters(epoch),
                    "parameters": [name for name, until in self.parameters.items() if until > epoch],
                    "buffers": [name for name, until in self.buffers.items() if until > epoch],
                    "inference_modules": list(
                        outermost([name for name, until in self.modules.items() if until > epoch])
                    ),
                }
                for epoch in (0, *self.epochs)
            },
        }


def owners(names: Iterable[str]) -> tuple[str, ...]:
    """Return the modules that own these parameters, each once.

    >>> owners(["head.conv.weight", "head.conv.bias"])
    ('head.conv',)
    """
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _until(held: Mapping[str, float], epoch: int) -> frozenset[str]:
    return frozenset(name for name, until in held.items() if until > epoch)


def _names(layers: Sequence[str]) -> str:
    """Return layers as a param: a hundred of them would fill the screen beside another run, and be cut in a name."""
    text = ",".join(layers)
    return text if len(text) <= _LONGEST else f"{layers[0]} … {layers[-1]} ({len(layers)} layers)"


def _text(positions: Collection[int]) -> str:
    return ",".join(str(position) for position in positions)
