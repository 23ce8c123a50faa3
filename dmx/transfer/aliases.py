"""Other names of layers: short ones that a network knows, and those without the prefix of a wrapped network."""

from collections.abc import Mapping
from typing import Final

WRAPPER: Final = "network."
"""What stands before the names of a module that dmx trains as it is; it may be left out wherever a layer is named."""


def known_as(name: str, aliases: Mapping[str, str]) -> tuple[str, ...]:
    """Return all names under which a module, parameter or tensor may be given, its own first.

    Args:
        name: Its name in the network.
        aliases: Short name → name of a module.

    >>> known_as("network.features.0.weight", {"conv1": "network.features.0"})
    ('network.features.0.weight', 'features.0.weight', 'conv1.weight')
    """
    bare = name.removeprefix(WRAPPER)
    modules = {short: module.removeprefix(WRAPPER) for short, module in aliases.items()}
    short = [alias + bare[len(module) :] for alias, module in modules.items() if f"{bare}.".startswith(f"{module}.")]
    return tuple(dict.fromkeys((name, bare, *short)))
