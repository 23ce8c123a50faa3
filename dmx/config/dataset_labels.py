"""The labels of nnU-Net's ``dataset.json``: classes, regions of several labels, and the label ``ignore``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DatasetLabels:
    """What ``labels`` and ``regions_class_order`` say.

    Attributes:
        classes: Class → label; empty where there are regions.
        regions: Region → its labels, without the background; empty where the classes exclude each other.
        order: Label that stands for each region in a label map.
        ignore: Label of voxels that nobody annotated; None without one.
    """

    classes: Mapping[str, int] = field(default_factory=dict)
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    ignore: int | None = None


def read_dataset_labels(labels: Mapping[str, Any], order: Any) -> DatasetLabels:
    """Read labels by name, as nnU-Net v2 does: a list of several labels anywhere makes all of them regions.

    Args:
        labels: ``labels``, such as ``{"background": 0, "whole tumor": [1, 2, 3], "ignore": 4}``.
        order: ``regions_class_order``; None where the file has none.

    Raises:
        ValueError: A label is no whole number.
    """
    members = {str(name): _integers(str(name), value) for name, value in labels.items()}
    ignored = members.pop("ignore", None)
    if ignored is not None and len(ignored) != 1:
        raise ValueError(f"label 'ignore' must be one whole number, got {labels['ignore']!r}")
    ignore = None if ignored is None else ignored[0]
    if all(len(one) == 1 for one in members.values()):
        return DatasetLabels(classes={name: one[0] for name, one in members.items()}, ignore=ignore)
    regions = {name: one for name, one in members.items() if set(one) != {0}}
    return DatasetLabels(regions=regions, order=_integers("regions_class_order", order or []), ignore=ignore)


def _integers(name: str, value: object) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, bool) or not isinstance(one, int) for one in values):
        raise ValueError(f"'{name}' must be a whole number, or a list of them, got {value!r}")
    return tuple(values)
