"""Freeze layers of any network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dmx.config.freeze import FreezeSection, Positions
from dmx.config.load import section_from_dict
from dmx.errors import ConfigError
from dmx.transfer.freeze import FreezePlan, owners
from dmx.transfer.freeze_apply import hold
from dmx.transfer.freeze_parts import network_parts, outermost
from dmx.transfer.freeze_planning import plan_freeze
from dmx.transfer.values import percent

_SHOWN = 10


@dataclass(frozen=True, eq=False)
class Frozen:
    """What of a network is frozen. Print it to read it; give it to ``dmx.train``.

    Attributes:
        model: The network.
        section: What was asked for.
        plan: What is frozen when.
        head_name: Module that was named as the one that gives the scores.
    """

    model: nn.Module
    section: FreezeSection
    plan: FreezePlan
    head_name: str | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters that are frozen at the start."""
        return tuple(self.plan.parameters)

    @property
    def num_frozen_parameters(self) -> int:
        """Return how many values are frozen at the start."""
        return self.plan.num_frozen_parameters()

    def hold(self, epoch: int = 0) -> None:
        """Make the network be as it was asked for in an epoch, from 0; call it after ``model.train()`` in a loop.

        Frozen parameters require no gradient and have none; frozen modules act as in inference, so that norm statistics
        stay. ``dmx.train`` does this by itself.
        """
        hold(self.model, self.plan, epoch)

    def __str__(self) -> str:
        """Return what is frozen, and what trains from which epoch on."""
        plan = self.plan
        if not plan:
            return "Nothing is frozen."
        count, total = plan.num_frozen_parameters(), plan.num_parameters
        lines = [
            f"Frozen: {count:,} of {total:,} parameters ({percent(count / total)}).",
            f"  {_listed(plan, plan.parameters)}",
        ]
        for epoch in plan.epochs:
            released = [name for name in plan.released(epoch) if name in plan.sizes]
            more = sum(plan.sizes[name] for name in released)
            lines.append(f"From epoch {epoch} on {more:,} more train: {_listed(plan, released)}")
        kept = "stay as they are" if plan.norm_statistics == "frozen" else "follow the data"
        return "\n".join([*lines, f"Norm statistics of frozen layers {kept}."])


def _listed(plan: FreezePlan, parameters: Mapping[str, float] | Sequence[str]) -> str:
    """Return the modules that the parameters belong to, a module with all of its parts once."""
    whole = [name for name in plan.modules if any(parameter.startswith(f"{name}.") for parameter in parameters)]
    names = outermost(list(dict.fromkeys([*whole, *owners(parameters)])))
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def freeze(
    model: nn.Module,
    *,
    normal: Positions | Sequence[int | str] = (),
    subsampled: Positions | Sequence[int | str] | Mapping[str, Positions] = "same_as_normal",
    fc: Positions | Sequence[int | str] = (),
    layers: str | Sequence[str] = (),
    norm_statistics: Literal["frozen", "updating"] = "frozen",
    unfreeze: Mapping[int, Mapping[str, Any]] | None = None,
    head_name: str | None = None,
) -> Frozen:
    """Freeze layers of a network, now; the words are those of the section ``freeze`` of an experiment.

    Frozen parameters require no gradient from here on, and frozen modules act as in inference. Give what is returned to
    ``dmx.train``, which keeps all of it bit for bit. In a loop of your own the parameters stay as they are with any
    optimizer of torch, but the next ``model.train()`` lets normalization layers that are frozen move their statistics
    and turns dropout on again: call ``hold()`` after it. Code that writes into parameters without an optimizer is not
    stopped by anything.

    Args:
        model: Any module.
        normal: Positions in the normal pathway of a multi-scale network, from 1: a list, ``"1-3"`` or ``"all"``.
        subsampled: The same for the subsampled pathways.
        fc: The same for the pathway that joins them; the head is its last position.
        layers: Names of layers, modules or parameters of any network, ``*`` for any text; ``all_but_head``.
        norm_statistics: Whether statistics of frozen normalization layers stay, or follow the data.
        unfreeze: Epoch → what trains from then on in ``dmx.train``, in the same words: ``{5: {"layers": ["conv2"]}}``.
        head_name: Module that gives the scores, for ``all_but_head``; ``None``: the last kernel of a plain module.

    Returns:
        What is frozen; ``print`` shows it.

    Raises:
        ConfigError: A position or name does not exist, or nothing would be left to train.
    """
    words: dict[str, Any] = {
        "normal": normal,
        "subsampled": subsampled,
        "fc": fc,
        "layers": layers,
        "norm_statistics": norm_statistics,
        "unfreeze": dict(unfreeze or {}),
    }
    if head_name is not None and head_name not in dict(model.named_modules()):
        raise ConfigError(f"The head must be a module of the network, got '{head_name}'.")
    section = section_from_dict(FreezeSection, words)
    frozen = Frozen(model, section, plan_freeze(section, network_parts(model, head=head_name)), head_name)
    frozen.hold()
    return frozen
