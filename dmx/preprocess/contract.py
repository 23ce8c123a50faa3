"""The contract between scans and network: everything that decides what the network sees."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dmx.cohort.case import Case
from dmx.cohort.label_values import class_index, named_values
from dmx.cohort.labels import pair_classes
from dmx.cohort.regions import Regions, checked_regions
from dmx.cohort.volume import orientation, read_grid
from dmx.config.sections import CohortSection, NormalizeSection, PreprocessSection
from dmx.errors import CheckpointError, CohortError, ConfigError, suggest
from dmx.geometry import Triple, triple
from dmx.preprocess.orient import axes_and_flips

Spacing = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Everything that decides what the network sees; kept in checkpoints, so that new scans go the same way.

    Attributes:
        channels: Channels in the network's order.
        classes: Names of the classes, in segmentation background first; of a regression the targets.
        labels: Label in the file: class index.
        labels_complete: No other label is allowed; otherwise others stay as they are.
        label_values: Value that predictions have for each class, that of the label maps learned from; empty: the class
            indices.
        labels: Label in the file: class index; others stay as they are.
        regions: Regions of class indices, one output of the network for each; without members the classes exclude each
            other.
        ignore: Label in the file of voxels that nobody annotated; ``None``: there are none.
        fill: Channel: value after normalization that stands for it in cases that lack it.
        preprocess: The settings.
        spacing: Voxel size in mm that scans are resampled to, in the axes of ``preprocess.orientation``; ``None``: each
            case keeps its own.
        pad_before: Voxels of reflection before each axis, added before normalization (compatibility mode).
        pad_after: The same after each axis.
        compatibility: ``deepmedic`` measures normalization in the whole image where a case has no roi.
        roi: Whether every case that was learned from has a roi; ``None``: it is not known.
    """

    channels: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Mapping[int, int] = field(default_factory=dict)
    labels_complete: bool = False
    label_values: tuple[int, ...] = ()
    regions: Regions = field(default_factory=Regions)
    ignore: int | None = None
    fill: Mapping[str, float] = field(default_factory=dict)
    preprocess: PreprocessSection = field(default_factory=PreprocessSection)
    spacing: Spacing | None = None
    pad_before: Triple = (0, 0, 0)
    pad_after: Triple = (0, 0, 0)
    compatibility: Literal["none", "deepmedic"] = "none"
    roi: bool | None = None

    def __post_init__(self) -> None:
        normalize = self.preprocess.normalize
        named = (("fill", self.fill), ("normalize.channels", normalize.channels), ("normalize.fixed", normalize.fixed))
        for what, names in named:
            for name in names:
                if name not in self.channels:
                    raise ConfigError(
                        f"{what} names the channel '{name}', the network gets {list(self.channels)}."
                        f"{suggest(name, self.channels)}"
                    )

    @property
    def spatial_dims(self) -> int:
        """Return how many axes of space the inputs have: 3, volumes."""
        return 3

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the network's outputs stand for, in their order."""
        return (*self.regions.members,) if self.regions else self.classes

    @property
    def scored(self) -> Mapping[str, tuple[int, ...]]:
        """What a label map is scored for: name → class indices, of each region or of each class but the background."""
        return self.regions.members or {name: (index,) for index, name in enumerate(self.classes) if index}

    def class_of(self, label: int) -> int | None:
        """Return the class index of a label in the file; ``None``: it is no class."""
        index = self.labels.get(label, None if self.labels_complete else label)
        return index if index is not None and 0 <= index < len(self.classes) else None

    @property
    def written_values(self) -> tuple[int, ...]:
        """Value that predictions have for each class."""
        return self.label_values or tuple(range(len(self.classes)))

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = asdict(self)
        values["labels"] = {str(label): index for label, index in sorted(self.labels.items())}
        # Without regions and ignored voxels a contract is what it was before there were any, its key included.
        regions = self.regions.as_dict() if self.regions else None
        for name, value in (("regions", regions), ("ignore", self.ignore), ("roi", self.roi)):
            values[name] = value
            if value is None:
                del values[name]
        return _plain(values)  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Contract":
        """Return the contract that :meth:`as_dict` described.

        Raises:
            CheckpointError: A value is missing, unknown or of the wrong kind.
        """
        _known(values, cls)
        try:
            return cls(
                channels=tuple(values["channels"]),
                classes=tuple(values["classes"]),
                labels={int(label): int(index) for label, index in values["labels"].items()},
                labels_complete=bool(values.get("labels_complete", False)),
                label_values=tuple(int(value) for value in values.get("label_values", ())),
                regions=Regions.from_dict(values["regions"]) if values.get("regions") else Regions(),
                ignore=None if values.get("ignore") is None else int(values["ignore"]),
                fill={name: float(value) for name, value in values["fill"].items()},
                preprocess=_preprocess(values["preprocess"]),
                spacing=None if values["spacing"] is None else _spacing(values["spacing"]),
                pad_before=triple(values["pad_before"]),
                pad_after=triple(values["pad_after"]),
                compatibility=values["compatibility"],
                roi=None if values.get("roi") is None else bool(values["roi"]),
            )
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise CheckpointError(f"the preprocessing contract cannot be read: {error!r}.") from error

    def key(self) -> str:
        """Return a hash of everything in it that decides what the network sees, 32 hexadecimal digits."""
        values = self.as_dict()
        # Cases that were prepared before there were these are found again.
        del values["label_values"]
        values.pop("roi", None)
        if not self.labels_complete:
            del values["labels_complete"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def _known(values: Mapping[str, Any], section: type) -> None:
    allowed = [entry.name for entry in fields(section)]
    unknown = [name for name in values if name not in allowed]
    if unknown:
        raise CheckpointError(
            f"the preprocessing contract has the unknown key '{unknown[0]}', allowed are {allowed}. A newer version of "
            "dmx may have written it."
        )


def _spacing(values: Sequence[float]) -> Spacing:
    x, y, z = values
    return (float(x), float(y), float(z))


def _preprocess(values: Mapping[str, Any]) -> PreprocessSection:
    _known(values, PreprocessSection)
    _known(values["normalize"], NormalizeSection)
    normalize: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values["normalize"].items()
    }
    normalize["fixed"] = {name: tuple(numbers) for name, numbers in normalize.get("fixed", {}).items()}
    spacing = values["spacing"]
    return PreprocessSection(
        **{
            **values,
            "spacing": spacing if isinstance(spacing, str) else _spacing(spacing),
            "normalize": NormalizeSection(**normalize),
        }
    )


