"""Read, check, override and write experiments. YAML in, frozen dataclasses out, YAML back."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from dmx.config.files import with_absolute_files
from dmx.config.findings import MAX_SHOWN, sentences
from dmx.config.sections import Experiment
from dmx.config.tasks import with_task_defaults
from dmx.config.yaml_loader import MAX_DEPTH, dump_yaml, parse_yaml, read_yaml
from dmx.errors import ConfigError

_LARGEST_NUMBER = 10**18

Section = TypeVar("Section")


@cache
def _adapter() -> TypeAdapter[Experiment]:
    return TypeAdapter(Experiment)


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment and apply overrides such as ``training.epochs=5``.

    A relative manifest is taken from the experiment's folder, or else from the working directory. A resolved
    ``config.yaml`` of a run is accepted as well.

    Raises:
        ConfigError: The file cannot be read, or names every setting that cannot be used.
    """
    return build_experiment(read_given(path, overrides), source=str(path), folder=path.resolve().parent)


def read_given(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the plain values of an experiment that the user gives, with overrides applied, unchecked.

    Raises:
        ConfigError: The file cannot be read, or an override cannot be applied.
    """
    return apply_overrides(read_raw(path), overrides)


def tracking_uri(raw: Mapping[str, Any]) -> str | None:
    """Return the address of the run store that unchecked settings name."""
    tracking = raw.get("tracking")
    uri = tracking.get("uri") if isinstance(tracking, dict) else None
    return uri if isinstance(uri, str) else None


def read_raw(path: Path) -> dict[str, Any]:
    """Read the plain values of an experiment, unchecked.

    Raises:
        ConfigError: The file cannot be read or holds no settings.
    """
    if not path.is_file():
        raise ConfigError(f"Experiment '{path}' does not exist. Give the path of a YAML file.")
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"Experiment '{path}' must hold settings such as 'name: …', got {type(raw).__name__}.")
    return raw


def build_experiment(raw: Mapping[str, Any], *, source: str = "experiment", folder: Path | None = None) -> Experiment:
    """Check plain values and return the experiment.

    Args:
        raw: Nested settings as YAML gives them.
        source: What error sentences call it.
        folder: Folder from which a relative manifest is taken.

    Raises:
        ConfigError: Names every setting that cannot be used.
    """
    raw = with_task_defaults(with_absolute_files(raw, folder))
    _require_usable_numbers(raw, source)
    if "cohort" not in raw and not raw.get("stimuli"):
        images = "" if raw.get("task", "segmentation") == "segmentation" else ", or 'stimuli' for images"
        raise ConfigError(f"{source}: setting 'cohort' is missing{images}")
    try:
        return _adapter().validate_python(raw)
    except ValidationError as error:
        problems = "; ".join(sentences(error.errors(include_url=False)))
        raise ConfigError(f"{source}: {problems}") from None


def _require_usable_numbers(raw: Mapping[str, Any], source: str) -> None:
    """Raise ``ConfigError`` for what is no number that any setting could have."""
    for name, value in flatten(raw):
        for part in _leaves(value):
            if isinstance(part, float) and not math.isfinite(part):
                raise ConfigError(f"{source}: setting '{name}' must be a finite number, got {part}.")
            if isinstance(part, int) and abs(part) > _LARGEST_NUMBER:
                raise ConfigError(f"{source}: setting '{name}' must be a number of at most 18 digits.")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)
    else:
        yield value


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings with ``section.key=value`` words applied; values are YAML.

    Raises:
        ConfigError: A word is not of that form, or its path leads through something that is not a section.
    """
    values: dict[str, Any] = _copy(raw)
    for word in overrides:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set takes section.key=value, e.g. training.epochs=5, got '{word}'.")
        try:
            value = parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"--set {key}: the value must be YAML, e.g. 5 or [1, 2], got '{text}'.") from None
        path = key.split(".")
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"--set {key[:MAX_SHOWN]}…: no setting lies that deep.")
        _place(values, path, value, word)
    return values


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _place(values: Any, path: Sequence[str], value: object, word: str) -> None:
    *parents, last = path
    for part in parents:
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, dict):
            values = values.setdefault(part, {})
        if not isinstance(values, (dict, list)):
            raise ConfigError(f"--set {word}: '{part}' is a value, not a section.")
    if isinstance(values, list):
        if not last.isdigit() or int(last) >= len(values):
            raise ConfigError(f"--set {word}: '{last}' is no position of a list of {len(values)}.")
        values[int(last)] = value
    else:
        values[last] = value


def section_from_dict(section: type[Section], values: Mapping[str, Any], *, name: str | None = None) -> Section:
    """Return a section from plain values, such as a checkpoint keeps of it.

    Args:
        section: Its class.
        values: Its settings.
        name: What error sentences call it; ``None``: its class.

    Raises:
        ConfigError: The values are not those of such a section.
    """
    try:
        return TypeAdapter(section).validate_python(values)
    except ValidationError as error:
        problems = "; ".join(sentences(error.errors(include_url=False)))
        raise ConfigError(f"{name or section.__name__}: {problems}") from None


def as_dict(experiment: Experiment) -> dict[str, Any]:
    """Return the resolved settings as plain values, every default included."""
    values: dict[str, Any] = _adapter().dump_python(experiment, mode="json")
    return values


def as_yaml(experiment: Experiment) -> str:
    """Return the resolved settings as YAML that :func:`load_experiment` accepts again."""
    return dump_yaml(as_dict(experiment))


def as_changed_yaml(experiment: Experiment) -> str:
    """Return only the settings that differ from the defaults, as YAML."""
    named: dict[str, Any] = {"name": experiment.name}
    if experiment.task != "segmentation":
        named["task"] = experiment.task
    if experiment.stimuli is None:
        targets = {"targets": experiment.cohort.targets} if experiment.cohort.targets else {}
        named["cohort"] = {"manifest": experiment.cohort.manifest, **targets}
    else:
        targets = {"targets": experiment.stimuli.targets} if experiment.stimuli.targets else {}
        named["stimuli"] = {"source": experiment.stimuli.source, **targets}
    changed = _changed(as_dict(experiment), as_dict(build_experiment(named)))
    for key in named.keys() & {"cohort", "stimuli"}:
        named[key] = {**_copy(named[key]), **changed.pop(key, {})}
    return dump_yaml(named | changed)


def _changed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            if inner := _changed(value, default):
                result[key] = inner
        elif value != default:
            result[key] = value
    return result


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of an experiment, with a description for each setting, for editors."""
    schema: dict[str, Any] = _adapter().json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dmx experiment", **schema}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``("training.epochs", 5)`` for each setting; lists count as one value.

    >>> dict(flatten({"a": {"b": 1}, "c": [2]}))
    {'a.b': 1, 'c': [2]}
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def config_diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two resolved configurations: setting → (before, after), None for absent."""
    left, right = dict(flatten(before)), dict(flatten(after))
    return {
        key: (left.get(key), right.get(key))
        for key in [*left, *(right.keys() - left.keys())]
        if left.get(key) != right.get(key)
    }
