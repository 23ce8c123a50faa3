"""Channels, classes and preprocessing of nnU-Net v2, in our terms."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from dmx.config.data import NormalizeSection, PreprocessSection
from dmx.config.dataset_labels import DatasetLabels, read_dataset_labels
from dmx.errors import ModelError

_ORIENTATIONS: Mapping[str, Literal["RAS", "native"]] = {
    "SimpleITKIO": "native",
    "NibabelIO": "native",
    "NibabelIOWithReorient": "RAS",
    "SimpleITKIOWithReorient": "RAS",
}
_RGB = (0.0, 255.0, 0.0, 255.0)
_METHODS: Mapping[str, Literal["zscore", "range", "none"]] = {
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "range",
    "NoNormalization": "none",
}
_NUMBERS = ("percentile_00_5", "percentile_99_5", "mean", "std")


def channel_names(dataset: Mapping[str, Any], chosen: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the channels in order, each name once, and what is to be said about them.

    Args:
        dataset: Content of ``dataset.json``.
        chosen: Names that the user gives them; empty: those of the dataset.

    Raises:
        ModelError: The dataset does not list its channels, or another number is chosen.
    """
    known = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(known, Mapping) or not all(str(key).isdigit() for key in known):
        raise ModelError("dataset.json must list channel_names by number, as {'0': 'T1', '1': 'FLAIR'}.")
    names = tuple(str(known[key]) for key in sorted(known, key=int))
    if chosen:
        return _chosen(chosen, names, "channels"), []
    if len(set(names)) == len(names):
        return names, []
    unique = tuple(f"{name}_{index}" for index, name in enumerate(names))
    return unique, [
        f"Channels of dataset.json share a name ({', '.join(names)}); here they are {', '.join(unique)}. Use "
        "--channels for other names."
    ]


def label_names(dataset: Mapping[str, Any], chosen: Sequence[str]) -> DatasetLabels:
    """Return the classes by label, background first, or the regions, each with a sigmoid output of its own.

    Args:
        dataset: Content of ``dataset.json``.
        chosen: Names that the user gives the classes or regions; empty: those of the dataset.

    Raises:
        ModelError: The labels do not count from 0, or another number is chosen.
    """
    known = dataset.get("labels")
    if not isinstance(known, Mapping):
        raise ModelError("dataset.json must list labels by name, as {'background': 0, 'lesion': 1}.")
    try:
        labels = read_dataset_labels(known, dataset.get("regions_class_order"))
    except ValueError as error:
        raise ModelError(f"Labels of dataset.json cannot be used: {error}.") from None
    if labels.regions:
        if len(labels.order) != len(labels.regions):
            raise ModelError(
                f"dataset.json has {len(labels.regions)} regions ({', '.join(labels.regions)}): regions_class_order "
                f"must name one label for each, got {[*labels.order]}."
            )
        names = _chosen(chosen, [*labels.regions], "regions") if chosen else (*labels.regions,)
        return replace(labels, regions=dict(zip(names, labels.regions.values(), strict=True)))
    names = tuple(sorted(labels.classes, key=lambda name: labels.classes[name]))
    if [labels.classes[name] for name in names] != list(range(len(names))):
        raise ModelError(f"Labels of dataset.json must count from 0 without gaps, got {dict(labels.classes)}.")
    names = _chosen(chosen, names, "classes") if chosen else names
    return replace(labels, classes={name: index for index, name in enumerate(names)})


