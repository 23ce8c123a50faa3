"""Scores of classification and regression, compared with scikit-learn's."""

import numpy as np
import pytest

from dmx.errors import ConfigError
from dmx.evaluation.classification import roc_auc, score_classes, score_targets
from dmx.evaluation.figures import confusion_figure
from dmx.evaluation.metrics import confusion_counts

GENERATOR = np.random.default_rng(4)


def probabilities(count: int, classes: int) -> np.ndarray:
    # Rounded, so that there are ties.
    values = GENERATOR.random((count, classes)).round(1) + 0.05
    return values / values.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_are_those_of_scikit_learn(num_classes: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, given = GENERATOR.integers(num_classes, size=80), probabilities(80, num_classes)
    names = [f"class {index}" for index in range(num_classes)]
    row = score_classes(truth, given, classes=names)
    predicted = given.argmax(axis=1)
    assert row["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert row["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    area = metrics.roc_auc_score(truth, given[:, 1] if num_classes == 2 else given, multi_class="ovr")
    assert row["auc"] == pytest.approx(area)
    recalls = metrics.recall_score(truth, predicted, average=None)
    assert [row[f"recall/{name}"] for name in names] == pytest.approx(list(recalls))
    counts = confusion_counts(truth, predicted, num_classes=num_classes)
    assert np.array_equal(counts, metrics.confusion_matrix(truth, predicted))


def test_what_cannot_be_measured_has_a_status_and_no_number() -> None:
    truth = np.array([0, 0, 2, 2])
    given = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]])
    row = score_classes(truth, given, classes=["a", "b", "c"])
    assert (row["recall/b"], row["auc/b"], row["status/b"], row["count/b"]) == (None, None, "absent", 0)
    assert row["balanced_accuracy"] == pytest.approx(0.75)
    assert row["auc"] == pytest.approx(1.0)
    alone = score_classes(np.array([1, 1]), given[:2, :2], classes=["a", "b"])
    assert (alone["auc"], alone["status/b"], alone["status/a"]) == (None, "only", "absent")
    assert alone["recall/b"] == 0.5
    empty = score_classes(np.zeros(0, dtype=int), np.zeros((0, 2)), classes=["a", "b"])
    assert (empty["accuracy"], empty["balanced_accuracy"], empty["status/a"]) == (None, None, "no_cases")


def test_ties_count_half() -> None:
    positive = np.array([True, True, False, False])
    assert roc_auc(positive, np.ones(4)) == 0.5
    assert roc_auc(positive, np.array([3.0, 2.0, 1.0, 0.0])) == 1.0
    assert roc_auc(positive, np.array([0.0, 1.0, 2.0, 3.0])) == 0.0


@pytest.mark.parametrize("targets", [["age"], ["age", "volume", "score"]])
def test_regression_is_that_of_scikit_learn(targets: list[str]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth = GENERATOR.normal(size=(30, len(targets)))
    predicted = truth + GENERATOR.normal(size=truth.shape)
    row = score_targets(truth, predicted, targets=targets)
    assert row["r2"] == pytest.approx(metrics.r2_score(truth, predicted))
    assert row["mse"] == pytest.approx(metrics.mean_squared_error(truth, predicted))
    last = targets[-1]
    assert row[f"r2/{last}"] == pytest.approx(metrics.r2_score(truth[:, -1], predicted[:, -1]))
    assert row["dnnbrain_r2"] == pytest.approx(np.corrcoef(truth.ravel(), predicted.ravel())[0, 1] ** 2)


def test_a_constant_target_has_an_error_and_no_r2() -> None:
    row = score_targets(np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[1.0, 4.0], [2.0, 4.0]]), targets=["a", "b"])
    assert (row["r2/b"], row["status/b"], row["mse/b"]) == (None, "constant", 1.0)
    assert row["r2"] == row["r2/a"] == 1.0
    empty = score_targets(np.zeros(0), np.zeros(0), targets=["a"])
    assert (empty["mse"], empty["r2"], empty["dnnbrain_r2"], empty["status/a"]) == (None, None, None, "no_cases")


@pytest.mark.parametrize(
    ("truth", "given", "words"),
    [
        ([0, 1], [[0.5, 0.5]], "one class and 2 probabilities per case"),
        ([0, 2], [[0.5, 0.5]] * 2, "from 0 to 1, got 0 to 2"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1]], "case 2 hold .*finite"),
    ],
)
def test_what_does_not_fit_is_one_sentence(truth: list[int], given: list[list[float]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        score_classes(np.array(truth), np.array(given), classes=["a", "b"])


def test_targets_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"2 values per case on both sides, got \(3, 2\) and \(3,\)"):
        score_targets(np.ones((3, 2)), np.ones(3), targets=["a", "b"])
    with pytest.raises(ConfigError, match="predictions of case 1"):
        score_targets(np.ones(3), np.array([np.inf, 1, 1]), targets=["a"])


def test_the_confusion_of_cases_speaks_of_cases() -> None:
    counts = confusion_counts(np.array([0, 0]), np.array([0, 1]), num_classes=2)
    panel = confusion_figure(counts, ["a", "b"], unit="cases").axes[0]
    assert [text.get_text() for text in panel.texts] == ["50.0 %\n1", "50.0 %\n1", "no cases", "no cases"]
