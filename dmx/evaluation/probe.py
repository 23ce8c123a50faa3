"""What layers know: a linear readout of each, cross-validated (Alain and Bengio 2016)."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmx.errors import ConfigError
from dmx.evaluation.figures import new_figure, quiet
from dmx.evaluation.layer_outputs import Layers, Pooling, layer_outputs
from dmx.model.network import TrainableNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Task = Literal["classification", "regression"]
Features = Mapping[str, NDArray[np.float32]]
_METRICS = {"classification": "balanced accuracy", "regression": "R²"}
_MOST_STEPS = 2000
# Strengths of the ridge penalty, one of which is chosen within the training part of each fold.
_PENALTIES = tuple(10.0**power for power in range(-3, 5))


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """How well a linear readout of one layer does.

    Attributes:
        layer: The layer.
        features: Numbers per case that were read.
        scores: Score of each fold, on cases that its readout did not see.
    """

    layer: str
    features: int
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the folds."""
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float:
        """Standard deviation over the folds."""
        return float(np.std(self.scores, ddof=1))


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """Linear readouts of several layers, all over the same folds.

    Attributes:
        task: Classification or regression.
        metric: What the scores are: balanced accuracy, or R².
        chance: Score of a readout that knows nothing: 1 / classes, or 0.
        cases: Number of cases.
        layers: One entry per layer, in their order.
        notes: What is worth knowing.
    """

    task: Task
    metric: str
    chance: float
    cases: int
    layers: tuple[LayerScore, ...]
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, str | float]]:
        """Return a line per layer, for a table."""
        return [
            {
                "layer": score.layer,
                "features": score.features,
                "mean": score.mean,
                "spread": score.spread,
                "chance": self.chance,
                **{f"fold_{number}": value for number, value in enumerate(score.scores, start=1)},
            }
            for score in self.layers
        ]


def collect_features(
    network: TrainableNetwork, batches: Iterable[Sequence[Tensor]], layers: Layers, *, pool: Pooling = "mean"
) -> dict[str, NDArray[np.float32]]:
    """Return one number per channel for each case and layer, [N, channels]; the data is run through once.

    Args:
        network: The network.
        batches: For each batch one tensor [N, C, …] per patch.
        layers: Names of layers, or for each name which part of it.
        pool: How a feature map becomes one number.

    Raises:
        ModelError: A layer does not exist, or its output has no channels.
    """
    parts: dict[str, list[Tensor]] = {}
    for outputs in layer_outputs(network, batches, layers, pool=pool):
        for layer, values in outputs.items():
            parts.setdefault(layer, []).append(values.flatten(1))
    return {layer: torch.cat(values).numpy() for layer, values in parts.items()}