def _chosen(chosen: Sequence[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    if len(chosen) != len(known):
        raise ModelError(
            f"The network has {len(known)} {what} ({', '.join(known)}): name as many, got {len(chosen)} "
            f"({', '.join(chosen)})."
        )
    if len(set(chosen)) < len(chosen):
        raise ModelError(f"Two {what} have the same name: {', '.join(chosen)}.")
    return tuple(chosen)


def read_preprocessing(
    plans: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    channels: Sequence[str],
    spacing: tuple[float, float, float],
) -> tuple[PreprocessSection, list[str]]:
    """Return what nnU-Net does to scans before the network sees them, and what is to be said about it.

    Args:
        plans: Content of ``plans.json``.
        settings: The configuration.
        channels: Names of the channels in order.
        spacing: Voxel size in axes (i, j, k).

    Raises:
        ModelError: A normalization has no counterpart here.
    """
    reader = str(plans.get("image_reader_writer", "SimpleITKIO"))
    orientation = _ORIENTATIONS.get(reader, "native")
    notes = []
    if reader not in _ORIENTATIONS:
        notes.append(
            f"nnU-Net read the scans with {reader}, which dmx does not know: axes are taken as they are in the file. "
            "Check a prediction before you use it."
        )
    elif orientation == "native":
        notes.append(
            "Axes stay as they are in the file, as in nnU-Net: give scans that are stored as those of the training "
            "were, or mirrored along axes that the training mirrored."
        )
    section = PreprocessSection(
        orientation=orientation,
        spacing=spacing,
        crop_to_roi=True,
        crop_margin=0,
        foreground="nonzero",
        normalize=_normalization(plans, settings, channels),
    )
    return section, notes


def _normalization(plans: Mapping[str, Any], settings: Mapping[str, Any], channels: Sequence[str]) -> NormalizeSection:
    schemes = _list(settings, "normalization_schemes", channels)
    masked = _list(settings, "use_mask_for_norm", channels)
    fixed = {
        name: _RGB if scheme == "RGBTo01Normalization" else _fixed(plans, index)
        for index, (name, scheme) in enumerate(zip(channels, schemes, strict=True))
        if scheme in ("CTNormalization", "RGBTo01Normalization")
    }
    # Per method the channels that it acts on; `none` acts on those that are left.
    measured: dict[tuple[str, bool], list[str]] = {}
    for name, scheme, mask in zip(channels, schemes, masked, strict=True):
        if name in fixed:
            continue
        if scheme not in _METHODS:
            allowed = ("CTNormalization", "RGBTo01Normalization", *_METHODS)
            raise ModelError(
                f"Channel '{name}' was normalized by {scheme}; dmx has counterparts of {', '.join(allowed)}."
            )
        if scheme != "NoNormalization":
            measured.setdefault((scheme, bool(mask) and scheme == "ZScoreNormalization"), []).append(name)
    if len(measured) > 1:
        ways = "; ".join(f"{', '.join(names)}: {scheme}" for (scheme, _), names in measured.items())
        raise ModelError(f"Channels must be normalized in one way here, apart from CT, got {ways}.")
    if not measured:
        return NormalizeSection(method="none", fixed=fixed)
    ((scheme, mask), names) = next(iter(measured.items()))
    return NormalizeSection(
        method=_METHODS[scheme],
        region="foreground" if mask else "image",
        outside="zero" if mask else "scaled",
        channels=() if len(names) == len(channels) else tuple(names),
        fixed=fixed,
    )


def _list(settings: Mapping[str, Any], key: str, channels: Sequence[str]) -> list[Any]:
    values = settings.get(key)
    if not isinstance(values, list | tuple) or len(values) != len(channels):
        raise ModelError(
            f"The plans must have {key} of {len(channels)} channels ({', '.join(channels)}), got {values}."
        )
    return list(values)


def _fixed(plans: Mapping[str, Any], index: int) -> tuple[float, float, float, float]:
    """Return the numbers of a CT channel: percentiles that it is clipped to, mean and deviation of the training."""
    known = plans.get(
        "foreground_intensity_properties_per_channel", plans.get("foreground_intensity_properties_by_modality", {})
    )
    try:
        low, high, mean, std = (float(known[str(index)][name]) for name in _NUMBERS)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"The plans lack intensities of channel {index}, which CTNormalization needs: {', '.join(_NUMBERS)}."
        ) from error
    return low, high, mean, std