def resolve_contract(  # noqa: PLR0913 - what a cohort says, each by its name
    section: CohortSection,
    preprocess: PreprocessSection,
    *,
    cases: Sequence[Case],
    channels: Sequence[str],
    classes: Sequence[str],
    label_values: Mapping[int, int] | None = None,
    compatibility: Literal["none", "deepmedic"] = "none",
) -> Contract:
    """Return the contract of an experiment, without padding; ``median`` becomes a voxel size.

    Args:
        section: The experiment's cohort section; its channels and classes win where it names any.
        preprocess: The experiment's preprocessing.
        cases: Training cases; only their headers are read, and only for the median.
        channels: Channels of the cohort.
        classes: Classes of the cohort.
        label_values: Value in its label maps: index of the class; without any the values are the indices.
        compatibility: As in the experiment.
    """
    chosen = tuple(section.channels) or tuple(channels)
    spacing = preprocess.spacing
    if spacing == "median":
        resolved: Spacing | None = median_spacing(cases, channels=chosen, orientation_=preprocess.orientation)
    else:
        resolved = None if isinstance(spacing, str) else spacing
    labels, complete = resolve_labels(section, classes, label_values or {})
    regions = section_regions(section, labels)
    return Contract(
        channels=chosen,
        classes=tuple(section.classes) or tuple(classes) or unnamed_classes(regions),
        labels=labels,
        labels_complete=complete,
        regions=regions,
        ignore=section.ignore,
        fill=dict(section.fill),
        preprocess=preprocess,
        spacing=resolved,
        compatibility=compatibility,
    )


