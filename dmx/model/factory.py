"""Networks of the user's own: built by a function that an experiment names, ``package.module:function``."""

import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dmx.config.model import ModelSection
from dmx.config.trust import NEVER, PYTHON, VARIABLE, is_forbidden, is_trusted
from dmx.errors import CheckpointError, ModelError, suggest
from dmx.model.meta import sized_by
from dmx.model.module import ModuleNetwork, first_sentence, missing_package
from dmx.model.weights import drawn_from

# The names under which a function or class takes the number of classes, and the values that are filled in for the user.
_OUT_NAMES = ("out_channels", "num_classes")
_FILLED = ("spatial_dims", "in_channels", *_OUT_NAMES)


def require_trusted(name: str) -> None:
    """Require that the user has named a factory; the one rule that keeps a run of somebody else's from executing code.

    Raises:
        CheckpointError: The factory stands in a run or checkpoint alone, or the network was made in Python.
    """
    if name.startswith(PYTHON):
        raise CheckpointError(
            f"The network is a module that was made in Python ({name.removeprefix(PYTHON)}), and nothing says how to "
            "build it. Build it and load the weights: dmx.load_model(run, into=model)."
        )
    if is_forbidden(name.partition(":")[0]):
        raise ModelError(f"model.name '{name}' is refused: {NEVER}")
    if not is_trusted(name):
        raise CheckpointError(
            f"The network is built by the function '{name}', which was not run: an experiment, a run or a checkpoint "
            f"names it, not you, and opening one executes no code. If you trust the function, give the command "
            f"--trust {name}, or set {VARIABLE}='{name}'."
        )


def build_factory(section: ModelSection, *, num_channels: int, num_classes: int, seed: int) -> ModuleNetwork:
    """Return the network of a factory; its weights depend on the seed alone, where it draws them with torch.

    Args:
        section: Its name is that of the factory; ``arguments`` are the factory's.
        num_channels: Channels of the scans; the factory gets them as ``in_channels``.
        num_classes: Classes; the factory gets them as ``out_channels`` or ``num_classes``.
        seed: Seed of the weights; the global random state stays as it is.

    Raises:
        CheckpointError: The user has not named the factory.
        ModelError: There is no such function, it does not take the arguments, or does not give a module.
    """
    module, by_class = make_module(section, num_channels=num_channels, num_classes=num_classes, seed=seed)
    return ModuleNetwork(
        module,
        section.name,
        num_channels=num_channels,
        num_classes=num_classes,
        head=section.head,
        by_class=by_class,
    )


def make_module(
    section: ModelSection, *, num_channels: int, num_classes: int, seed: int, spatial_dims: int = 3
) -> tuple[nn.Module, dict[str, tuple[int, ...]]]:
    """Return what a factory makes, as :func:`build_factory` describes it, and what of it follows the classes.

    For images ``spatial_dims`` is 2.
    """
    name = section.name
    require_trusted(name)
    with _importing_from(Path.cwd()):
        factory = _find(name)
        arguments = call_arguments(factory, section.arguments, num_channels=num_channels, num_classes=num_classes)
        if "spatial_dims" in arguments:
            arguments["spatial_dims"] = spatial_dims
        try:
            with drawn_from(seed, "factory"):
                module = factory(**arguments)
        except Exception as error:
            raise ModelError(f"'{name}' cannot build its network from model.arguments: {_told(error)}.") from error
        if not isinstance(module, nn.Module):
            raise ModelError(f"'{name}' must return a torch.nn.Module, got {type(module).__name__}.")
        out = next(key for key in _OUT_NAMES if key in arguments)
        return module, sized_by(module, lambda count: factory(**{**arguments, out: count}), num_classes)


def out_name(parameters: Mapping[str, object]) -> str | None:
    """Return the name under which the number of classes is taken."""
    return next((name for name in _OUT_NAMES if name in parameters), None)


