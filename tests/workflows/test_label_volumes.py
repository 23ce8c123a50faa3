"""Volumes that have a label as a whole: classified by what a segmentation has learned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.config.load import as_dict, build_experiment
from dmx.config.sections import Experiment
from dmx.errors import CohortError, ConfigError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.by_task import evaluate_by_task, predict_by_task
from dmx.workflows.evaluate import EvaluateRequest
from dmx.workflows.evaluate_scores import EvaluatedScores
from dmx.workflows.predict import PredictRequest
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from dmx.workflows.trained import open_network
from dmx.workflows.transfer import transfer_and_train
from tests.workflows.conftest import Teller, session, settings
from tests.workflows.test_train import assert_same, final_state

SMALL = {"training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2}, "validation": {"volumes_every_epochs": 0}}

CHANGES = {
    "affine": {"probability": 1.0, "shift": 1.0},
    "reflect": {"probability": [0.5, 0.0, 0.0]},
    "noise": {"probability": 0.5},
}


@pytest.fixture
def labeled(project: Path, manifest: Path) -> Path:
    """The same scans, each called left or right, with a number; one of another size."""
    cohort = read_manifest(manifest)
    cases = tuple(
        replace(case, label=index % 2, targets={"age": 40.0 + index}) for index, case in enumerate(cohort.cases)
    )
    path = project / "labeled.csv"
    write_manifest(replace(cohort, name="sides", cases=cases, label_classes=("left", "right")), path)
    return path


def raw(labeled: Path, **sections: object) -> dict[str, object]:
    model = as_dict(settings(labeled))["model"]
    return {
        "name": "sides",
        "task": "classification",
        "cohort": {"manifest": str(labeled)},
        "model": {"name": "encoder_classifier", "normal": model["normal"], "subsampled": [{"factor": 2}]},
        "training": {"epochs": 2, "batch_size": 2},
        "sampling": {"workers": 0},
        "optimizer": {"name": "adam", "lr": 0.01},
        "validation": {"score_train": True},
        **sections,
    }


def test_an_encoder_is_carried_from_a_segmentation_into_a_classifier(
    project: Path, manifest: Path, labeled: Path
) -> None:
    source = train(settings(manifest, **SMALL), session(project)).run
    given = raw(
        labeled, transfer={"sources": {"segmentation": {"run": source.id}}}, training={"epochs": 1, "batch_size": 2}
    )
    teller = Teller()
    done = transfer_and_train(
        given, session(project, teller), path=project / "c.yaml", name=None, strict=False, allow_leak=True
    )
    store = open_store(root=project)
    first = open_network(store, done.run.id, checkpoint="initial", root=project).network.state_dict()
    best = open_network(store, source.id, checkpoint=None, root=project).network.state_dict()
    shared = [name for name in first if name in best and not name.startswith("head")]
    assert len(shared) > 8
    for name in shared:
        assert torch.equal(first[name], best[name]), name
    info = store.get_run(done.run.id)
    assert {"val/accuracy", "score_train/accuracy", "train/accuracy"} <= info.metrics.keys()
    assert info.params["steps_per_epoch"] == "2"
    assert info.params["network.pathways"] == "2"
    scored = evaluate_by_task(EvaluateRequest(run=done.run.id, allow_leak=True), session(project))
    assert isinstance(scored, EvaluatedScores)
    assert len(scored.rows) == 2
    table = predict_by_task(
        PredictRequest(run=done.run.id, inputs=[project / "scans/t1_0.nii.gz"], output=project / "s.csv"),
        session(project),
    )
    assert table.rows[0].keys() >= {"case", "predicted", "probability/left", "probability/right"}


def test_numbers_of_changed_volumes_are_learned_and_a_resume_is_exact(project: Path, labeled: Path) -> None:
    def given(workers: int, **sections: object) -> Experiment:
        cohort = {"manifest": str(labeled), "targets": ["age"]}
        sampling = {"workers": workers}
        return build_experiment(raw(labeled, task="regression", cohort=cohort, sampling=sampling, **sections))

    whole = train(given(0, augmentation=CHANGES), session(project)).run
    part = train(given(2, augmentation=CHANGES), session(project, Teller(stop_after=3)))
    resume(part.run.id, session(project))
    plain = train(given(0), session(project)).run
    store = open_store(root=project)
    final = final_state(store, whole)["model"]
    assert_same(final, final_state(store, part.run)["model"])
    unchanged = final_state(store, plain)["model"]
    assert not all(torch.equal(final[name], unchanged[name]) for name in final)
    assert store.get_run(whole.id).params["targets"] == "age"
    assert "val/mse" in store.get_run(whole.id).metrics


def test_labels_that_lack_are_refused(project: Path, manifest: Path, labeled: Path) -> None:
    with pytest.raises(ConfigError, match="needs at least two classes, cohort 'balls'"):
        train(build_experiment(raw(manifest)), session(project))
    cohort = read_manifest(labeled)
    cases = (replace(cohort.cases[0], label=None), *cohort.cases[1:])
    write_manifest(replace(cohort, cases=cases), labeled)
    with pytest.raises(CohortError, match="Case 'case_0' of cohort 'sides' has no label"):
        train(build_experiment(raw(labeled)), session(project))
    cases = tuple(replace(case, label=0 if case.split == "training" else case.label) for case in cohort.cases)
    write_manifest(replace(cohort, cases=cases), labeled)
    with pytest.raises(CohortError, match="Class 'right' of cohort 'sides' has no cases for training"):
        train(build_experiment(raw(labeled)), session(project))
    with pytest.raises(ConfigError, match=r"image_preprocess\.crop belongs to images"):
        build_experiment(raw(labeled, image_preprocess={"crop": 10}))
    with pytest.raises(
        ConfigError, match=r"augmentation\.deepmedic belongs to segmentation, got task 'classification'"
    ):
        build_experiment(raw(labeled, augmentation={"deepmedic": {"reflect": [0.5, 0.0, 0.0]}}))
    with pytest.raises(ConfigError, match=r"cohort\.classes belongs to label maps"):
        build_experiment(raw(labeled, cohort={"manifest": str(labeled), "classes": ["a", "b"]}))


def test_features_are_computed_once_only_where_volumes_stay_the_same(project: Path, labeled: Path) -> None:
    frozen = {"freeze": {"layers": "all_but_head"}, "training": {"epochs": 1, "batch_size": 2}}
    for changes, once in (({}, True), (CHANGES, False)):
        teller = Teller()
        train(build_experiment(raw(labeled, augmentation=changes, **frozen)), session(project, teller))
        assert any("computed once" in line for line in teller.sentences) == once


def test_volumes_of_another_cohort_are_scored_by_the_names_of_their_labels(project: Path, labeled: Path) -> None:
    run = train(build_experiment(raw(labeled, training={"epochs": 1, "batch_size": 2})), session(project)).run
    cohort = read_manifest(labeled)

    def truth(name: str, given: dict[str, str] | None = None, **changes: object) -> list[object]:
        path = project / f"{name}.csv"
        write_manifest(replace(cohort, name=name, **changes), path)
        done = evaluate_by_task(EvaluateRequest(run=run.id, cohort=path, labels=given), session(project))
        assert isinstance(done, EvaluatedScores)
        return [row["truth"] for row in done.rows]

    turned = tuple(replace(case, label=1 - int(case.label or 0)) for case in cohort.cases)
    own = truth("own")
    assert truth("turned", cases=turned, label_classes=("Right", "Left")) == own
    assert truth("bare", label_classes=()) == own
    assert truth("given", {"0": "right", "1": "left"}, cases=turned, label_classes=()) == own
    with pytest.raises(CohortError, match="neither names nor number say which is which"):
        truth("wrong", label_classes=("right", "wrong"))
