"""Rules that rename by pattern."""

import re
from collections.abc import Sequence

from dmx.errors import TransferError, suggest
from dmx.transfer.describe import NetworkSketch
from dmx.transfer.options import MapRule


def rule_network(rule: MapRule, sources: Sequence[NetworkSketch]) -> NetworkSketch:
    """Return the source network that a rule means.

    Raises:
        TransferError: The rule names none of several, or one that is not there.
    """
    names = [source.name for source in sources]
    if not rule.network and len(sources) == 1:
        return sources[0]
    found = next((source for source in sources if source.name == rule.network), None)
    if found is None:
        got = f"'{rule.network}'" if rule.network else "none"
        raise TransferError(
            f"Rule {rule_text(rule)} must name its source, one of {', '.join(names)}, got {got}."
            f"{suggest(rule.network, names)}"
        )
    return found


def rule_text(rule: MapRule) -> str:
    """Return a rule as it is written."""
    return f"'{rule.source}' to '{rule.target}'"


def check_rule(rule: MapRule) -> None:
    """Check that the stars of a rule can be filled in.

    Raises:
        TransferError: The target has more stars than the source.
    """
    if rule.target.count("*") > rule.source.count("*"):
        raise TransferError(
            f"Rule {rule_text(rule)} must not have more stars in the target than in the source. "
            "Each star of the target stands for what the same star of the source matched."
        )


def rename(rule: MapRule, name: str) -> str | None:
    """Return the name that a rule gives, or None where it does not match.

    >>> rename(MapRule("encoder.*.conv", "normal.block_*.conv.weight"), "encoder.2.conv")
    'normal.block_2.conv.weight'
    """
    match = re.fullmatch("(.*)".join(re.escape(text) for text in rule.source.split("*")), name)
    if match is None:
        return None
    texts = rule.target.split("*")
    filled = (*match.groups()[: len(texts) - 1], "")
    return "".join(text + star for text, star in zip(texts, filled, strict=True))


def rename_layer(rule: MapRule, layer: str) -> str | None:
    """Return the layer that a rule gives for a layer; ``head.*`` means the layer ``head`` as well."""
    found = rename(rule, layer)
    if found is None and (found := rename(rule, f"{layer}.*")) is not None:
        found = found.removesuffix(".*")
    return found
