"""Activations, ablation and probe of networks that score whole images and volumes."""

import csv
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dmx.cohort.image import read_image
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.config.load import build_experiment
from dmx.errors import CohortError, ConfigError, ModelError
from dmx.evaluation.activations import read_activations, read_stimulus_names
from dmx.model.show_scores import ScoringReport
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.ablate import AblateRequest, ablate
from dmx.workflows.activations import ActivationsRequest, activations
from dmx.workflows.evaluate import EvaluateRequest
from dmx.workflows.evaluate_scores import evaluate_scores
from dmx.workflows.model import describe_run
from dmx.workflows.probe import ProbeRequest, probe
from dmx.workflows.train import train
from dmx.workflows.trained import open_network
from tests.workflows.conftest import Teller, make_manifest, session
from tests.workflows.tiny_images import image_settings, make_images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Path]:
    """Train once for all tests of the file: they only read what the run ``gray/first`` holds."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "mlruns").mkdir()
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(folder / "mlruns/mlflow.db")) as target:
        source.backup(target)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DMX_CACHE_DIR", str(folder / "facts"))
        train(image_settings(make_images(folder)), session(folder), name="first")
        yield folder


def test_activations_of_images_are_what_a_pass_gives(root: Path) -> None:
    file = root / "a.act.h5"
    request = ActivationsRequest(
        run="gray/first", inputs=[root / "gray.csv"], layers=["features.0", "head.1"], output=file, split="evaluation"
    )
    done = activations(request, session(root))
    found = read_activations(file)
    assert {layer: values.shape for layer, values in found.items()} == {
        "features.0": (6, 6, 7, 7),
        "head.1": (6, 2, 1, 1),
    }
    assert done.file.count == len(read_stimulus_names(file)) == 6
    # The cases' own scores, by another way: the table of an evaluation.
    scored = evaluate_scores(EvaluateRequest(run="gray/first", split="evaluation"), session(root))
    likely = torch.from_numpy(found["head.1"][:, :, 0, 0]).softmax(dim=1)[:, 1]
    assert np.allclose(likely, [row["probability/light"] for row in scored.rows], atol=1e-5)
    run = open_store(root=root).get_run(done.run.id)
    assert (run.kind, run.params["pool"], run.tags["dmx.task"]) == ("activations", "none", "classification")


def test_image_files_are_read_as_they_are_named(root: Path) -> None:
    files = [root / "gray/training_0.png", root / "gray/training_1.png"]
    request = ActivationsRequest(
        run="gray/first", inputs=files, layers=["features.*"], pool="mean", output=root / "b.act.h5"
    )
    done = activations(request, session(root))
    assert set(done.file.shapes.values()) == {(2, 6, 1, 1), (2, 8, 1, 1)}
    dark, light = (read_image(file).mean() for file in files)
    assert dark < light


def test_an_ablation_of_images_stands_beside_the_evaluation(root: Path) -> None:
    whole = evaluate_scores(EvaluateRequest(run="gray/first"), session(root))
    done = ablate(AblateRequest(run="gray/first", layer="features.0"), session(root))
    assert (done.split, done.cases) == ("evaluation", 6)
    assert done.tensors[:2] == ("network.features.0.weight", "network.features.0.bias")
    change = done.changes["accuracy"]
    assert change is not None
    assert change.first == whole.scores["accuracy"]
    # Without its first layer the network says the same of every image.
    assert change.second == 0.5
    run = open_store(root=root).get_run(done.run.id)
    assert run.metrics["ablation/accuracy"] == 0.5
    assert run.metrics["unablated/accuracy"] == pytest.approx(whole.scores["accuracy"])
    folder = open_store(root=root).local_artifacts(run.id)
    assert folder is not None
    rows = list(csv.DictReader((folder / "ablation/ablated.csv").open()))
    assert len({row["predicted"] for row in rows}) == 1


def test_a_probe_finds_the_class_that_brightness_tells(root: Path) -> None:
    teller = Teller()
    request = ProbeRequest(run="gray/first", layers=["features.0", "head.1"], folds=3)
    done = probe(request, session(root, teller))
    assert (done.report.cases, [score.features for score in done.report.layers]) == (22, [6, 2])
    assert done.report.layers[0].mean > 0.8
    assert any("10 of 22 cases were in the training" in sentence for sentence in teller.sentences)
    numbers = probe(replace(request, target="brightness"), session(root))
    assert numbers.report.task == "regression"
    assert numbers.report.layers[0].mean > 0.5


def test_what_does_not_fit_images_is_said(root: Path) -> None:
    request = ActivationsRequest(run="gray/first", layers=["features.0"], output=root / "c.act.h5")
    trained = open_network(open_store(root=root), "gray/first", checkpoint=None, root=root)
    with pytest.raises(ConfigError, match="belongs to segmentation"):
        activations(replace(request, settings=trained.experiment.prediction), session(root))
    with pytest.raises(ModelError, match=r"Did you mean 'features\.0'"):
        activations(replace(request, layers=["feature.0"]), session(root))
    with pytest.raises(CohortError, match="There is no image"):
        activations(replace(request, inputs=[root / "none.png"]), session(root))
    with pytest.raises(CohortError, match="were in the training"):
        ablate(AblateRequest(run="gray/first", layer="head", split="training"), session(root))
    assert not list(root.glob("c.act.h5"))


def test_names_of_layers_are_listed(root: Path) -> None:
    report = describe_run("gray/first", uri=None, root=root)
    assert isinstance(report, ScoringReport)
    layers = report.layers
    assert [layer.name for layer in layers] == ["features.0", "features.1", "features.4", "head.1"]
    assert [layer.is_head for layer in layers] == [False, False, False, True]
    assert layers[0].parameters == 6 * 3 * 9 + 6


def test_volumes_that_are_scored_whole(root: Path) -> None:
    cohort = read_manifest(make_manifest(root))
    cases = tuple(replace(case, label=number % 2, label_map=None) for number, case in enumerate(cohort.cases))
    cases = (replace(cases[0], split="training"), replace(cases[1], split="training"), *cases[2:])
    write_manifest(replace(cohort, cases=cases, label_classes=("even", "odd")), root / "cohort.csv")
    raw: dict[str, object] = {
        "name": "balls",
        "task": "classification",
        "cohort": {"manifest": str(root / "cohort.csv")},
        "sampling": {"workers": 0},
        "model": {"name": "encoder_classifier", "normal": {"widths": [4, 4]}},
        "training": {"epochs": 1, "batch_size": 2},
    }
    train(build_experiment(raw), session(root), name="volumes")
    request = ActivationsRequest(run="balls/volumes", layers=["normal.block_2", "head"], output=root / "v.act.h5")
    done = activations(request, session(root))
    assert done.file.shapes == {"normal.block_2": (6, 4, 1, 1), "head": (6, 2, 1, 1)}
    assert np.isfinite(read_activations(root / "v.act.h5")["head"]).all()
    scored = ablate(AblateRequest(run="balls/volumes", layer="normal.block_2", channels=[1]), session(root))
    assert (scored.split, scored.cases) == ("evaluation", 2)
    assert scored.changes["accuracy"] is not None