def probe_layers(
    features: Features,
    target: NDArray[Any],
    *,
    task: Task = "classification",
    groups: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> ProbeReport:
    """Read a target out of each layer: logistic regression, or ridge regression; features are standardized per fold.

    Args:
        features: Layer → [N, features].
        target: Class of each case [N], or value.
        task: Classification or regression.
        groups: What must not be both read from and scored on, such as the subject of each case; None: each case alone.
        folds: Number of folds, the same for all layers.
        seed: Decides which cases make up a fold.

    Raises:
        ConfigError: There are fewer cases, groups or members of a class than folds, or scikit-learn is missing.
    """
    values = np.asarray(target)
    _check(features, values, groups)
    splits = probe_folds(values, task=task, groups=groups, folds=folds, seed=seed)
    unsettled: list[str] = []
    scores = []
    for layer, numbers in features.items():
        found, settled = _cross_validated(numbers, values, splits, task=task)
        scores.append(LayerScore(layer=layer, features=numbers.shape[1], scores=found))
        unsettled += [] if settled else [layer]
    classes = len(np.unique(values))
    notes = [f"The readout of {', '.join(unsettled)} had not settled after {_MOST_STEPS} steps."] if unsettled else []
    return ProbeReport(
        task=task,
        metric=_METRICS[task],
        chance=1 / classes if task == "classification" else 0.0,
        cases=len(values),
        layers=tuple(scores),
        notes=tuple(notes),
    )


def _check(features: Features, target: NDArray[Any], groups: Sequence[str] | None) -> None:
    sizes = {layer: numbers.shape for layer, numbers in features.items()}
    wrong = [f"{layer} {shape}" for layer, shape in sizes.items() if len(shape) != 2 or shape[0] != len(target)]
    if not features or wrong or target.ndim != 1 or (groups is not None and len(groups) != len(target)):
        raise ConfigError(
            f"A probe needs one target and one row of features per case and layer, got {target.shape} targets, "
            f"{'no' if groups is None else len(groups)} groups and features of {', '.join(wrong) or len(features)}."
        )
    for layer, numbers in features.items():
        if not np.isfinite(numbers).all():
            raise ConfigError(f"Layer '{layer}' gives numbers that are not finite, which cannot be read out.")


def probe_folds(
    target: NDArray[Any], *, task: Task, groups: Sequence[str] | None, folds: int, seed: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the cases to learn from and to score on, for each fold; needs no features.

    Raises:
        ConfigError: See :func:`probe_layers`.
    """
    selection = _sklearn("model_selection")
    units = np.arange(len(target)) if groups is None else np.unique(groups, return_inverse=True)[1]
    if not 2 <= folds <= len(np.unique(units)):
        raise ConfigError(
            f"folds must be from 2 to the number of {'cases' if groups is None else 'groups'}, "
            f"{len(np.unique(units))}, got {folds}."
        )
    if task == "regression":
        return list(selection.GroupKFold(folds, shuffle=True, random_state=seed).split(target, target, units))
    for name in (names := np.unique(target)):
        members = len(np.unique(units[target == name]))
        if members < folds:
            kind = "cases" if groups is None else "groups"
            raise ConfigError(f"Class {name} has {members} {kind}, fewer than the {folds} folds. Use fewer folds.")
    if len(names) < 2:
        raise ConfigError(f"A classification needs at least 2 classes among the cases, got {list(names)}.")
    folding = selection.StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(folding.split(target, target, units))


def _cross_validated(
    features: NDArray[np.float32],
    target: NDArray[Any],
    splits: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    *,
    task: Task,
) -> tuple[tuple[float, ...], bool]:
    """Return the score of each fold, and whether every readout had settled."""
    metrics = _sklearn("metrics")
    score = metrics.balanced_accuracy_score if task == "classification" else metrics.r2_score
    scores = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for training, held_out in splits:
            readout = _readout(task).fit(features[training].astype(np.float64), target[training])
            scores.append(float(score(target[held_out], readout.predict(features[held_out].astype(np.float64)))))
    return tuple(scores), not any("Convergence" in warning.category.__name__ for warning in caught)


def _readout(task: Task) -> Any:
    linear = _sklearn("linear_model")
    model = linear.LogisticRegression(max_iter=_MOST_STEPS) if task == "classification" else linear.RidgeCV(_PENALTIES)
    return _sklearn("pipeline").make_pipeline(_sklearn("preprocessing").StandardScaler(), model)


def _sklearn(part: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{part}")
    except ImportError as error:
        raise ConfigError(
            "A probe needs scikit-learn, which is not installed. Run: pip install 'dmx-transfer[inside]'."
        ) from error


def probe_figure(report: ProbeReport) -> "Figure":
    """Show the score of each layer, mean and spread over the folds, every fold a point, with the chance level."""
    figure = new_figure((max(4.5, 0.55 * len(report.layers) + 1.8), 4.0))
    panel = figure.subplots()
    places = range(len(report.layers))
    panel.axhline(report.chance, color="#888888", linestyle="--", linewidth=1.0, label="chance")
    for place, score in zip(places, report.layers, strict=True):
        panel.scatter([place] * len(score.scores), score.scores, s=12, color="#56B4E9", alpha=0.7, linewidths=0)
    panel.errorbar(
        places,
        [score.mean for score in report.layers],
        yerr=[score.spread for score in report.layers],
        color="#0072B2",
        marker="o",
        markersize=5,
        capsize=3,
        linewidth=1.4,
        label="mean and standard deviation over folds",
    )
    panel.set_xticks(places, [score.layer for score in report.layers], rotation=45, ha="right")
    panel.set_ylabel(report.metric)
    panel.set_title(f"Linear readout, {report.cases} cases", loc="left")
    panel.legend(frameon=False, fontsize=8)
    quiet(panel)
    return figure
