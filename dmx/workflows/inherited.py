"""Settings that a training takes from the run whose network it begins with: all that its experiment does not give."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dmx.config.load import as_dict, config_diff
from dmx.preprocess.contract import Contract
from dmx.preprocess.image_contract import ImageContract
from dmx.workflows.checked import AnyContract
from dmx.workflows.trained import TrainedNetwork

_OF_THE_RUN: Final = (
    "name",
    "description",
    "recipe",
    "cohort",
    "stimuli",
    "tracking",
    "transfer",
    "training.device",
    "training.threads",
    "training.processes",
    "sampling.workers",
    "sampling.memory_gb",
)
"""What the run was called, what it read, where it ran."""

_OF_ITS_START: Final = (
    "freeze",
    "optimizer.lr_scale",
    "regularization.l2_to_source",
    "schedule.warmup",
    "schedule.begin_epoch",
    "schedule.span_epochs",
)
"""How the run began: what it kept of its own source, and how its schedule was moved when it was extended."""

_OF_THE_NETWORK: Final = ("compatibility", "model", "preprocess", "image_preprocess")
"""What the network is and what it sees; everything else is the recipe."""

_CHOICES: Final = {
    "model": "name",
    "model.normalization": "name",
    "model.weight_init": "name",
    "optimizer": "name",
    "schedule": "name",
    "preprocess.normalize": "method",
}
"""Sections whose other settings mean something else when this one changes."""

_PATHWAYS: Final = ("model.normal", "model.fc")
_TOLD: Final = ("cohort", "stimuli")
_UNTOLD: Final = tuple(f"{key}." for key in _OF_THE_RUN if key not in _TOLD)
_WIDTH: Final = 80
_LONGEST_KEY: Final = 30


def inherited(
    trained: TrainedNetwork, given: Mapping[str, Any], *, recipe: bool, start: bool = False
) -> dict[str, Any]:
    """Return the settings of a training: those that are given, all others as the source has them.

    Sections are merged at any depth. A setting that is given as null counts as given. Where another optimizer,
    schedule, network or the like is chosen, the rest of that section belonged to the source's choice and is left to the
    defaults.

    Args:
        trained: The source.
        given: What the experiment says, unchecked.
        recipe: Whether everything is inherited, or only what the network is and sees.
        start: Whether freezing, warm-up and the factors of the learning rate are inherited too: for the training of a
            transferred network, which is what its run was made for.
    """
    known = resolved(as_dict(trained.experiment), trained.contract)
    for path in (*_OF_THE_RUN, *(() if start else _OF_ITS_START)):
        _drop(known, path.split("."))
    used = _network_sections(trained.contract, {"task": trained.task, **given})
    known = {key: value for key, value in known.items() if key in used or (recipe and key not in _OF_THE_NETWORK)}
    return {"task": trained.task, **_merged(known, given)}


def transferred(trained: TrainedNetwork, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a transfer: network and preprocessing come from the source where they are not given.

    Where the experiment leaves the network to the source, the size of segments and the prediction of whole volumes,
    which belong to a network, come along.
    """
    known = resolved(as_dict(trained.experiment), trained.contract)
    kept = {key: known[key] for key in _network_sections(trained.contract, given)}
    if trained.task == given.get("task", "segmentation") == "segmentation" and not given.get("model"):
        kept |= {"prediction": known["prediction"], "sampling": {"segment": known["sampling"]["segment"]}}
    return _merged(kept, given)


