"""Networks that were handed over in Python, trained as they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dmx.config.freeze import FreezeSection
from dmx.config.trust import PYTHON
from dmx.errors import ModelError
from dmx.model.module import ModuleNetwork
from dmx.model.multiscale import MultiScaleNet
from dmx.model.network import Network
from dmx.preprocess.contract import Contract
from dmx.transfer.freeze import FreezePlan
from dmx.transfer.freeze_parts import compact, network_parts

WRAPPER = "network."
"""What stands before the names of a module that dmx has wrapped."""

_OWN_NAMES = ("sgd", "adam", "adamw", "rmsprop")


@dataclass(frozen=True, kw_only=True)
class Handed:
    """A network and, perhaps, an optimizer that somebody has made.

    Attributes:
        model: Any module; one that is no network of dmx reads and gives one tensor.
        head: Module that gives the class scores; ``None``: the last kernel.
        optimizer: Optimizer of some or all of its parameters; ``None``: that of the settings.
    """

    model: nn.Module
    head: str | None = None
    optimizer: torch.optim.Optimizer | None = None

    def network(self, contract: Contract) -> Network:
        """Return it as a network for the channels and classes of a cohort.

        Raises:
            ModelError: A network of dmx has other numbers of channels or classes.
        """
        channels, classes = len(contract.channels), len(contract.outputs)
        if not isinstance(self.model, Network):
            name = type(self.model).__name__
            return ModuleNetwork(self.model, name, num_channels=channels, num_classes=classes, head=self.head)
        has = (self.model.num_channels, self.model.num_classes)
        if has != (channels, classes):
            raise ModelError(
                f"The network reads {has[0]} channels and scores {has[1]} classes, the cohort has {channels} "
                f"({', '.join(contract.channels)}) and {classes} ({', '.join(contract.outputs)})."
            )
        return self.model

    def words(self) -> dict[str, Any]:
        """Return the sections ``model``, ``compatibility`` and ``optimizer`` that say what it is."""
        words: dict[str, Any] = {"model": self._section()}
        if isinstance(self.model, Network):
            words["compatibility"] = self.model.compatibility
        if self.optimizer is not None:
            name = type(self.optimizer).__name__.lower()
            known = {"name": name} if name in _OWN_NAMES else {}
            words["optimizer"] = {**known, "lr": float(self.optimizer.param_groups[0]["lr"]) or 1e-3}
        return words

    def params(self) -> dict[str, object]:
        """Return the params of a run that the settings do not know."""
        return {} if self.optimizer is None else {"optimizer": f"{type(self.optimizer).__name__} of torch"}

    def untouched(self) -> tuple[str, ...]:
        """Return what the optimizer does not have, as the network that trains names it: modules, or parameters."""
        if self.optimizer is None:
            return ()
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        known = dict(self.model.named_parameters())
        names = [name for name, value in known.items() if id(value) not in held]
        if len(names) == len(known):
            # An optimizer of another network, which is refused when the training begins.
            return ()
        return tuple(self.prefix + name for name in compact(names, network_parts(self.model).modules))

    @property
    def prefix(self) -> str:
        """Return what stands before the module's own names when it trains."""
        return "" if isinstance(self.model, Network) else WRAPPER

    def _section(self) -> object:
        if isinstance(self.model, MultiScaleNet):
            return self.model.section
        inner = self.model.network if isinstance(self.model, ModuleNetwork) else self.model
        head = self.model.head_name if isinstance(self.model, ModuleNetwork) else self.head
        place = f"{type(inner).__module__}.{type(inner).__qualname__}"
        # A class that was defined within a function has no name that could be imported.
        name = re.sub(r"[^\w.]+", "_", place.replace("<locals>.", ""))
        return {"name": PYTHON + name, "head": head or None}


def freeze_section(handed: Handed, section: FreezeSection, plan: FreezePlan) -> FreezeSection:
    """Return the section that freezes what was asked for, and what the optimizer does not have.

    Args:
        handed: The network and the optimizer.
        section: What was asked for, in the module's own names.
        plan: What that stands for, in the module's own names.
    """
    if plan and handed.prefix:
        section = _by_names(handed, plan, section)
    layers = (section.layers,) if isinstance(section.layers, str) else section.layers
    return replace(section, layers=tuple(dict.fromkeys([*layers, *handed.untouched()])))


def _by_names(handed: Handed, plan: FreezePlan, section: FreezeSection) -> FreezeSection:
    """Return a section that names each parameter, behind the wrapper's prefix: a pattern might fit the wrapper too."""
    modules = network_parts(handed.model, head=handed.head).modules
    until: Mapping[str, float] = {
        **plan.parameters,
        **{name: epoch for name, epoch in plan.modules.items() if not modules[name]},
    }

    def names(first: float | None) -> tuple[str, ...]:
        chosen = [name for name, epoch in until.items() if first in (None, epoch)]
        return tuple(handed.prefix + name for name in compact(chosen, modules))

    return FreezeSection(
        layers=names(None),
        norm_statistics=section.norm_statistics,
        unfreeze={epoch: {"layers": names(epoch)} for epoch in plan.epochs},
    )
