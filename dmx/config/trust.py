"""Which functions a network may be built with: opening somebody's run or experiment never executes code.

A section ``model`` may name a factory, ``package.module:function``. The name stands in experiments, in checkpoints and
in the configuration of each run, and all of them may come from anybody. So it is called only where the user has said
so: with ``--trust`` on this very command, in settings that are a mapping in Python, or in the environment.
"""

import os
import re
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from dmx.errors import ConfigError

VARIABLE = "DMX_TRUSTED_FACTORIES"
"""Environment variable with the names of trusted factories, separated by commas; ``*`` stands for any text."""

NEVER = (
    "Python's library, dmx, and packages that load files or run programs hold no networks, and nothing of them is "
    "called. Write a function of your own that returns the network, and name that one."
)
"""Why a name is refused whoever trusts it."""

PYTHON = "python:"
"""Begins the name of a network that was handed over as a module; nothing can be built from such a name."""

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

# Packages whose functions load files, fetch code or start programs, beside all of Python's own library.
_LOADERS = frozenset(
    (
        *("cloudpickle", "dill", "dmx", "fsspec", "huggingface_hub", "IPython", "joblib", "mlflow", "numpy", "pandas"),
        *("pip", "pkg_resources", "psutil", "pydantic", "pytest", "scipy", "setuptools", "sklearn", "typer", "yaml"),
    )
)
_TORCH_NETWORKS = ("torch.nn", "torchvision.models", "monai.networks")

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


def is_forbidden(module: str) -> bool:
    """Return whether nothing of a module is ever a factory: it runs programs, loads files, or fetches code.

    >>> [is_forbidden(name) for name in ("os", "torch.hub", "torch.nn.modules.conv", "networks.mine")]
    [True, True, False, False]
    """
    top = module.partition(".")[0]
    if top in ("torch", "torchvision", "monai"):
        return not any(f"{module}.".startswith(f"{home}.") for home in _TORCH_NETWORKS)
    return top in sys.stdlib_module_names or top in sys.builtin_module_names or top in _LOADERS


def check_consent(name: str) -> None:
    """Check what is given to ``--trust``.

    Raises:
        ConfigError: It is no name of a factory, or of one that is never called.
    """
    if not _FACTORY.fullmatch(name):
        raise ConfigError(f"--trust takes package.module:function, as the experiment names it, got '{name[:200]}'.")
    if is_forbidden(name.partition(":")[0]):
        raise ConfigError(f"--trust {name}: {NEVER}")


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
    """Return whether the user has named a factory, on the command line or in the environment."""
    patterns = (pattern.strip() for pattern in os.environ.get(VARIABLE, "").split(","))
    return name in _named or any(fnmatchcase(name, pattern) for pattern in patterns)
