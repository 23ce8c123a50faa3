import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dmx
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.errors import CheckpointError, CohortError, RunError
from dmx.tracking.course import course
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.train import train
from dmx.workflows.trained import open_trained
from tests.api.conftest import changed, small, state, volumes
from tests.workflows.conftest import Teller, session, settings


@pytest.fixture
def source(project: Path, manifest: Path) -> str:
    return train(settings(manifest), session(project)).run.id


def weights(project: Path, run: str, checkpoint: str | None = None) -> dict[str, Tensor]:
    return state(open_trained(open_store(root=project), run, checkpoint=checkpoint, root=project).network)


def test_a_network_comes_out_of_its_run_however_that_is_named(project: Path, source: str) -> None:
    for name in (source, f"runs:/{source}", source[:6], "balls/last"):
        model = dmx.load_model(name)
        assert not model.training
        assert not changed(model, weights(project, source))
    first = dmx.load_model(source, checkpoint="initial", store=project / "mlruns")
    assert not changed(first, weights(project, source, "initial"))
    assert changed(first, weights(project, source))


def test_weights_go_into_a_network_that_fits_and_into_no_other(project: Path, source: str) -> None:
    fresh = dmx.load_model(source, checkpoint="initial")
    assert dmx.load_model(source, into=fresh) is fresh
    assert not changed(fresh, weights(project, source))
    other = small()
    before = state(other)
    with pytest.raises(CheckpointError, match=r"conv1.weight is missing; .* and \d+ more.*dmx.plan_transfer"):
        dmx.load_model(source, into=other)
    assert not changed(other, before)


@pytest.mark.parametrize("name", ["runs:/a/b", "runs:/", "", 3])
def test_what_names_no_run_is_one_sentence(project: Path, name: str) -> None:
    with pytest.raises(RunError, match="A run is named as"):
        dmx.load_model(name)


def test_fine_tuning_from_a_mapping_is_a_run_that_names_its_source(project: Path, source: str, manifest: Path) -> None:
    words = {
        "name": "second",
        "cohort": {"manifest": manifest.name},
        "sampling": {"segment": 11, "workers": 0},
        "training": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4},
        "validation": {"segments": 20, "volumes_every_epochs": 0},
        "freeze": {"normal": [1]},
    }
    done = dmx.finetune(source, words, overrides=["training.epochs=1"], allow_leak=True, name="tuned")
    assert done.run is not None
    run = open_store(root=project).get_run(done.run.id)
    assert (run.kind, run.name, run.tags["dmx.source_run_id"]) == ("finetune", "tuned", source)
    assert [len(steps) for steps in done.history.step_loss] == [3]
    assert not changed(done.model, weights(project, run.id))
    assert words["training"]["epochs"] == 2
    longer = dmx.resume(run.id, epochs=2, schedule="restart")
    assert [len(steps) for steps in longer.history.step_loss] == [3, 3]
    assert longer.history.step_loss[0] == done.history.step_loss[0]
    with pytest.raises(dmx.DmxError, match="belong together"):
        dmx.resume(run.id, epochs=3)


def test_predicting_and_scoring(project: Path, source: str) -> None:
    found = dmx.predict(source, "cohort.csv", "out", split="evaluation", settings={"overlap": 0.0})
    assert len(found.rows) == 2
    assert len(list((project / "out").glob("*.nii.gz"))) == 2
    scored = dmx.evaluate(source)
    assert len(scored.rows) == 2
    with pytest.raises(dmx.DmxError, match="overlapp"):
        dmx.evaluate(source, settings={"overlapp": 0.5})


def test_the_history_has_every_step_of_an_interrupted_and_resumed_run(project: Path, manifest: Path) -> None:
    parted = train(settings(manifest), session(project, Teller(stop_after=6))).run.id
    before = dmx.history(parted)
    assert [len(steps) for steps in before.step_loss] == [4, 2]
    assert len(before.epoch_loss) == 1
    done = dmx.resume(parted)
    assert [len(steps) for steps in done.history.step_loss] == [4, 4]
    assert done.history.step_loss[0] == before.step_loss[0]
    assert len(done.history.score_validation) == 2
    assert done.history.score_train == []


def test_a_run_without_a_history_says_so(project: Path, source: str) -> None:
    scored = dmx.evaluate(source)
    with pytest.raises(RunError, match="has no history"):
        dmx.history(scored.run.id)


def test_a_score_that_is_missing_in_an_epoch_is_none() -> None:
    epochs = [{"epoch": 0.0, "train/mean_loss": 2.0}, {"epoch": 1.0, "train/mean_loss": 1.0, "val/accuracy": 0.5}]
    found = course(epochs, [{"epoch": 0.0, "loss": 2.0}, {"epoch": 1.0, "loss": 1.0}], task="classification")
    assert found["score_validation"] == [None, 0.5]
    assert found["score_train"] == []
    running = [{**row, "train/accuracy": 0.9} for row in epochs]
    assert course(running, [], task="classification")["score_train"] == []


def test_the_store_may_be_an_address(project: Path, source: str) -> None:
    address = f"sqlite:///{project / 'mlruns' / 'mlflow.db'}"
    assert torch.is_tensor(next(dmx.load_model(source, store=address).parameters()))


