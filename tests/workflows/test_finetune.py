import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import read_grid, read_volume, write_volume
from dmx.config.load import as_dict
from dmx.errors import CohortError, ConfigError, ModelError, RunError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import checkpoint_path
from dmx.training.checkpoint import read_checkpoint
from dmx.training.events import StepEnded
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.finetune import FinetuneRequest, finetune, settings_for
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from dmx.workflows.trained import open_trained
from tests.workflows.conftest import Teller, session, settings
from tests.workflows.test_train import assert_same, final_state


@pytest.fixture
def source(project: Path, manifest: Path) -> str:
    return train(settings(manifest), session(project)).run.id


def experiment(project: Path, manifest: Path, **changes: object) -> Path:
    path = project / "second.yaml"
    raw = {
        "name": "second",
        "cohort": {"manifest": manifest.name},
        "sampling": {"segment": 11, "workers": 0},
        "training": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "validation": {"segments": 20, "volumes_every_epochs": 0},
    }
    path.write_text(yaml.safe_dump({**raw, **changes}))
    return path


def test_a_fine_tuning_begins_with_the_sources_weights_and_names_it(project: Path, source: str, other: Path) -> None:
    teller = Teller()
    request = FinetuneRequest(experiment=experiment(project, other), run=source, allow_leak=True)
    done = finetune(request, session(project, teller))
    store = open_store(root=project)
    run, parent = store.get_run(done.run.id), store.get_run(source)
    first = read_checkpoint(checkpoint_path(store, run, "initial", root=project)).model_state
    best = read_checkpoint(checkpoint_path(store, parent, "best", root=project)).prediction_state
    assert_same(dict(best), dict(first))
    assert run.kind == "finetune"
    assert run.tags["dmx.source_run_id"] == run.tags["dmx.root_run_id"] == source
    assert run.tags["dmx.optimizer_state"] == "initialized: reset requested by fine-tuning"
    assert run.params["source.checkpoint"] == "best"
    assert "Optimizer initialized. Uninitialized: no. Reset requested: yes." in teller.sentences
    steps = [event for event in teller.events if isinstance(event, StepEnded)]
    assert (steps[0].epoch, steps[0].global_step) == (0, 1)
    assert [step.lr for step in steps[:3]] == sorted(step.lr for step in steps[:3])
    assert steps[0].lr < 0.01
    folder = store.local_artifacts(run.id)
    assert folder is not None
    assert json.loads((folder / "config_diff.json").read_text())["optimizer.name"] == {"source": "adam", "here": "sgd"}


def test_the_parent_is_nested_where_both_are_in_one_experiment(project: Path, source: str, other: Path) -> None:
    request = FinetuneRequest(
        experiment=experiment(project, other, tracking={"experiment": "balls"}), run=source, allow_leak=True
    )
    done = finetune(request, session(project))
    assert open_store(root=project).get_run(done.run.id).tags["mlflow.parentRunId"] == source


def test_an_interrupted_fine_tuning_goes_on_without_a_second_reset(project: Path, source: str, other: Path) -> None:
    store = open_store(root=project)
    request = FinetuneRequest(experiment=experiment(project, other), run=source, allow_leak=True)
    whole = finetune(request, session(project)).run
    parted = finetune(request, session(project, Teller(stop_after=4))).run
    teller = Teller()
    resume(parted.id, session(project, teller))
    assert "Optimizer state restored. Uninitialized: no. Reset requested: no." in teller.sentences
    assert not any("initialized." in sentence for sentence in teller.sentences)
    assert_same(final_state(store, whole), final_state(store, store.get_run(parted.id)))


def initial(project: Path, run: str) -> dict[str, Any]:
    store = open_store(root=project)
    return read_checkpoint(checkpoint_path(store, store.get_run(run), "initial", root=project)).as_state()


def test_kept_moments_are_those_of_the_source_and_the_schedule_begins_anew(
    project: Path, source: str, other: Path
) -> None:
    store = open_store(root=project)
    path = experiment(project, other, optimizer={"name": "adam", "lr": 0.01})
    teller = Teller()
    request = FinetuneRequest(experiment=path, run=source, checkpoint="last", keep_optimizer=True, allow_leak=True)
    kept = finetune(request, session(project, teller)).run.id
    reset = finetune(replace(request, keep_optimizer=False), session(project)).run.id
    assert store.get_run(kept).tags["dmx.optimizer_state"] == "kept: --keep-optimizer"
    assert "Optimizer kept. Uninitialized: no. Reset requested: no." in teller.sentences
    theirs = final_state(store, store.get_run(source))
    assert_same(initial(project, kept)["training"]["optimizer"], theirs["training"]["optimizer"])  # type: ignore[index]
    assert_same(initial(project, kept)["model"], theirs["model"])
    with pytest.raises(AssertionError):
        assert_same(initial(project, reset)["training"]["optimizer"], theirs["training"]["optimizer"])  # type: ignore[index]
    steps = [event.lr for event in teller.events if isinstance(event, StepEnded)]
    assert steps[0] < steps[1] < steps[2]
    with pytest.raises(ConfigError, match="no optimizer state"):
        finetune(replace(request, checkpoint="initial"), session(project))