def section_regions(section: CohortSection, labels: Mapping[int, int]) -> Regions:
    """Return the regions of class indices that an experiment names, whose labels are those of the files.

    Raises:
        CohortError: A region is empty, or the order does not name one label per region.
    """
    if not section.regions:
        return Regions()
    members = {name: (v,) if isinstance(v, int) else tuple(v) for name, v in section.regions.items()}
    return checked_regions(members, section.regions_class_order, "cohort.regions").mapped(labels)


def unnamed_classes(regions: Regions) -> tuple[str, ...]:
    """Return names of the labels that regions are made of, where nobody named them; empty without regions."""
    return ("background", *(f"label_{k}" for k in range(1, regions.highest + 1))) if regions else ()


def resolve_labels(
    section: CohortSection, classes: Sequence[str], label_values: Mapping[int, int]
) -> tuple[dict[int, int], bool]:
    """Return the class index of each value in label maps, and whether no other value is allowed.

    Classes that the experiment names are those of the cohort with the same name, whatever their order; where no name
    is the same they are new names, in the same order.

    Args:
        section: The experiment's cohort section.
        classes: Classes of the cohort.
        label_values: Value in its label maps: index of the class; empty: the values are the indices.

    Raises:
        CohortError: A class is named that there is not.
    """
    names = tuple(section.classes) or tuple(classes)
    base, complete = dict(label_values), bool(label_values)
    if section.classes and classes and tuple(section.classes) != tuple(classes):
        pairing = pair_classes(classes, names)
        own = label_values or {k: k for k in range(len(classes))}
        paired = {value: k for value, index in own.items() if (k := pairing.index[index]) is not None}
        if label_values or (pairing.by != "position" and any(value for value in paired)):
            base, complete = paired, True
    if any(isinstance(name, str) for name in section.labels.values()):
        stated = {value: class_index(name, names, "cohort.labels") for value, name in section.labels.items()}
        own = base if complete else {k: k for k in range(len(names))}
        return named_values(own, stated), True
    return base | {value: int(index) for value, index in section.labels.items()}, complete


def with_written_values(contract: Contract, found: Iterable[int]) -> Contract:
    """Return the contract of a training with the values that its predictions have.

    Args:
        contract: The contract.
        found: Values that the label maps hold. Of several values of one class the lowest is written.
    """
    written: dict[int, int] = {}
    for values in (found, contract.labels if contract.labels_complete else ()):
        for value in sorted(values, key=lambda v: (v < 0, v)):
            index = None if value == contract.ignore else contract.class_of(value)
            if index is not None and (index in written or value not in written.values()):
                written.setdefault(index, value)
    count = len(contract.classes)
    for index in range(count):
        if index not in written:
            # No label map has this class: its own index, unless that is the value of another class.
            free = index not in written.values()
            written[index] = index if free else 1 + max(*written.values(), count)
    values = tuple(written[index] for index in range(count))
    return replace(contract, label_values=() if values == tuple(range(count)) else values)


def median_spacing(cases: Sequence[Case], *, channels: Sequence[str], orientation_: str = "RAS") -> Spacing:
    """Return the median voxel size in mm per axis, from the header of each case's first channel.

    Raises:
        CohortError: There is no case.
    """
    if not cases:
        raise CohortError("The median voxel size needs a training case, got none.")
    sizes = []
    for case in cases:
        grid = read_grid(first_channel(case, channels))
        axes, _ = axes_and_flips(orientation(grid.affine), orientation_)
        sizes.append([grid.spacing[axis] for axis in axes])
    # Rounded: header sizes are float32, and a median that differs in the ninth digit would prepare all cases anew.
    x, y, z = np.median(np.array(sizes), axis=0).round(5).tolist()
    return (x, y, z)


def first_channel(case: Case, channels: Sequence[str]) -> Path:
    """Return the file of the first channel that the case has, which stands for the case's grid.

    Raises:
        CohortError: The case has none of the channels.
    """
    for name in channels:
        path = case.channels.get(name)
        if path is not None:
            return path
    raise CohortError(f"case '{case.name}' must have at least one of the channels {list(channels)}, it has none.")
