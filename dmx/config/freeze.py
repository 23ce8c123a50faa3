"""The section of what stays as it is while the rest of the network is trained."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from dmx.errors import ConfigError

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}
_RANGE = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")

ALL: Final = "all"
SAME_AS_NORMAL: Final = "same_as_normal"
ALL_BUT_HEAD: Final = "all_but_head"

_MOST_POSITIONS: Final = 10_000

Positions = int | str | tuple[int | str, ...]


def parse_positions(value: Positions) -> tuple[int, ...] | None:
    """Return positions in order, or None for all of a pathway.

    Raises:
        ValueError: The value is something else.

    >>> parse_positions("1-3, 5"), parse_positions((2, 1)), parse_positions("none"), parse_positions("all")
    ((1, 2, 3, 5), (1, 2), (), None)
    """
    words = [word for part in (value if isinstance(value, tuple) else (value,)) for word in str(part).split(",")]
    words = [word.strip() for word in words if word.strip()]
    if ALL in words:
        return None
    positions: set[int] = set()
    for word in words:
        match = _RANGE.fullmatch(word)
        if match is None and word != "none":
            raise ValueError(f"positions must be numbers, ranges such as '1-3', 'all' or 'none', got '{word}'")
        if match is not None:
            first, last = int(match[1]), int(match[2] or match[1])
            if last > _MOST_POSITIONS:
                raise ValueError(f"no pathway has {last} layers")
            if not 1 <= first <= last:
                raise ValueError(f"positions count from 1, and a range goes up, got '{word}'")
            positions.update(range(first, last + 1))
    return tuple(sorted(positions))


@dataclass(frozen=True, kw_only=True)
class FreezeSection:
    """What of the network stays, bit for bit, as it is; by default nothing.

    Positions count from 1 within a pathway: a list, `"1-3"`, `all` or `none`.
    """

    __pydantic_config__ = _STRICT

    normal: Positions = ()
    """Positions in the normal pathway."""
    subsampled: Positions | Mapping[str, Positions] = SAME_AS_NORMAL
    """Positions in every subsampled pathway, `same_as_normal`, or a list for each by its name (one that is not named
    follows `normal`)."""
    fc: Positions = ()
    """Positions in the pathway that joins the others; the head is the last one."""
    layers: str | tuple[str, ...] = ()
    """Names of layers, modules or parameters, `*` for any text, in any network; `all_but_head` is everything else."""
    norm_statistics: Literal["frozen", "updating"] = "frozen"
    """Whether the statistics of frozen normalization layers follow the new cohort (DeepMedic: updating)."""
    unfreeze: Mapping[int, Mapping[str, Positions]] = field(default_factory=dict)
    """Epoch, from 0 → what trains from then on, in the same words: `{5: {fc: [1]}}`. Subsampled pathways that mirror
    `normal` follow it unless they are named here."""

    def __post_init__(self) -> None:
        _check("normal", self.normal)
        _check("fc", self.fc)
        if isinstance(self.subsampled, Mapping):
            for name, positions in self.subsampled.items():
                _check(f"subsampled.{name}", positions, mirror=True)
        else:
            _check("subsampled", self.subsampled, mirror=True)
        for epoch, wanted in self.unfreeze.items():
            if epoch < 1:
                raise ValueError(f"unfreeze must name epochs from 1 on, got {epoch}; do not freeze what trains at once")
            for key, positions in wanted.items():
                if key != "layers":
                    _check(f"unfreeze.{epoch}.{key}", positions)


def _check(name: str, positions: Positions, *, mirror: bool = False) -> None:
    if mirror and positions == SAME_AS_NORMAL:
        return
    try:
        parse_positions(positions)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def freeze_overrides(words: Iterable[str]) -> list[str]:
    """Turn ``normal=1-3`` and the like into overrides of an experiment; what is said twice is added up.

    Raises:
        ConfigError: A word has another form.

    >>> freeze_overrides(["normal=1-3", "layers=a.*", "layers=b", "norm_statistics=updating"])
    ['freeze.normal=["1-3"]', 'freeze.layers=["a.*", "b"]', 'freeze.norm_statistics=updating']
    >>> freeze_overrides(["subsampled_1=1-2", "all_but_head"])
    ['freeze.subsampled={"subsampled_1": ["1-2"]}', 'freeze.layers=["all_but_head"]']
    """
    lists: dict[str, list[str]] = {}
    pathways: dict[str, list[str]] = {}
    for word in words:
        key, _, value = ("layers", "=", word) if word.strip() == ALL_BUT_HEAD else word.partition("=")
        key = key.strip().removeprefix("subsampled.")
        if not key or not value.strip():
            raise ConfigError(
                f"--freeze takes normal=1-3, subsampled_1=1-2, fc=1, layers=NAME or all_but_head, got '{word}'."
            )
        chosen = pathways if key.startswith("subsampled_") else lists
        chosen.setdefault(key, []).extend(part.strip() for part in value.strip(" []").split(","))
    if pathways and "subsampled" in lists:
        raise ConfigError(
            f"--freeze names all subsampled pathways and {', '.join(pathways)} as well. Name each of them, or all."
        )
    each = {key: list(filter(None, values)) for key, values in pathways.items()}
    own = [f"freeze.subsampled={json.dumps(each)}"] if each else []
    return [*own, *(f"freeze.{key}={_override(values)}" for key, values in lists.items())]


def _override(values: list[str]) -> str:
    """Return a word that stands alone as it is, everything else as a list."""
    if values in (["frozen"], ["updating"], [SAME_AS_NORMAL]):
        return values[0]
    return json.dumps([value for value in values if value])
