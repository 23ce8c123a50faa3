"""Scores of one case: what a prediction shares with the truth, per class and for the whole foreground.

Whether a class is there at all is decided before anything is measured, so that three things stay apart that a bare NaN
would mix up: a class that neither the truth nor the prediction has (nothing to score), one that was missed, and one
that was predicted where there is none. ``status/<class>`` tells which:

============== ========= =============== =================== ================== ======================
Voxels that nobody annotated (-1 in the truth) count nowhere, volumes included. Where a case has some, nobody knows
where the true surface is: all that is measured between surfaces is none, penalties included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmx.errors import ConfigError
from dmx.evaluation.surface import ELEMENTS, Bools, SurfaceDefinition, surface_distances

Score = float | str | None
Row = dict[str, Score]
Status = Literal["present", "missed", "false_positive", "absent"]

FOREGROUND = "foreground"
"""All classes but the background, or all regions, together."""
Classes = Sequence[str] | Mapping[str, Sequence[int]]
"""What is scored: names of the classes, background first, or of regions that may overlap, each with its labels."""
METRICS = (
    "dice",
    "sensitivity",
    "precision",
    "specificity",
    "volume_truth_ml",
    "volume_predicted_ml",
    "volume_error_ml",
    "volume_error_relative",
    "hd95_mm",
    "hd95_mm_penalized",
    "assd_mm",
    "assd_mm_penalized",
    "surface_dice",
    "deepmedic_dice1",
    "deepmedic_dice2",
    "deepmedic_dice3",
)
"""Metrics of a row, in the order of its columns; each stands for every class as ``metric/class``."""
STATUSES: tuple[Status, ...] = ("present", "missed", "false_positive", "absent")
_SCORED: tuple[Status, ...] = ("present", "missed", "false_positive")
_WITH_VALUE: Mapping[str, tuple[Status, ...]] = {
    "dice": _SCORED,
    "surface_dice": _SCORED,
    "sensitivity": ("present", "missed"),
    "volume_error_relative": ("present", "missed"),
    "precision": ("present", "false_positive"),
    "hd95_mm": ("present",),
    "assd_mm": ("present",),
    "hd95_mm_penalized": _SCORED,
    "assd_mm_penalized": _SCORED,
}


@dataclass(frozen=True)
class Overlap:
    """Voxels that a truth and a prediction share.

    Attributes:
        both: Voxels in both.
        truth: Voxels in the truth.
        prediction: Voxels in the prediction.
        total: Voxels that count.
    """

    both: int
    truth: int
    prediction: int
    total: int

    @property
    def status(self) -> Status:
        """Which of the two has the class."""
        if self.truth and self.prediction:
            return "present"
        if self.truth:
            return "missed"
        return "false_positive" if self.prediction else "absent"

    @property
    def dice(self) -> float | None:
        """2·|T∩P| / (|T| + |P|); 0 for a class missed or predicted where there is none."""
        return _ratio(2 * self.both, self.truth + self.prediction)

    @property
    def sensitivity(self) -> float | None:
        """|T∩P| / |T|."""
        return _ratio(self.both, self.truth)

    @property
    def precision(self) -> float | None:
        """|T∩P| / |P|."""
        return _ratio(self.both, self.prediction)

    @property
    def specificity(self) -> float | None:
        """Share of the voxels outside of the truth that the prediction leaves out."""
        negatives = self.total - self.truth
        return _ratio(negatives - (self.prediction - self.both), negatives)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _dice_of_truth(truth: Bools, prediction: Bools) -> float | None:
    """Return Dice as DeepMedic reports it: none wherever the truth is empty, so that false positives go unseen."""
    in_truth = int(np.count_nonzero(truth))
    both, in_prediction = int(np.count_nonzero(truth & prediction)), int(np.count_nonzero(prediction))
    return 2 * both / (in_truth + in_prediction) if in_truth else None


def score_case(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    *,
    spacing: Sequence[float],
    classes: Classes,
    roi: NDArray[np.generic] | None = None,
    surface: SurfaceDefinition = ELEMENTS,
) -> Row:
    """Score a predicted label map.

    Without prefix, a metric compares the prediction within the roi with the whole truth: truth outside of the roi was
    missed. Specificity counts the voxels of the roi and of the truth. DeepMedic's three variants of the Dice score are

    1. the whole prediction and the whole truth,
    2. the prediction within the roi and the whole truth,
    3. both within the roi.

    Args:
        truth: Label map [I, J, K], -1 where nobody annotated.
        prediction: Label map on the same grid.
        spacing: Voxel size in mm per axis.
        classes: Class names, background first; or region → its labels.
        roi: Region [I, J, K]; everything when left out.
        surface: What a surface is, and the tolerance of the normalized surface Dice.

    Returns:
        ``metric/class`` → number or None for every name of :data:`METRICS` and every class but the background, with
        ``status/class``, first for the whole ``foreground``; and ``dice/mean`` over the classes that have one.

    Raises:
        ConfigError: The grids differ, or a class name stands for the whole foreground already.
    """
    region = np.ones(truth.shape, dtype=bool) if roi is None else np.asarray(roi) != 0
    _check_grids(truth, prediction, region)
    sets = label_sets(classes)
    if FOREGROUND in sets and len(sets) > 1:
        raise ConfigError(f"A class cannot be called '{FOREGROUND}' beside others: it stands for all. Rename it.")
    annotated = truth >= 0
    complete = bool(annotated.all())
    if not complete:
        prediction, region = np.where(annotated, prediction, 0), region & annotated
    everything = sorted({label for labels in sets.values() for label in labels})
    regions = {
        name: (np.isin(truth, labels), np.isin(prediction, labels))
        for name, labels in ({FOREGROUND: everything} | sets).items()
    }
    row: Row = {}
    for name, (true, predicted) in regions.items():
        scores = _score_region(true, predicted, region, spacing, surface if complete else None)
        row |= {f"{metric}/{name}": value for metric, value in scores.items()}
    found = [row[f"dice/{name}"] for name in sets]
    values = [value for value in found if isinstance(value, float)]
    return {"dice/mean": sum(values) / len(values) if values else None, **row}


def label_sets(classes: Classes) -> dict[str, Sequence[int]]:
    """Return the labels of all that is scored, by name.

    >>> label_sets(["background", "a"]), label_sets({"whole": [1, 2]})
    ({'a': [1]}, {'whole': [1, 2]})
    """
    if isinstance(classes, Mapping):
        return dict(classes)
    return {name: [index] for index, name in enumerate(classes) if index}


def _check_grids(truth: NDArray[np.integer], prediction: NDArray[np.integer], region: Bools) -> None:
    if not truth.shape == prediction.shape == region.shape:
        raise ConfigError(
            f"Truth, prediction and roi must lie on one grid, got {truth.shape}, {prediction.shape} and {region.shape}."
        )


def _score_region(
    truth: Bools, prediction: Bools, roi: Bools, spacing: Sequence[float], surface: SurfaceDefinition | None
) -> dict[str, Score]:
    """Return the metrics of one region, the status first; without a definition nothing is measured between surfaces."""
    within = prediction & roi
    overlap = Overlap(
        both=int(np.count_nonzero(truth & within)),
        truth=int(np.count_nonzero(truth)),
        prediction=int(np.count_nonzero(within)),
        total=int(np.count_nonzero(roi | truth)),
    )
    voxel_ml = float(np.prod(np.asarray(spacing, dtype=np.float64))) / 1000
    error = overlap.prediction - overlap.truth
    return {
        "status": overlap.status,
        "dice": overlap.dice,
        "sensitivity": overlap.sensitivity,
        "precision": overlap.precision,
        "specificity": overlap.specificity,
        "volume_truth_ml": overlap.truth * voxel_ml,
        "volume_predicted_ml": overlap.prediction * voxel_ml,
        "volume_error_ml": error * voxel_ml,
        "volume_error_relative": _ratio(error, overlap.truth),
        **_surface_scores(truth, within, spacing, surface=surface, status=overlap.status),
        "deepmedic_dice1": _dice_of_truth(truth, prediction),
        "deepmedic_dice2": _dice_of_truth(truth, within),
        "deepmedic_dice3": _dice_of_truth(truth & roi, within),
    }


def _surface_scores(
    truth: Bools, prediction: Bools, spacing: Sequence[float], *, surface: SurfaceDefinition | None, status: Status
) -> dict[str, Score]:
    """Return what is measured between surfaces; a penalty stands where one of them does not exist."""
    if status == "absent" or surface is None:
        return dict.fromkeys(("hd95_mm", "hd95_mm_penalized", "assd_mm", "assd_mm_penalized", "surface_dice"))
    if status != "present":
        diagonal = float(np.linalg.norm(np.asarray(truth.shape) * np.asarray(spacing, dtype=np.float64)))
        found = {"hd95_mm": None, "hd95_mm_penalized": diagonal, "assd_mm": None, "assd_mm_penalized": diagonal}
        return {**found, "surface_dice": 0.0}
    distances = surface_distances(truth, prediction, spacing, kind=surface.kind)
    hd95, assd = distances.hausdorff(), distances.average()
    return {
        "hd95_mm": hd95,
        "hd95_mm_penalized": hd95,
        "assd_mm": assd,
        "assd_mm_penalized": assd,
        "surface_dice": distances.within(surface.tolerance_mm),
    }


def confusion_counts(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    *,
    num_classes: int,
    roi: NDArray[np.generic] | None = None,
) -> NDArray[np.int64]:
    """Return how many voxels of each true class (rows) got each predicted class (columns), within the roi.

    Voxels that nobody annotated (-1) are left out.
    """
    chosen = truth.reshape(-1) >= 0
    if roi is not None:
        chosen &= np.asarray(roi).reshape(-1) != 0
    pairs = truth.reshape(-1)[chosen].astype(np.int64) * num_classes + prediction.reshape(-1)[chosen]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def statuses(rows: Sequence[Mapping[str, Score]], name: str) -> dict[str, int]:
    """Return how many cases have which status of a class."""
    found = [row[f"status/{name}"] for row in rows]
    return {status: found.count(status) for status in STATUSES}


def cases_with_value(metric: str, counts: Mapping[str, int]) -> int:
    """Return how many cases have a value of a metric, from the number of cases of each status.

    >>> cases_with_value("hd95_mm", {"present": 3, "missed": 2, "false_positive": 1, "absent": 4})
    3
    """
    return sum(counts[status] for status in _WITH_VALUE.get(metric, STATUSES))