def test_a_checkpoint_is_named_by_its_epoch(project: Path, source: str, other: Path) -> None:
    store = open_store(root=project)
    teller = Teller()
    request = FinetuneRequest(experiment=experiment(project, other), run=source, checkpoint="epoch=0", allow_leak=True)
    run = store.get_run(finetune(request, session(project, teller)).run.id)
    theirs = read_checkpoint(checkpoint_path(store, store.get_run(source), "epoch=0", root=project))
    assert_same(initial(project, run.id)["model"], dict(theirs.prediction_state))
    assert (run.params["source.checkpoint"], run.params["source.epochs"], run.params["source.step"]) == (
        "epoch=0",
        "1",
        "4",
    )
    assert run.tags["dmx.source_checkpoint"] == "checkpoints/step_000000004"
    place = f"run balls/multiscale-train-1 ({source[:8]})"
    said = f"Fine-tuning from {place}, checkpoint 'epoch=0' after 1 epochs and 4 steps."
    assert said in teller.sentences
    folder = store.local_artifacts(run.id)
    assert folder is not None
    log = (folder / "log.txt").read_text()
    assert said in log
    assert "Optimizer initialized. Uninitialized: no. Reset requested: yes." in log
    with pytest.raises(RunError, match=r"no checkpoint 'epoch=7'. It has best, epoch=0, epoch=1, initial, last"):
        finetune(replace(request, checkpoint="epoch=7"), session(project))


def test_a_warm_up_is_the_default_and_can_be_turned_off(project: Path, source: str) -> None:
    store = open_store(root=project)
    trained = open_trained(store, source, checkpoint=None, root=project)
    raw = {"name": "x", "cohort": {"manifest": "cohort.csv"}}
    settled, notes = settings_for(raw, trained, path=project / "x.yaml")
    assert settled.schedule.warmup == 1.0
    assert any("schedule.warmup: 0" in note for note in notes)
    for given in (0, 2.5):
        settled, notes = settings_for({**raw, "schedule": {"warmup": given}}, trained, path=project / "x.yaml")
        assert settled.schedule.warmup == given
        assert notes == []
    exact = replace(trained, experiment=replace(trained.experiment, compatibility="deepmedic"))
    settled, notes = settings_for(raw, exact, path=project / "x.yaml")
    assert settled.schedule.warmup is None
    assert notes == []


def test_rates_and_the_pull_of_a_fine_tuning_are_params(project: Path, source: str, other: Path) -> None:
    path = experiment(
        project,
        other,
        optimizer={"name": "sgd", "lr_scale": {"received": 0.1, "fc": 1}},
        regularization={"l2_to_source": 0.01},
        freeze={"normal": [1]},
    )
    request = FinetuneRequest(experiment=path, run=source, allow_leak=True, strict=True)
    params = open_store(root=project).get_run(finetune(request, session(project)).run.id).params
    assert params["optimizer.lr_scale"].startswith("fc=1, received=0.1 (0.1 on ")
    assert params["regularization.l2_to_source"] == "0.01"
    assert params["schedule.warmup"] == "1.0"
    assert params["network.received_parameters"] == params["network.parameters"]
    assert params["freeze.normal"] == "1"


def test_another_number_of_channels_points_to_transfer(project: Path, source: str, other: Path) -> None:
    cohort = read_manifest(other)
    cases = tuple(replace(case, channels={**case.channels, "t2": case.channels["t1"]}) for case in cohort.cases)
    write_manifest(replace(cohort, channels=("t1", "t2"), cases=cases), other)
    with pytest.raises(ConfigError, match=r"2 channels \(t1, t2\).* has 1 .*dmx transfer"):
        finetune(FinetuneRequest(experiment=experiment(project, other), run=source), session(project))


def test_classes_in_another_order_are_paired_by_name(project: Path, source: str, other: Path) -> None:
    store = open_store(root=project)
    cohort = {"manifest": other.name, "classes": ["ball", "background"], "labels": {0: 1, 1: 0}}
    straight = FinetuneRequest(experiment=experiment(project, other), run=source, allow_leak=True)
    whole = finetune(straight, session(project)).run
    turned = finetune(replace(straight, experiment=experiment(project, other, cohort=cohort)), session(project)).run
    assert_same(final_state(store, whole), final_state(store, turned))


