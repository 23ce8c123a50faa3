"""What a cohort is: cases, each with the files of one imaging session. Plain values, no files are opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dmx.cohort.regions import Regions

SPLITS = ("training", "validation", "evaluation", "")


@dataclass(frozen=True)
class Case:
    """One imaging session to segment or to classify.

    Attributes:
        name: Unique in its cohort; predictions are named after it.
        subject: The person; cases of one subject never lie in two splits.
        channels: File of each channel; ``None`` where the case lacks it.
        label_map: Integer ground truth, if there is one.
        roi: Binary region in which sampling, normalization and scoring happen, if there is one.
        weight_maps: Sampling weights by name (columns ``weight_<name>``).
        split: ``training``, ``validation``, ``evaluation`` or empty.
        label: What the whole case is, an index of the cohort's ``label_classes`` or, without these, the manifest's
            integer; ``None`` where nobody said it.
        targets: Numbers to predict from the whole case, by name (columns ``target_<name>``).
    """

    name: str
    subject: str
    channels: Mapping[str, Path | None]
    label_map: Path | None = None
    roi: Path | None = None
    weight_maps: Mapping[str, Path] = field(default_factory=dict)
    split: str = ""
    label: int | None = None
    targets: Mapping[str, float] = field(default_factory=dict)

    def unmapped(self) -> "Case":
        """Return the case without its label map and weight maps, for work on the scans alone."""
        return replace(self, label_map=None, weight_maps={})

    def files(self) -> dict[str, Path]:
        """Return the files that the case has, by manifest column, in the manifest's order."""
        named = {f"channel_{name}": path for name, path in self.channels.items()}
        named |= {"label_map": self.label_map, "roi": self.roi}
        named |= {f"weight_{name}": path for name, path in self.weight_maps.items()}
        return {column: path for column, path in named.items() if path is not None}


@dataclass(frozen=True)
class Cohort:
    """A study's cases.

    Attributes:
        name: Name of the study.
        classes: Names of the classes, background first; empty where nobody named them.
        channels: Names of the channels, in the manifest's order.
        cases: The cases, in the manifest's order.
        manifest: File that the cohort was read from, if any.
        label_classes: Names of what whole cases are (column ``label``); empty where labels are bare integers or absent.
        regions: Regions of the labels in the label maps, which may overlap; without members there are none.
        ignore: Label of voxels in the label maps that nobody annotated; ``None`` where all are.
        label_values: Value in the label maps: index of its class; no other value is allowed then. Empty: the values are
            the indices.
    """

    name: str
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    cases: tuple[Case, ...]
    manifest: Path | None = None
    label_classes: tuple[str, ...] = ()
    regions: Regions = field(default_factory=Regions)
    ignore: int | None = None
    label_values: Mapping[int, int] = field(default_factory=dict)

    @property
    def num_labels(self) -> int | None:
        """How many labels there are, the background included; ``None`` where nobody said."""
        return len(self.classes) or (self.regions.highest + 1 if self.regions else None)

    def in_split(self, split: str) -> tuple[Case, ...]:
        """Return the cases of a split, in the manifest's order."""
        return tuple(case for case in self.cases if case.split == split)

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects, each once, in the order of their first case."""
        return tuple(dict.fromkeys(case.subject for case in self.cases))

    def with_splits(self, split_of: Mapping[str, str]) -> "Cohort":
        """Return the cohort with the split that each subject gets."""
        return replace(self, cases=tuple(replace(case, split=split_of[case.subject]) for case in self.cases))
