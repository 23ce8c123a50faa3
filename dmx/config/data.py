"""The sections of the cohort, its preparation and the sampling of segments."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dmx.config.check import at_least, between, orientation, positive, size

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}

Triple = tuple[int, int, int]

_MOST_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class CohortSection:
    """Which cases, channels and classes the network learns from."""

    __pydantic_config__ = _STRICT

    manifest: str
    """Manifest (CSV) of the cohort, relative to the experiment file."""
    channels: tuple[str, ...] = ()
    """Channels in the order in which the network gets them; empty: all of the manifest, in its order."""
    classes: tuple[str, ...] = ()
    """Names of the classes, background first; empty: as the manifest says."""
    labels: Mapping[int, int | str] = field(default_factory=dict)
    """Value in the label maps: its class, by index or name. Merges or drops classes. With indices, values that are not
    listed stay as they are; with a name, other classes keep the values of the manifest, and no others are allowed."""
    regions: Mapping[str, int | tuple[int, ...]] | None = None
    """Region: the labels in the file that it consists of. Regions may overlap; the network gets one sigmoid output for
    each instead of a softmax over the classes (nnU-Net: lists in `labels`). Empty: as the manifest says; `{}`: none."""
    regions_class_order: tuple[int, ...] = ()
    """For each region the label that predicted label maps get where it is found; where regions overlap, the later one
    counts (nnU-Net: `regions_class_order`)."""
    ignore: int | None = None
    """Label in the file of voxels that nobody annotated: they are left out of sampling, losses and scores (nnU-Net:
    `ignore`). Empty: as the manifest says; `labels` turns it into a class again."""
    targets: tuple[str, ...] = ()
    """Columns `target_<name>` of the manifest, by name, that a regression learns."""
    fill: Mapping[str, float] = field(default_factory=dict)
    """Channel: value (after normalization) that stands for it in cases that lack it."""
    fold: int | None = None
    """Use this fold (from 0) of `folds` for validation instead of the manifest's split."""
    folds: int = 5
    """Number of folds by subject, when `fold` is given."""

    def __post_init__(self) -> None:
        at_least("folds", self.folds, 2)
        if self.ignore is not None and self.ignore in self.labels:
            raise ValueError(
                f"ignore must be no label that cohort.labels makes class {self.labels[self.ignore]}, got {self.ignore}"
            )
        if self.regions_class_order and not self.regions:
            raise ValueError("regions_class_order belongs to regions, which are not given beside it")
        if self.fold is not None:
            between("fold", self.fold, 0, self.folds - 1)


