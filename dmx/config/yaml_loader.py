"""YAML as people mean it: no duplicate keys, no objects, ``off`` is a word and ``1e-3`` a number."""

import re
from pathlib import Path
from typing import Any

import yaml

from dmx.errors import ConfigError

MAX_DEPTH = 50
"""Mappings and lists inside of each other."""
_MAX_BYTES = 1_000_000
# Digits may be matched in one way only: with two, a long row of them takes the square of its length.
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
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


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _refuse(loader: _Loader, node: yaml.Node) -> None:
    """Refuse text that hides what it says."""
    raise yaml.constructor.ConstructorError(None, None, "binary values (!!binary) are not allowed", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:binary", _refuse)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


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