def call_arguments(
    factory: Callable[..., object], given: Mapping[str, Any], *, num_channels: int, num_classes: int
) -> dict[str, Any]:
    """Return the arguments of a function or class: the given ones, checked, and those that are filled in.

    Raises:
        ModelError: An argument is unknown, missing, or follows from the cohort.
    """
    name = getattr(factory, "__name__", type(factory).__name__)
    parameters = inspect.signature(factory).parameters
    anything = any(value.kind is inspect.Parameter.VAR_KEYWORD for value in parameters.values())
    _require_sizes(parameters, name, anything=anything)
    filled = {"in_channels": num_channels, out_name(parameters) or _OUT_NAMES[0]: num_classes}
    if "spatial_dims" in parameters:
        filled["spatial_dims"] = 3
    for key in given:
        if key in _FILLED:
            raise ModelError(f"model.arguments must not hold '{key}', which follows from the cohort. Leave it out.")
        if key not in parameters and not anything:
            allowed = [other for other in parameters if other not in _FILLED]
            raise ModelError(
                f"model.arguments holds '{key}', which {name} does not take.{suggest(key, allowed)} "
                f"It takes: {', '.join(allowed) or 'none'}."
            )
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [
        key
        for key, value in parameters.items()
        if value.kind in named and value.default is inspect.Parameter.empty and key not in {**filled, **given}
    ]
    if missing:
        raise ModelError(f"model.arguments lacks {', '.join(missing)}, which {name} needs.")
    return {**given, **filled}


def _require_sizes(parameters: Mapping[str, inspect.Parameter], name: str, *, anything: bool) -> None:
    """Require that channels and classes can be given."""
    if not anything and ("in_channels" not in parameters or out_name(parameters) is None):
        raise ModelError(
            f"{name} must take in_channels and out_channels (or num_classes), which follow from the cohort, got "
            f"({', '.join(parameters)})."
        )


def _find(name: str) -> Callable[..., object]:
    """Import a factory."""
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise _no_module(name, error.name) from error
        raise missing_package(name, error, advice="Install it.") from error
    except Exception as error:
        raise ModelError(f"model.name '{name}': importing '{module_name}' failed: {_told(error)}.") from error
    known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if function not in vars(module):
        raise ModelError(
            f"model.name '{name}': '{module_name}' has no '{function}'.{suggest(function, known)} "
            f"It has: {', '.join(known) or 'no functions'}."
        )
    factory = getattr(module, function)
    if not callable(factory):
        raise ModelError(f"model.name '{name}' must name a function or class, got {type(factory).__name__}.")
    _require_own(name, factory)
    return factory  # type: ignore[no-any-return]


def _require_own(name: str, factory: object) -> None:
    """Require that a function comes from where its name says, or from another place that may hold networks."""
    bound: object = factory
    while isinstance(bound, functools.partial):
        bound = bound.func
    # A built-in function belongs to its module, a method to its class.
    owner = getattr(bound, "__self__", None)
    parts = [bound, inspect.unwrap(bound) if callable(bound) else bound]
    parts += [] if owner is None else [owner if isinstance(owner, type | ModuleType) else type(owner)]
    for part in parts:
        home = part.__name__ if isinstance(part, ModuleType) else getattr(part, "__module__", None)
        if isinstance(home, str) and is_forbidden(home):
            raise ModelError(f"model.name '{name}' is of '{home}' in truth. {NEVER}")


def _no_module(name: str, missing: str) -> ModelError:
    """Return the error for a module that is not there, with what lies where it was looked for."""
    *parents, last = missing.split(".")
    folder = Path.cwd().joinpath(*parents)
    found = [place.stem for place in sorted(folder.glob("*")) if place.is_dir() or place.suffix == ".py"]
    return ModelError(
        f"model.name '{name}': there is no module '{missing}' in '{Path.cwd()}' or among the installed packages."
        f"{suggest(last, found)} Run the command in the folder from which the module is named."
    )


def _told(error: Exception) -> str:
    """Return what an error in the user's code says, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_sentence(error)}{place}"


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Import from a folder too; a module in it that is called like a library does not take the library's place."""
    before = list(sys.path)
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
