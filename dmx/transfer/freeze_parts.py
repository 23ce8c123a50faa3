"""What freezing knows of a network: the names of its layers, modules, parameters and buffers; never a value."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from dmx.config.freeze import ALL_BUT_HEAD
from dmx.errors import ConfigError, suggest
from dmx.transfer.aliases import known_as
from dmx.transfer.layout import score_layers

if TYPE_CHECKING:
    from torch import nn

_SHOWN = 12


@dataclass(frozen=True)
class PartLayer:
    """A layer and its parameters.

    Attributes:
        pathway: ``normal``, ``subsampled_1``, …, ``fc``; ``network`` in networks without pathways.
        position: Number within the pathway, from 1.
        name: Name of its module.
        is_head: Whether it gives the class scores.
        parameters: Names of its parameters.
    """

    pathway: str
    position: int
    name: str
    is_head: bool
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class NetworkParts:
    """A network's parts by name.

    Attributes:
        layers: Layers in order.
        modules: Module → names of the parameters in it and below it; without the network itself.
        parameters: Parameter → number of values.
        buffers: Buffer → module that owns it.
        owners: Module without parameters (dropout, say) → layer before it, to which it belongs; only where the network
            has no pathways.
        aliases: Short name → module, for those that the network may also be asked for by.
    """

    layers: tuple[PartLayer, ...]
    modules: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, int]
    buffers: Mapping[str, str]
    owners: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def pathways(self) -> tuple[str, ...]:
        """Names of the pathways in order."""
        return tuple(dict.fromkeys(layer.pathway for layer in self.layers))

    @property
    def subsampled(self) -> tuple[str, ...]:
        """Names of the subsampled pathways."""
        return tuple(name for name in self.pathways if name.startswith("subsampled"))

    def positions(self, pathway: str) -> tuple[int, ...]:
        """Return the positions that a pathway has."""
        return tuple(layer.position for layer in self.layers if layer.pathway == pathway)


@dataclass(frozen=True)
class Found:
    """What a name or glob stands for: modules, and all parameters in them or named themselves."""

    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def network_parts(model: "nn.Module", *, head: str | None = None) -> NetworkParts:
    """Return the names of a network's parts.

    Args:
        model: The network; one of dmx says itself what its layers are, in any other each module that owns parameters
            is a layer.
        head: Module that gives the class scores, where the network does not say it; ``None``: the last one that owns a
            parameter with two axes or more. Auxiliary outputs like it are the head, too.
    """
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = {
        name: tuple(dict.fromkeys(canonical[id(parameter)] for parameter in module.parameters()))
        for name, module in model.named_modules()
        if name
    }
    groups: Callable[[], Sequence[Any]] | None = getattr(model, "layer_groups", None)
    layers = _plain_layers(model, head) if groups is None else _grouped(groups())
    plain = {layer.pathway for layer in layers} <= {"network"}
    return NetworkParts(
        layers=layers,
        modules=modules,
        parameters={name: parameter.numel() for name, parameter in model.named_parameters()},
        buffers={name: name.rpartition(".")[0] for name, _ in model.named_buffers()},
        owners=_owners(layers, modules) if plain else {},
        aliases=getattr(model, "aliases", {}),
    )


def _grouped(groups: Sequence[Any]) -> tuple[PartLayer, ...]:
    return tuple(
        PartLayer(group.pathway, group.position, group.name, group.is_head, tuple(group.parameters)) for group in groups
    )


def _plain_layers(model: "nn.Module", head: str | None) -> tuple[PartLayer, ...]:
    own: dict[str, list[str]] = {}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name in shapes:
        own.setdefault(name.rpartition(".")[0], []).append(name)
    heads = tuple(f"{found}." for found in score_layers(shapes, head))
    return tuple(
        PartLayer("network", position, name, f"{name}.".startswith(heads), tuple(names))
        for position, (name, names) in enumerate(own.items(), start=1)
    )


def _owners(layers: Sequence[PartLayer], modules: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the layer before each module without parameters, in the order in which modules were registered."""
    names = {layer.name for layer in layers}
    owners, before = {}, ""
    for name, parameters in modules.items():
        if name in names:
            before = name
        elif not parameters and before:
            owners[name] = before
    return owners


def find(pattern: str, parts: NetworkParts, *, what: str) -> Found:
    """Return what a name or glob stands for; the prefix ``network.`` may be left out, and short names do as well.

    Args:
        pattern: Name of a module or parameter, ``*`` for any text, or ``all_but_head``.
        parts: The network.
        what: The setting, for error sentences.

    Raises:
        ConfigError: Nothing has such a name.
    """
    if pattern == ALL_BUT_HEAD:
        chosen = [layer for layer in parts.layers if not layer.is_head]
        return Found(
            tuple(layer.name for layer in chosen), tuple(name for layer in chosen for name in layer.parameters)
        )
    modules = tuple(name for name in parts.modules if _fits(name, pattern, parts))
    named = [name for name in parts.parameters if _fits(name, pattern, parts)]
    if modules or named:
        below = [name for module in modules for name in parts.modules[module]]
        return Found(modules, tuple(dict.fromkeys([*named, *below])))
    known = [layer.name for layer in parts.layers]
    shown = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
    raise ConfigError(
        f"{what} names '{pattern}', which fits no module and no parameter of the network."
        f"{suggest(pattern, [*known, *parts.modules, *parts.aliases])} Its layers: {shown}."
    )


def _fits(name: str, pattern: str, parts: NetworkParts) -> bool:
    return any(fnmatchcase(known, pattern) for known in known_as(name, parts.aliases))


def outermost(modules: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that lie in none of the others.

    >>> outermost(["fc.block_1", "fc.block_1.conv", "head"])
    ('fc.block_1', 'head')
    """
    known = set(modules)

    def inside(name: str) -> bool:
        parent = name.rpartition(".")[0]
        return bool(parent) and (parent in known or inside(parent))

    return tuple(name for name in modules if not inside(name))


def compact(names: Collection[str], modules: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return modules instead of their parameters where all of them are named."""
    known = set(names)
    whole = outermost([module for module, inner in modules.items() if inner and known.issuperset(inner)])
    inside = tuple(f"{module}." for module in whole)
    return (*whole, *(name for name in names if not name.startswith(inside)))
