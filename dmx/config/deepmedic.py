"""DeepMedic's configurations: Python files of assignments, parsed and never executed."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmx.config.data import NormalizeSection
from dmx.errors import ConfigError

_LONGEST_LIST = 10_000
_ZSCORE = "norm_zscore_prms"


@dataclass(frozen=True, kw_only=True)
class Assignments:
    """What a configuration assigns.

    Attributes:
        values: Names with plain values; of several assignments the last one counts.
        unread: Names whose last value is an expression that would have to be executed.
        other_lines: Lines that do something else than assign, import or comment.
    """

    values: Mapping[str, Any]
    unread: frozenset[str]
    other_lines: tuple[int, ...]


def parse_assignments(text: str) -> Assignments | None:
    r"""Return the assignments of a configuration, or ``None`` where the text is no Python.

    Plain values are numbers, texts, ``None``, truth values, and lists of them, repeated or joined as in ``[3] * 8``.

    >>> parse_assignments("widths = [30] * 2 + [40]\nrate = open('/etc/passwd')").values
    {'widths': [30, 30, 40]}
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    values: dict[str, Any] = {}
    unread: set[str] = set()
    other = []
    for node in tree.body:
        names = _assigned(node)
        if names is None:
            other.append(node.lineno)
            continue
        for name, value in names:
            values.pop(name, None)
            unread.discard(name)
            try:
                values[name] = _plain(value)
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                unread.add(name)
    return Assignments(values=values, unread=frozenset(unread), other_lines=tuple(other))


def _assigned(node: ast.stmt) -> list[tuple[str, ast.expr]] | None:
    """Return the names that a statement assigns; ``None`` for a statement that could change values otherwise."""
    if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
        return [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
    harmless = isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return [] if harmless or text else None


def _plain(node: ast.expr) -> Any:
    """Return a plain value, or raise ``ValueError``."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Add)):
        return ast.literal_eval(node)
    left, right = _plain(node.left), _plain(node.right)
    if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
        return left + right
    if isinstance(node.op, ast.Mult) and isinstance(left, list) and isinstance(right, int):
        if len(left) * right > _LONGEST_LIST:
            raise ValueError(f"a list of more than {_LONGEST_LIST} entries")
        return left * right
    raise ValueError("only lists are joined and repeated")


def read_normalization(text: str, *, channels: Sequence[str], source: str) -> NormalizeSection:
    """Return how a training or test configuration normalizes intensities.

    Args:
        text: Content of ``trainConfig.cfg`` or ``testConfig.cfg``.
        channels: Names of the channels, in DeepMedic's order.
        source: What sentences call it.

    Raises:
        ConfigError: It cannot be parsed, or asks for what cannot be done here.
    """
    assignments = parse_assignments(text)
    if assignments is None:
        raise ConfigError(f"'{source}' is no configuration of DeepMedic: it is not Python.")
    for name in (_ZSCORE, "padInputImagesBool"):
        if name in assignments.unread:
            raise ConfigError(f"{source}: '{name}' must be a plain value; expressions are not executed.")
    if assignments.values.get("padInputImagesBool", True) is False:
        raise ConfigError(f"{source}: 'padInputImagesBool' must be True; networks for unpadded scans cannot be used.")
    given = assignments.values.get(_ZSCORE) or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{source}: '{_ZSCORE}' must be a dictionary, got {given!r}.")
    chosen = _normalized_channels(given, channels, source)
    if not chosen:
        return NormalizeSection(method="none")
    try:
        return NormalizeSection(
            method="zscore",
            channels=() if len(chosen) == len(channels) else chosen,
            percentiles=_pair(given.get("cutoff_percents")),
            within_std=_pair(given.get("cutoff_times_std")),
            above_mean=bool(given.get("cutoff_below_mean")),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: '{_ZSCORE}' cannot be used: {error}.") from error


def _normalized_channels(given: Mapping[str, Any], channels: Sequence[str], source: str) -> tuple[str, ...]:
    if given.get("apply_to_all_channels"):
        return tuple(channels)
    chosen = given.get("apply_per_channel") or [False] * len(channels)
    if not isinstance(chosen, list | tuple) or len(chosen) != len(channels):
        raise ConfigError(f"{source}: 'apply_per_channel' must say True or False for each of {len(channels)} channels.")
    return tuple(name for name, wanted in zip(channels, chosen, strict=True) if wanted)


def _pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    low, high = value
    return (float(low), float(high))
