"""YAML as people mean it: no duplicate keys, no objects; scalars of YAML 1.2, where ``off`` and ``4:2`` are words.

Beyond its core schema (https://yaml.org/spec/1.2.2/#103-core-schema), ``1_000`` is a number, and ``{4:2}`` a pair.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from dmx.errors import ConfigError

MAX_DEPTH = 50
"""Mappings and lists inside of each other."""
_MAX_BYTES = 1_000_000
# Digits may be matched in one way only: with two, a long row of them takes the square of its length.
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
# YAML 1.1 takes 4:2 for a number of base 60, and 010 for one of base 8.
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$|^0o[0-7]+$|^0x[0-9a-fA-F]+$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2; refuses duplicate keys and references that could multiply."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases: a few of them can stand for gigabytes."""
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "references (*name) are not allowed", mark)
        if self.depth >= MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "it is nested too deeply for settings", mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice."""
        node.value = [_pair(key, value) for key, value in node.value]
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key_node.value}' stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _pair(key: yaml.Node, value: yaml.Node) -> tuple[yaml.Node, yaml.Node]:
    """Return what ``{4:2}`` means, which without a blank after the colon would be a key '4:2' that has no value."""
    nothing = isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None
    if not (nothing and isinstance(key, yaml.ScalarNode) and key.style is None):
        return key, value
    first, colon, second = key.value.partition(":")
    if not (first and colon and second):
        return key, value
    return _plain_scalar(first, key), _plain_scalar(second, key)


def _plain_scalar(text: str, like: yaml.Node) -> yaml.ScalarNode:
    return yaml.ScalarNode(_tag(text), text, like.start_mark, like.end_mark)


def _tag(text: str) -> str:
    return next((tag for tag, pattern, _ in _RESOLVERS if pattern.match(text)), "tag:yaml.org,2002:str")


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Return the number that a text is; a leading 0 means nothing."""
    text = node.value.replace("_", "")
    if not _INT.match(node.value):
        raise yaml.constructor.ConstructorError(None, None, f"'{node.value}' is not a whole number", node.start_mark)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_RESOLVERS = (
    ("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", _BOOL, list("tTfF")),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
)
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_name, _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what any reader, of YAML 1.1 or 1.2, takes for something else than a text."""


_Dumper.yaml_implicit_resolvers = {
    first: [*resolvers, *_Loader.yaml_implicit_resolvers.get(first, ())]
    for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def _refuse(loader: _Loader, node: yaml.Node) -> None:
    """Refuse text that hides what it says."""
    raise yaml.constructor.ConstructorError(None, None, "binary values (!!binary) are not allowed", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:binary", _refuse)


def dump_yaml(values: Any) -> str:
    """Return plain values as YAML that :func:`parse_yaml` reads as the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def parse_yaml(text: str) -> Any:
    """Return the plain values that a YAML text holds; raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> Any:
    """Return the plain values of a YAML file.

    Raises:
        ConfigError: The file cannot be read, is no text, is larger than 1 MB, or is no YAML; names the line.
    """
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"'{path}' has {len(data)} bytes; an experiment has at most {_MAX_BYTES}.")
        return parse_yaml(data.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}' is not a text in UTF-8.") from None
    except RecursionError:
        raise ConfigError(f"'{path}' is nested too deeply for an experiment.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"'{path}'{where}: {getattr(error, 'problem', None) or 'no valid YAML'}.") from None
    except ValueError as error:
        raise ConfigError(f"'{path}': {error}.") from None
