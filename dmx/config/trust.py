"""Which functions a network may be built with: opening somebody's run never executes code.

A section ``model`` may name a factory, ``package.module:function``. The name also stands in the checkpoints and the
configuration of each run, which may come from anybody. So it is called only where the user has said so: in an
experiment file given to this very command, or in the environment.
"""

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

VARIABLE = "DMX_TRUSTED_FACTORIES"
"""Environment variable with the names of trusted factories, separated by commas; ``*`` stands for any text."""

PYTHON = "python:"
"""Begins the name of a network that was handed over as a module; nothing can be built from such a name."""

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

# What this process has been given by its user.
_named: set[str] = set()


def is_factory(name: str) -> bool:
    """Return whether the name of a network is that of a factory."""
    return ":" in name and not name.startswith(PYTHON)


def check_name(name: str) -> None:
    """Check how the name of a network is written.

    Raises:
        ValueError: It is meant as a factory and is none.
    """
    if name.startswith(PYTHON):
        if not _MODULE.fullmatch(name.removeprefix(PYTHON)):
            raise ValueError(f"name must be '{PYTHON}package.module.Class' for a network made in Python, got '{name}'")
        return
    module, colon, _ = name.partition(":")
    meant = bool(colon) or any(sign in name for sign in "./\\")
    if meant and (not _FACTORY.fullmatch(name) or module.endswith(".py")):
        raise ValueError(
            f"name must be 'package.module:function' for a network of your own, with dots between folders and a colon "
            f"before the function, got '{name}'{_likely(name)}"
        )


def _likely(name: str) -> str:
    """Return what was probably meant."""
    head, colon, function = name.partition(":")
    dotted = re.sub(r"[/\\]+", ".", head.removesuffix(".py")).strip(".")
    if not colon:
        dotted, _, function = dotted.rpartition(".")
    guess = f"{dotted}:{function}"
    return f"; did you mean '{guess}'?" if _FACTORY.fullmatch(guess) else ""


def trust_factory(name: str) -> None:
    """Trust a factory from now on, in this process: the user has named it."""
    _named.add(name)


def trust_given(raw: Mapping[str, Any]) -> None:
    """Trust the factory that settings name, which must come from the user and not from a run."""
    model = raw.get("model")
    name = model.get("name") if isinstance(model, Mapping) else None
    if isinstance(name, str) and is_factory(name):
        trust_factory(name)


def is_trusted(name: str) -> bool:
    """Return whether the user has named a factory, in an experiment or in the environment."""
    patterns = (pattern.strip() for pattern in os.environ.get(VARIABLE, "").split(","))
    return name in _named or any(fnmatchcase(name, pattern) for pattern in patterns)
