"""Scores of a classification or regression over the cases of a cohort.

What cannot be measured has no value, and its status says why:

============== ==============================================================================
status         meaning
============== ==============================================================================
present        cases of this class and of others: everything is measured
absent         no case has this class: no recall and no AUC
only           every case has this class: no AUC
measured       a target that varies: everything is measured
constant       every case has the same value: no R²
no_cases       nothing to score
============== ==============================================================================
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from dmx.errors import ConfigError
from dmx.evaluation.metrics import Row

Floats = NDArray[np.floating[Any]]


def score_classes(truth: NDArray[np.integer[Any]], probabilities: Floats, *, classes: Sequence[str]) -> Row:
    """Score a classification.

    Args:
        truth: Class of each case [N], from 0.
        probabilities: Probability of each class [N, classes]; the most probable one counts as predicted.
        classes: Class names.

    Returns:
        ``accuracy``; ``balanced_accuracy``, the mean recall of the classes that some case has; ``auc``, the area under
        the ROC curve: of the second class against the first where there are two, else the mean over the classes of each
        against all others; ``cases``; and for every class ``recall/…``, ``auc/…``, ``count/…`` and ``status/…``.

    Raises:
        ConfigError: The sizes do not fit, a class does not exist, or a probability is not finite.
    """
    truth, probabilities = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    _check_classes(truth, probabilities, len(classes))
    predicted = probabilities.argmax(axis=1) if len(truth) else truth
    row: Row = {"cases": float(len(truth)), "accuracy": _mean(predicted == truth)}
    recalls, areas = [], []
    for index, name in enumerate(classes):
        members = truth == index
        recall = _mean(predicted[members] == index)
        area = roc_auc(members, probabilities[:, index])
        recalls.append(recall)
        areas.append(area)
        row[f"recall/{name}"], row[f"auc/{name}"] = recall, area
        row[f"count/{name}"], row[f"status/{name}"] = float(members.sum()), _class_status(members)
    row["balanced_accuracy"] = _mean_of(recalls)
    row["auc"] = areas[1] if len(classes) == 2 else _mean_of(areas)
    return row


def _check_classes(truth: NDArray[np.integer[Any]], probabilities: Floats, num_classes: int) -> None:
    if truth.ndim != 1 or probabilities.shape != (len(truth), num_classes):
        raise ConfigError(
            f"Scoring needs one class and {num_classes} probabilities per case, got {truth.shape} and "
            f"{probabilities.shape}."
        )
    if len(truth) and not 0 <= int(truth.min()) <= int(truth.max()) < num_classes:
        raise ConfigError(f"Classes must be from 0 to {num_classes - 1}, got {int(truth.min())} to {int(truth.max())}.")
    _require_finite(probabilities, "probabilities")


def _require_finite(values: Floats, what: str) -> None:
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
        raise ConfigError(f"The {what} of case {bad + 1} hold {values[bad]}; all must be finite numbers.")


def _class_status(members: NDArray[np.bool_]) -> str:
    if not members.size:
        return "no_cases"
    if not members.any():
        return "absent"
    return "only" if members.all() else "present"


def roc_auc(positive: NDArray[np.bool_], scores: Floats) -> float | None:
    """Return the area under the ROC curve; None without positive or without negative cases.

    It is the share of pairs of a positive and a negative case in which the positive one has the higher score, ties
    counting half (Mann and Whitney 1947).

    >>> roc_auc(np.array([True, False, False]), np.array([0.7, 0.7, 0.1]))
    0.75
    """
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return None
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def score_targets(truth: Floats, predicted: Floats, *, targets: Sequence[str]) -> Row:
    """Score a regression.

    Args:
        truth: Values [N, targets], or [N] of one target.
        predicted: The same, as predicted.
        targets: Names of the targets.

    Returns:
        ``mse`` and ``r2`` (1 - residual / total sum of squares), each the mean over the targets that have one;
        ``dnnbrain_r2``, the squared correlation of all values, which DNNBrain reports as the score; ``cases``; and for
        every target ``mse/…``, ``r2/…`` and ``status/…``.

    Raises:
        ConfigError: The sizes do not fit, or a value is not finite.
    """
    shape = (-1, len(targets))
    truth, predicted = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if truth.size != predicted.size or truth.size % len(targets):
        raise ConfigError(
            f"Scoring needs {len(targets)} values per case on both sides, got {truth.shape} and {predicted.shape}."
        )
    truth, predicted = truth.reshape(shape), predicted.reshape(shape)
    _require_finite(truth, "targets")
    _require_finite(predicted, "predictions")
    row: Row = {"cases": float(len(truth))}
    errors, shares = [], []
    for index, name in enumerate(targets):
        true = truth[:, index]
        residual = (true - predicted[:, index]) ** 2
        total = float(((true - true.mean()) ** 2).sum()) if len(true) else 0.0
        error = _mean(residual)
        share = 1 - float(residual.sum()) / total if total else None
        errors.append(error)
        shares.append(share)
        row[f"mse/{name}"], row[f"r2/{name}"] = error, share
        row[f"status/{name}"] = "no_cases" if not len(true) else "measured" if total else "constant"
    row["mse"], row["r2"] = _mean_of(errors), _mean_of(shares)
    row["dnnbrain_r2"] = _squared_correlation(truth.reshape(-1), predicted.reshape(-1))
    return row


def _squared_correlation(first: Floats, second: Floats) -> float | None:
    if not first.size or not np.ptp(first) or not np.ptp(second):
        return None
    return float(np.corrcoef(first, second)[0, 1] ** 2)


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _mean_of(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