def test_another_number_of_classes_points_to_transfer(project: Path, source: str, other: Path) -> None:
    cohort = {"manifest": other.name, "classes": ["background", "ball", "halo"]}
    with pytest.raises(ConfigError, match=r"3 classes .* has 2 .*dmx transfer"):
        finetune(FinetuneRequest(experiment=experiment(project, other, cohort=cohort), run=source), session(project))


def test_another_network_points_to_transfer_and_other_dropout_does_not(
    project: Path, source: str, other: Path, manifest: Path
) -> None:
    model = as_dict(settings(manifest))["model"]
    wider = {**model, "fc": {**model["fc"], "widths": [8]}}
    with pytest.raises(ModelError, match="dmx transfer"):
        finetune(FinetuneRequest(experiment=experiment(project, other, model=wider), run=source), session(project))
    dropping = {**model, "fc": {**model["fc"], "dropout": 0.4}}
    request = FinetuneRequest(experiment=experiment(project, other, model=dropping), run=source, allow_leak=True)
    assert finetune(request, session(project)).reason == "finished"


def test_other_names_are_paired_and_said(project: Path, source: str, other: Path) -> None:
    teller = Teller()
    cohort = {"manifest": other.name, "classes": ["background", "tumor"]}
    request = FinetuneRequest(experiment=experiment(project, other, cohort=cohort), run=source, allow_leak=True)
    finetune(request, session(project, teller))
    assert any("ball → tumor" in sentence for sentence in teller.sentences)


def test_other_preprocessing_is_a_warning_with_both_values(project: Path, source: str, other: Path) -> None:
    teller = Teller()
    path = experiment(project, other, preprocess={"normalize": {"method": "none"}})
    finetune(FinetuneRequest(experiment=path, run=source, allow_leak=True), session(project, teller))
    assert any("method is none here and was zscore" in sentence for sentence in teller.sentences)
    store = open_store(root=project)
    run = store.find_run("second/last")
    assert run.params["preprocess.changed"] == "preprocess.normalize.method: zscore → none"
    folder = store.local_artifacts(run.id)
    assert folder is not None
    changed = json.loads((folder / "config_diff.json").read_text())
    assert changed["preprocess.normalize.method"] == {"source": "zscore", "here": "none"}


def test_scans_of_the_sources_training_do_not_validate(project: Path, source: str, other: Path) -> None:
    request = FinetuneRequest(experiment=experiment(project, other), run=source)
    with pytest.raises(CohortError, match=r"1 held-out cases .*b_case_0 \(same scan .*--allow-leak"):
        finetune(request, session(project))
    assert len(open_store(root=project).list_runs()) == 1


def test_an_evaluation_on_trained_cases_needs_leave(project: Path, source: str, manifest: Path) -> None:
    with pytest.raises(CohortError, match="--allow-leak"):
        evaluate(EvaluateRequest(run=source, split="training"), session(project))
    done = evaluate(EvaluateRequest(run=source, split="training", allow_leak=True), session(project))
    assert open_store(root=project).get_run(done.run.id).tags["dmx.leak"] == "3"
    clean = evaluate(EvaluateRequest(run=source, split="evaluation"), session(project))
    assert "dmx.leak" not in open_store(root=project).get_run(clean.run.id).tags


def test_a_run_whose_cases_changed_does_not_go_on(project: Path, manifest: Path) -> None:
    parted = train(settings(manifest), session(project, Teller(stop_after=5)))
    cohort = read_manifest(manifest)
    write_manifest(replace(cohort, cases=cohort.cases[1:]), manifest)
    with pytest.raises(CohortError, match="cannot go on exactly"):
        resume(parted.run.id, session(project))


def test_channels_in_another_order_are_paired_by_name(project: Path, manifest: Path) -> None:
    cohort = read_manifest(manifest)
    doubled = []
    for case in cohort.cases:
        scan = case.channels["t1"]
        assert scan is not None
        second = scan.with_name(scan.name.replace("t1", "t2"))
        write_volume(second, -read_volume(scan).array, read_grid(scan), dtype="float32")
        doubled.append(replace(case, channels={"t1": scan, "t2": second}))
    write_manifest(replace(cohort, channels=("t1", "t2"), cases=tuple(doubled)), manifest)
    source = train(settings(manifest), session(project)).run.id
    turned = tuple(replace(case, channels=dict(reversed(case.channels.items()))) for case in doubled)
    other = project / "turned.csv"
    write_manifest(replace(cohort, name="turned", channels=("t2", "t1"), cases=turned), other)
    done = finetune(
        FinetuneRequest(experiment=experiment(project, other), run=source, allow_leak=True), session(project)
    )
    store = open_store(root=project)
    contract = read_checkpoint(checkpoint_path(store, store.get_run(done.run.id), "last", root=project)).manifest
    assert contract["contract"]["channels"] == ["t1", "t2"]
    assert torch.is_tensor(final_state(store, done.run)["model"]["head.conv.weight"])  # type: ignore[index]
