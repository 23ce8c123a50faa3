"""Linear readouts of layers."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from dmx.errors import ConfigError
from dmx.evaluation.figures import figure_image
from dmx.evaluation.probe import ProbeReport, collect_features, probe_figure, probe_layers
from dmx.model.image_network import ImageNetwork

GENERATOR = np.random.default_rng(0)
COUNT = 40
TARGET = np.arange(COUNT) % 2
NOISE = GENERATOR.normal(size=(COUNT, 3)).astype(np.float32)


def knowing(target: np.ndarray) -> np.ndarray:
    return (NOISE + 6 * np.asarray(target, dtype=np.float32)[:, None] * np.array([1, 0, 0])).astype(np.float32)


def probe(**options: object) -> ProbeReport:
    pytest.importorskip("sklearn")
    features = {"early": NOISE, "late": knowing(TARGET)}
    return probe_layers(**{"features": features, "target": TARGET, "folds": 4, **options})  # type: ignore[arg-type]


def test_a_layer_that_knows_the_class_is_far_above_chance_and_noise_is_not() -> None:
    report = probe()
    early, late = report.layers
    assert (report.chance, report.metric, report.cases) == (0.5, "balanced accuracy", COUNT)
    assert late.mean > 0.9
    assert abs(early.mean - report.chance) < 0.25
    assert len(late.scores) == 4
    assert late.spread == pytest.approx(float(np.std(late.scores, ddof=1)))
    assert report == probe()
    assert probe(seed=1).layers[0].scores != early.scores
    assert report.rows()[1] == {
        "layer": "late",
        "features": 3,
        "mean": late.mean,
        "spread": late.spread,
        "chance": 0.5,
        **{f"fold_{number}": value for number, value in enumerate(late.scores, start=1)},
    }


def test_a_value_is_read_out_by_regression() -> None:
    value = GENERATOR.normal(size=COUNT)
    report = probe(target=value, features={"a": NOISE, "b": knowing(value)}, task="regression")
    assert (report.chance, report.metric) == (0.0, "R²")
    assert report.layers[1].mean > 0.8
    assert report.layers[0].mean < 0.3


def test_cases_of_a_subject_are_never_on_both_sides() -> None:
    # The feature tells the subject apart and nothing of the class.
    subjects = np.repeat(np.arange(20), 4)
    target = GENERATOR.permutation(np.arange(20) % 2)[subjects]
    one_hot = np.eye(20, dtype=np.float32)[subjects]
    alone = probe(features={"a": one_hot}, target=target).layers[0].mean
    grouped = probe(features={"a": one_hot}, target=target, groups=[f"s{subject}" for subject in subjects])
    assert alone > 0.8
    assert grouped.layers[0].mean == pytest.approx(0.5, abs=0.15)


def test_a_readout_that_does_not_settle_is_a_note_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("sklearn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmx.evaluation.probe._MOST_STEPS", 1)
        report = probe()
    assert "early, late had not settled after 1 steps" in report.notes[0]
    assert not recwarn.list
    assert not probe().notes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": 1}, "folds must be from 2 to the number of cases, 40, got 1"),
        ({"folds": 3, "groups": ["a", "b"] * 20}, "number of groups, 2, got 3"),
        ({"target": np.array([0] * 38 + [1] * 2)}, "Class 1 has 2 cases, fewer than the 4 folds"),
        ({"target": np.zeros(COUNT)}, "at least 2 classes"),
        ({"target": TARGET[:5]}, r"one target and one row of features per case.*early \(40, 3\)"),
        ({"features": {}}, "features of 0"),
        ({"features": {"bad": NOISE * np.nan}}, "Layer 'bad' gives numbers that are not finite"),
    ],
)
def test_what_cannot_be_probed_is_one_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        probe(**options)


def test_features_are_means_of_maps_from_one_pass() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    network = ImageNetwork(module, "x", num_channels=3, num_classes=2)
    images = torch.rand(5, 3, 6, 6)
    found = collect_features(network, ([part] for part in images.split(2)), ["0", "4"])
    assert found["4"].shape == (5, 2)
    with torch.no_grad():
        assert np.allclose(found["0"], module[0](images).mean((2, 3)), atol=1e-6)


def test_the_figure_has_a_point_per_layer_and_the_chance_level() -> None:
    figure = probe_figure(report := probe())
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["early", "late"]
    assert panel.get_ylabel() == "balanced accuracy"
    assert panel.lines[0].get_ydata()[0] == report.chance
    assert figure_image(figure, dpi=30).size


def test_scikit_learn_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ConfigError, match=r"dmx-transfer\[inside\]"):
        probe_layers({"a": NOISE}, TARGET)
