"""From the words of an experiment to the plan of what is frozen when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dmx.config.freeze import ALL, SAME_AS_NORMAL, FreezeSection, Positions, parse_positions
from dmx.errors import ConfigError, suggest
from dmx.transfer.freeze import NEVER, FreezePlan
from dmx.transfer.freeze_parts import NetworkParts, PartLayer, find, outermost


@dataclass
class _Held:
    """What is frozen, by name → epoch from which it trains."""

    parameters: dict[str, float] = field(default_factory=dict)
    bare_modules: dict[str, float] = field(default_factory=dict)


def plan_freeze(section: FreezeSection, parts: NetworkParts) -> FreezePlan:
    """Return what is frozen in which epoch.

    A module is frozen when all the parameters in it and below it are, and then everything in it is: its dropout acts as
    in inference, and its normalization uses, and keeps, its statistics (unless they are ``updating``).

    Args:
        section: What the experiment says.
        parts: The network.

    Raises:
        ConfigError: A position, pathway or name does not exist, nothing is left to train, or something is unfrozen that
            was not frozen.
    """
    positions = _positions(section, parts)
    patterns = (section.layers,) if isinstance(section.layers, str) else section.layers
    found = [find(pattern, parts, what="freeze.layers") for pattern in patterns]
    held = _Held()
    for layer in parts.layers:
        if layer.position in positions.get(layer.pathway, ()):
            held.parameters.update(dict.fromkeys(layer.parameters, NEVER))
    for one in found:
        held.parameters.update(dict.fromkeys(one.parameters, NEVER))
        held.bare_modules.update({name: NEVER for name in one.modules if not parts.modules[name]})
    if parts.parameters and len(held.parameters) == len(parts.parameters):
        raise ConfigError(
            f"freeze leaves nothing to train: all {sum(parts.parameters.values()):,} parameters are frozen. Leave out "
            "at least the head, which is the last position of 'fc' (or use freeze.layers: [all_but_head])."
        )
    # The earliest epoch counts, so it is written last.
    for epoch in sorted(section.unfreeze, reverse=True):
        _unfreeze(epoch, section, parts, held)
    modules = _modules(parts, held)
    updating = section.norm_statistics == "updating"
    with_buffers = set(parts.buffers.values())
    named = [name for one in found for name in (one.modules or one.parameters)]
    return FreezePlan(
        positions=positions,
        layers=outermost(list(dict.fromkeys(named))),
        norm_statistics=section.norm_statistics,
        parameters={name: held.parameters[name] for name in parts.parameters if name in held.parameters},
        buffers={name: modules[owner] for name, owner in parts.buffers.items() if owner in modules and not updating},
        modules={name: until for name, until in modules.items() if not (updating and name in with_buffers)},
        sizes={name: size for name, size in parts.parameters.items() if name in held.parameters},
        num_parameters=sum(parts.parameters.values()),
    )


def _positions(section: FreezeSection, parts: NetworkParts) -> dict[str, tuple[int, ...]]:
    """Return the frozen positions of each pathway."""
    _require_subsampled(section, parts)
    chosen = {}
    for pathway in dict.fromkeys(["normal", *parts.subsampled, "fc"]):
        if pathway in ("normal", "fc"):
            value: Positions = getattr(section, pathway)
            chosen[pathway] = _existing(value, pathway, parts, what=f"freeze.{pathway}")
        elif _mirrors(section, pathway):
            chosen[pathway] = _mirrored(section.normal, pathway, parts)
        else:
            value = _own(section, pathway)
            chosen[pathway] = _existing(value, pathway, parts, what="freeze.subsampled")
    return chosen


def _require_subsampled(section: FreezeSection, parts: NetworkParts) -> None:
    """Refuse words about subsampled pathways that the network lacks."""
    spec = section.subsampled
    if isinstance(spec, Mapping):
        for name in spec:
            if name not in parts.subsampled:
                raise ConfigError(
                    f"freeze.subsampled names '{name}', the network has {', '.join(parts.subsampled) or 'none'}."
                    f"{suggest(name, parts.subsampled)}"
                )
    elif spec != SAME_AS_NORMAL and parse_positions(spec) != () and not parts.subsampled:
        raise ConfigError("freeze.subsampled must be left out: the network has no subsampled pathway.")


def _own(section: FreezeSection, pathway: str) -> Positions:
    spec = section.subsampled
    return spec.get(pathway, SAME_AS_NORMAL) if isinstance(spec, Mapping) else spec


def _mirrors(section: FreezeSection, pathway: str) -> bool:
    return _own(section, pathway) == SAME_AS_NORMAL


def _existing(value: Positions, pathway: str, parts: NetworkParts, *, what: str) -> tuple[int, ...]:
    """Return positions, all of which the pathway has."""
    known = parts.positions(pathway)
    wanted = parse_positions(value)
    if wanted == ():
        return ()
    if not known:
        raise ConfigError(
            f"{what} names positions, but the network has no pathway '{pathway}'. Name its layers in freeze.layers, "
            f"for instance {parts.layers[0].name}."
        )
    if wanted is None:
        return known
    for position in wanted:
        if position not in known:
            raise ConfigError(
                f"{what} names position {position}, but pathway '{pathway}' has positions {known[0]} to {known[-1]}"
                f"{', the last of which is the head' if pathway == 'fc' else ''}."
            )
    return wanted


def _mirrored(value: Positions, pathway: str, parts: NetworkParts) -> tuple[int, ...]:
    """Return the positions of the normal pathway, all of which the subsampled one must have."""
    known = parts.positions(pathway)
    wanted = parse_positions(value)
    if wanted is None:
        return known
    missing = [position for position in wanted if position not in known]
    if missing:
        explicit = ", ".join(str(position) for position in wanted if position in known)
        raise ConfigError(
            f"freeze.subsampled mirrors freeze.normal, but pathway '{pathway}' has positions 1 to {len(known)} and no "
            f"{', '.join(str(position) for position in missing)}. Give an explicit list: "
            f"freeze.subsampled: {{{pathway}: [{explicit}]}}."
        )
    return wanted


def _unfreeze(epoch: int, section: FreezeSection, parts: NetworkParts, held: _Held) -> None:
    """Let what is named for an epoch train from it on."""
    named_anywhere = {key for wanted in section.unfreeze.values() for key in wanted}
    for key, value in section.unfreeze[epoch].items():
        what = f"freeze.unfreeze.{epoch}.{key}"
        if key == "layers":
            patterns = value if isinstance(value, tuple) else (value,)
            for pattern in patterns:
                _release_names(str(pattern), epoch, parts, held, what=what)
            continue
        pathways = parts.subsampled if key == "subsampled" else (key,)
        if key not in ("subsampled", *parts.pathways):
            allowed = ["normal", "subsampled", *parts.subsampled, "fc", "layers"]
            raise ConfigError(f"{what} must name one of {', '.join(allowed)}.{suggest(key, allowed)}")
        for pathway in pathways:
            _release_positions(value, epoch, _layers(pathway, parts), held, what=what)
        if key == "normal" and "subsampled" not in named_anywhere:
            for pathway in parts.subsampled:
                if pathway not in named_anywhere and _mirrors(section, pathway):
                    _release_positions(value, epoch, _layers(pathway, parts), held, what=what)


def _layers(pathway: str, parts: NetworkParts) -> list[PartLayer]:
    return [layer for layer in parts.layers if layer.pathway == pathway]


def _release_positions(value: Positions, epoch: int, layers: Sequence[PartLayer], held: _Held, *, what: str) -> None:
    frozen = {layer.position: layer for layer in layers if any(name in held.parameters for name in layer.parameters)}
    wanted = parse_positions(value)
    for position in frozen if wanted is None else wanted:
        if position not in frozen:
            raise ConfigError(
                f"{what} names position {position}, which is not frozen in '{layers[0].pathway}'; frozen there: "
                f"{', '.join(str(known) for known in frozen) or 'nothing'}."
            )
        _release(frozen[position].parameters, epoch, held)


def _release_names(pattern: str, epoch: int, parts: NetworkParts, held: _Held, *, what: str) -> None:
    if pattern == ALL:
        _release(tuple(held.parameters), epoch, held)
        held.bare_modules.update(dict.fromkeys(held.bare_modules, float(epoch)))
        return
    found = find(pattern, parts, what=what)
    bare = [name for name in found.modules if name in held.bare_modules]
    if not bare and not any(name in held.parameters for name in found.parameters):
        raise ConfigError(f"{what} names '{pattern}', of which nothing is frozen.")
    _release(found.parameters, epoch, held)
    held.bare_modules.update(dict.fromkeys(bare, float(epoch)))


def _release(names: Sequence[str], epoch: int, held: _Held) -> None:
    held.parameters.update({name: float(epoch) for name in names if name in held.parameters})


def _modules(parts: NetworkParts, held: _Held) -> dict[str, float]:
    """Return the frozen modules: all of whose parameters are, that lie in such a one, or that belong to it."""

    def own(name: str) -> float:
        inner = parts.modules[name]
        if inner:
            return min(held.parameters.get(parameter, 0.0) for parameter in inner)
        owner = parts.owners.get(name)
        return max(held.bare_modules.get(name, 0.0), 0.0 if owner is None else own(owner))

    until: dict[str, float] = {}
    for name in parts.modules:
        parent = name.rpartition(".")[0]
        until[name] = max(own(name), until.get(parent, 0.0))
    return {name: value for name, value in until.items() if value > 0}