@dataclass(frozen=True, kw_only=True)
class NormalizeSection:
    """How intensities are made comparable, per case and channel."""

    __pydantic_config__ = _STRICT

    method: Literal["zscore", "range", "window", "none"] = "zscore"
    """Subtract mean and divide by standard deviation; map lowest and highest to 0 and 1; map a fixed window to 0..1; or
    leave as it is."""
    region: Literal["roi", "foreground", "image"] = "roi"
    """Where mean and deviation (`range`: lowest and highest) are measured; `roi` falls back to `foreground` for a case
    without one (to `image` in compatibility mode)."""
    channels: tuple[str, ...] = ()
    """Channels that are normalized; empty: all."""
    percentiles: tuple[float, float] | None = None
    """Measure only strictly between these percentiles of the region (DeepMedic: cutoff_percents)."""
    within_std: tuple[float, float] | None = None
    """Measure only within mean - a·std and mean + b·std of the region (DeepMedic: cutoff_times_std)."""
    above_mean: bool = False
    """Measure only above the mean of the whole image (DeepMedic: cutoff_below_mean)."""
    window: tuple[float, float] | None = None
    """Lower and upper intensity of `method: window`."""
    fixed: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    """Channel: lowest and highest intensity that it is clipped to, then mean and deviation, the same for all cases;
    such a channel is not normalized by `method` (nnU-Net: CTNormalization)."""
    outside: Literal["scaled", "zero"] = "scaled"
    """Voxels outside of the region after `method: zscore`: scaled like all others, or 0."""

    def __post_init__(self) -> None:
        for channel, (low, high, _, std) in self.fixed.items():
            if not low < high or not std > 0:
                raise ValueError(
                    f"fixed.{channel} must be a lowest and a higher intensity, a mean and a deviation above 0, got "
                    f"{list(self.fixed[channel])}"
                )
        if (self.method == "window") != (self.window is not None):
            raise ValueError("window must be given with method 'window' and only with it")
        for name, pair in (("window", self.window), ("percentiles", self.percentiles)):
            if pair is not None and not pair[0] < pair[1]:
                raise ValueError(f"{name} must be a lower and a higher number, got {list(pair)}")
        if self.percentiles is not None:
            between("percentiles", self.percentiles[0], 0.0, 100.0)
            between("percentiles", self.percentiles[1], 0.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class PreprocessSection:
    """What happens to a case once, before it is cached."""

    __pydantic_config__ = _STRICT

    orientation: str = "RAS"
    """Where the axes of the arrays that the network sees point, e.g. RAS (right, anterior, superior) or LIA, or
    `native` for those of the file; predictions return to the native grid."""
    spacing: Literal["off", "median"] | tuple[float, float, float] = "off"
    """Voxel size in mm to resample to; `median` of the training cases; `off` keeps each case's own."""
    crop_to_roi: bool = False
    """Keep only the box around the roi (or the computed foreground)."""
    crop_margin: int = 8
    """Voxels kept around that box."""
    foreground: Literal["contrast", "nonzero"] = "contrast"
    """How foreground is computed: what stands out from the corners of the scan, or every voxel that is not 0 in some
    channel (nnU-Net); holes count too."""
    normalize: NormalizeSection = field(default_factory=NormalizeSection)
    """Intensity normalization."""

    def __post_init__(self) -> None:
        at_least("crop_margin", self.crop_margin, 0)
        orientation(self.orientation)
        if not isinstance(self.spacing, str):
            for value in self.spacing:
                positive("spacing", value)


@dataclass(frozen=True, kw_only=True)
class SamplingSection:
    """Where segments are taken from and how large they are."""

    __pydantic_config__ = _STRICT

    segment: int | Triple = 37
    """Size of a training segment in voxels."""
    categories: Literal["foreground_background", "uniform", "per_class", "whole_image"] = "foreground_background"
    """What centers are drawn from, inside the roi where a case has one; `whole_image` takes all voxels."""
    proportions: tuple[float, ...] | None = None
    """Share of each category, in the order foreground, background or class 0, 1, …; empty: equal."""
    weight_maps: tuple[str, ...] = ()
    """Weight-map columns of the manifest (without `weight_`), one per category, that replace the category's region."""
    balanced: bool = False
    """Whole images or volumes: each class comes equally often."""
    reuse_features: bool = True
    """Whole images or volumes: where only the head is trained and nothing changes from one epoch to the next, compute
    what the head reads once, for all epochs."""
    cases_per_epoch: int | None = None
    """Draw from that many cases in an epoch (another choice each epoch); empty: from all."""
    workers: int = 1
    """Threads that prepare that many batches ahead; 0 prepares each batch when it is needed. Never changes what is
    drawn."""
    memory_gb: float = 8.0
    """Memory of a GPU that the training cases may take (validation cases: a quarter on top); beyond it the least
    recently used are dropped. A CPU reads them from disk through the operating system's cache."""

    def __post_init__(self) -> None:
        size("segment", self.segment)
        between("workers", self.workers, 0, _MOST_WORKERS)
        positive("memory_gb", self.memory_gb)
        if self.cases_per_epoch is not None:
            at_least("cases_per_epoch", self.cases_per_epoch, 1)
        if self.proportions is not None and (min(self.proportions, default=0) < 0 or sum(self.proportions) <= 0):
            raise ValueError(f"proportions must be at least 0 and not all 0, got {list(self.proportions)}")