def test_a_run_gives_to_a_network_of_dmx_which_a_manifest_trains_further(project: Path, source: str) -> None:
    target = dmx.load_model(source, checkpoint="initial")
    plan = dmx.plan_transfer("balls/last", target, head="copy", channels=("t1",), classes=("background", "ball"))
    assert plan.share == 1.0
    before = weights(project, source)
    assert not changed(plan.apply(target), before)
    words = {"sampling": {"segment": 11, "workers": 0}, "validation": {"every_epochs": 0, "volumes_every_epochs": 0}}
    head = torch.optim.Adam(target.get_submodule("head").parameters(), lr=0.01)
    done = dmx.train(
        target,
        "cohort.csv",
        epochs=1,
        optimizer=head,
        batch_size=2,
        settings={**words, "training": {"steps_per_epoch": 2}},
        store="mlruns",
    )
    assert changed(target, before)
    assert all(name.startswith("head.") for name in changed(target, before))
    assert done.run is not None
    assert not changed(dmx.load_model(done.run.id), state(target))
    with pytest.raises(dmx.DmxError, match=r"made in Python with torch's Adam"):
        dmx.resume(done.run.id, epochs=2, schedule="restart")
    three = {**words, "cohort": {"classes": ["background", "ball", "halo"]}}
    with pytest.raises(dmx.DmxError, match=r"reads 1 channels and scores 2 classes, the cohort has 1 .* and 3"):
        dmx.train(target, "cohort.csv", epochs=1, settings=three)


def test_weights_remember_where_they_come_from_in_a_new_network(project: Path) -> None:
    first = dmx.train(small(), volumes(), epochs=1, lr=0.01, store=project / "mlruns").run
    assert first is not None
    loaded = dmx.load_model(first.id, into=small(), store=project / "mlruns")
    model = copy.deepcopy(loaded)
    model.head = nn.Conv3d(4, 2, 1)
    done = dmx.train(model, volumes(), epochs=1, lr=0.01, store=project / "mlruns")
    assert done.run is not None
    store = open_store(root=project)
    run = store.get_run(done.run.id)
    parent = store.get_run(first.id)
    assert run.tags["dmx.source_run_id"] == run.tags["dmx.root_run_id"] == run.tags["mlflow.parentRunId"] == first.id
    assert run.tags["dmx.source_checkpoint"] == parent.tags["dmx.checkpoint.last"]
    assert run.tags["dmx.optimizer_state"] == "initialized: weights of another run"
    kept = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head"))
    assert run.params["network.received_parameters"] == str(kept)
    assert "dmx.source_changed" not in run.tags
    # The module has the weights of the run that has just trained it.
    again = dmx.train(model, volumes(), epochs=1, lr=0.01, store=project / "mlruns").run
    assert again is not None
    assert store.get_run(again.id).tags["dmx.source_run_id"] == done.run.id
    with torch.no_grad():
        loaded.conv1.weight += 1.0
    moved = dmx.train(loaded, volumes(), epochs=1, lr=0.01, store=project / "mlruns").run
    assert moved is not None
    assert store.get_run(moved.id).tags["dmx.source_changed"] == "1"


def test_a_plan_that_was_applied_is_kept_by_the_run_that_trains(project: Path) -> None:
    first = dmx.train(small(), volumes(), epochs=1, lr=0.01, store=project / "mlruns").run
    assert first is not None
    target = small()
    plan = dmx.plan_transfer(dmx.load_model(first.id, into=small(), store=project / "mlruns"), target)
    plan.apply(target)
    done = dmx.train(target, volumes(), epochs=1, lr=0.01, store=project / "mlruns").run
    assert done is not None
    store = open_store(root=project)
    run, folder = store.get_run(done.id), store.local_artifacts(done.id)
    assert run.tags["dmx.source_run_id"] == first.id
    assert run.params["transfer.received"] == str(plan.received)
    assert folder is not None
    assert (folder / "transfer/plan.json").is_file()
    assert (folder / "transfer/mapping.csv").is_file()
    weights = project / "w.safetensors"
    dmx.export(first.id, weights, store=project / "mlruns")
    other = small()
    dmx.plan_transfer(weights, other).apply(other)
    from_file = dmx.train(other, volumes(), epochs=1, lr=0.01, store=project / "mlruns").run
    assert from_file is not None
    assert store.get_run(from_file.id).tags["dmx.source_file"] == "w.safetensors"


def test_cases_that_the_source_has_seen_do_not_validate_a_module(project: Path, source: str, manifest: Path) -> None:
    model = dmx.load_model(source, store=project / "mlruns")
    cohort = read_manifest(manifest)
    turned = {"training": "validation", "validation": "training"}
    cases = tuple(replace(case, split=turned.get(case.split, case.split)) for case in cohort.cases)
    write_manifest(replace(cohort, cases=cases), project / "turned.csv")
    quick = {"training": {"steps_per_epoch": 1, "batch_size": 2}, "sampling": {"segment": 11, "workers": 0}}
    with pytest.raises(CohortError, match="--allow-leak"):
        dmx.train(model, project / "turned.csv", epochs=1, settings=quick, store=project / "mlruns")
    assert len(open_store(root=project).list_runs()) == 1
