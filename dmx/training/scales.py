"""Factors of the learning rate for parts of a network."""

from collections.abc import Mapping

from dmx.errors import ConfigError, suggest
from dmx.transfer.freeze_parts import NetworkParts, find

RECEIVED = "received"
INITIALIZED = "initialized"


def resolve_scales(
    scales: Mapping[str, float], parts: NetworkParts, received: Mapping[str, str] | None
) -> dict[str, float]:
    """Return the factor of each parameter; those of factor 1 are left out.

    A name or glob overrules a pathway, a pathway overrules the origin, and a later name an earlier one.

    Args:
        scales: ``received``, ``initialized``, pathways (``subsampled``: all of them), names or globs → factor.
        parts: The network.
        received: Parameter → how it came from a source; one that is missing was initialized. ``None``: not known yet,
            the two origins are left out then.

    Raises:
        ConfigError: A key fits nothing.
    """
    origins: dict[str, float] = {}
    pathways: dict[str, float] = {}
    names: dict[str, float] = {}
    for key, factor in scales.items():
        if key in (RECEIVED, INITIALIZED):
            origins.update(dict.fromkeys(_of_origin(key, parts, received), factor))
        elif key in parts.pathways or key == "subsampled":
            pathways.update(dict.fromkeys(_of_pathway(key, parts), factor))
        else:
            names.update(dict.fromkeys(_of_name(key, parts), factor))
    resolved = {**origins, **pathways, **names}
    return {name: resolved[name] for name in parts.parameters if resolved.get(name, 1.0) != 1.0}


def _of_origin(key: str, parts: NetworkParts, received: Mapping[str, str] | None) -> list[str]:
    if received is None:
        return []
    if key == RECEIVED and not received:
        raise ConfigError(
            "optimizer.lr_scale names 'received', but this training begins with initialized weights. Leave it out, or "
            "start from another run."
        )
    return [name for name in parts.parameters if (name in received) == (key == RECEIVED)]


def _of_pathway(key: str, parts: NetworkParts) -> list[str]:
    wanted = parts.subsampled if key == "subsampled" else (key,)
    names = [name for layer in parts.layers if layer.pathway in wanted for name in layer.parameters]
    if not names:
        raise ConfigError("optimizer.lr_scale names 'subsampled', but the network has no subsampled pathway.")
    return names


def _of_name(key: str, parts: NetworkParts) -> tuple[str, ...]:
    try:
        return find(key, parts, what="optimizer.lr_scale").parameters
    except ConfigError as error:
        words = (RECEIVED, INITIALIZED, *parts.pathways)
        hint = "" if "." in key or "*" in key else suggest(key, words)
        if not hint:
            raise
        raise ConfigError(f"optimizer.lr_scale names '{key}', which fits nothing.{hint}") from error