def _network_sections(contract: AnyContract, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sections that say what the source's network is and sees, as far as the new task uses them."""
    of_images = bool(given.get("stimuli"))
    if isinstance(contract, ImageContract):
        return ("model", "image_preprocess") if of_images else ("model",)
    if of_images:
        return ("model",)
    segments = given.get("task", "segmentation") == "segmentation"
    return ("model", "preprocess", "compatibility") if segments else ("model", "preprocess")


def resolved(settings: Mapping[str, Any], contract: AnyContract) -> dict[str, Any]:
    """Return settings in which preprocessing says what it came to: the voxel size instead of ``median``."""
    if isinstance(contract, Contract):
        spacing = list(contract.spacing) if contract.spacing else "off"
        return {**settings, "preprocess": {**settings["preprocess"], "spacing": spacing}}
    exact = contract.rule == "exact"
    return {
        **settings,
        "image_preprocess": {
            "resize": list(contract.resize) if exact else contract.resize[0],
            "crop": list(contract.crop),
            "interpolation": contract.interpolation,
            "mean": list(contract.mean),
            "std": list(contract.std),
            "color": contract.color,
        },
    }


def _drop(values: dict[str, Any], path: Sequence[str]) -> None:
    first, *rest = path
    if not rest:
        values.pop(first, None)
    elif isinstance(values.get(first), dict):
        values[first] = dict(values[first])
        _drop(values[first], rest)


def _merged(known: Mapping[str, Any], given: Mapping[Any, Any], path: str = "") -> dict[Any, Any]:
    """Return what is given over what is known, at any depth; a list counts as one value."""
    choice = _CHOICES.get(path)
    if choice is not None and choice in given and given[choice] != known.get(choice):
        return dict(given)
    if path in _PATHWAYS and _other_depth(known, given):
        # Lists with an entry per layer, and positions of layers, are those of the other depth.
        known = {key: value for key, value in known.items() if not isinstance(value, list)}
    merged = dict(known)
    for key, value in given.items():
        inner, here = merged.get(key), f"{path}.{key}".lstrip(".")
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            merged[key] = _merged(inner, value, here)
        elif isinstance(value, Mapping) and isinstance(inner, list) and _positions(value, len(inner)):
            merged[key] = [_at(entry, value.get(str(k)), here) for k, entry in enumerate(inner)]
        else:
            merged[key] = value
    return merged


def _other_depth(known: Mapping[str, Any], given: Mapping[Any, Any]) -> bool:
    widths = given.get("widths")
    return isinstance(widths, list) and len(widths) != len(known.get("widths") or ())


def _positions(value: Mapping[Any, Any], length: int) -> bool:
    """Return whether keys are positions of a list, as ``--set model.subsampled.0.factor=3`` gives them."""
    return bool(value) and all(isinstance(key, str) and key.isdecimal() and int(key) < length for key in value)


def _at(entry: Any, change: Any, path: str) -> Any:
    if change is None:
        return entry
    return _merged(entry, change, path) if isinstance(entry, Mapping) and isinstance(change, Mapping) else change


def differences(
    trained: TrainedNetwork, settings: Mapping[str, Any], contract: AnyContract
) -> dict[str, tuple[Any, Any]]:
    """Return what differs from the source's settings: setting → (there, here).

    Names, devices and the like, which change nothing of what is learned, are left out.

    Args:
        trained: The source.
        settings: The training's resolved settings.
        contract: What its network sees.
    """
    before = resolved(as_dict(trained.experiment), trained.contract)
    changed = config_diff(before, resolved(settings, contract))
    return {key: values for key, values in changed.items() if not f"{key}.".startswith(_UNTOLD)}


def difference_file(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, str]:
    """Return the artifact that keeps differences."""
    values = {key: {"source": before, "here": after} for key, (before, after) in changed.items()}
    return {"config_diff.json": json.dumps(values, indent=2)}


def difference_table(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return the lines of a table of differences, within 80 columns."""
    if not changed:
        return ["All settings are those of the source."]
    rows = [("setting", "source", "here"), *((key, _text(old), _text(new)) for key, (old, new) in changed.items())]
    first = min(_LONGEST_KEY, max(len(key) for key, _, _ in rows))
    room = _WIDTH - first - 4
    second = min(max(len(text) for _, text, _ in rows), max(room // 2, room - max(len(text) for _, _, text in rows)))
    widths = (first, second, room - second)
    return ["What differs from the source's settings:", *(line for row in rows for line in _lines(row, widths))]


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [textwrap.wrap(text, width) or [""] for text, width in zip(row, widths, strict=True)]
    height = max(len(cell) for cell in cells)
    padded = [[*cell, *[""] * (height - len(cell))] for cell in cells]
    return [
        "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


def _text(value: Any) -> str:
    """Return a value as an experiment writes it."""
    if isinstance(value, list):
        return f"[{', '.join(_text(entry) for entry in value)}]"
    if isinstance(value, dict):
        return "{}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
