import csv
import json
import time
from pathlib import Path

import pytest
import torch

from dmx.errors import CohortError, ConfigError, ModelError, RunError
from dmx.tracking import process
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunInfo, RunStore
from dmx.training.checkpoint import read_checkpoint
from dmx.training.events import Event, StepEnded
from dmx.workflows.resume import resume
from dmx.workflows.session import Session
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, session, settings


def artifacts(store: RunStore, run: RunInfo) -> Path:
    local = store.local_artifacts(run.id)
    assert local is not None
    return local


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def final_state(store: RunStore, run: RunInfo) -> dict[str, object]:
    folder = sorted((artifacts(store, run) / "checkpoints").glob("step_*"))[-1]
    return read_checkpoint(folder).as_state()


def assert_same(left: object, right: object, path: str = "state") -> None:
    """Compare nested states bit for bit; measured durations are no part of what is learned."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor)
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert isinstance(right, dict)
        assert left.keys() == right.keys(), path
        for key in left:
            if key not in {"seconds", "sampling"}:
                assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, (list, tuple)):
        assert isinstance(right, (list, tuple))
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    else:
        assert left == right, path


def test_a_training_is_one_complete_run(project: Path, manifest: Path) -> None:
    teller = Teller()
    done = train(settings(manifest), session(project, teller))
    store = open_store(root=project)
    run = store.get_run(done.run.id)
    folder = artifacts(store, run)
    assert run.status == "FINISHED"
    assert run.name == "multiscale-train-1"
    assert run.params["cohort"] == "balls"
    assert run.params["network.widths"] == "4,4"
    assert {"val/dice", "val_volume/dice", "train/loss", "lr"} <= run.metrics.keys()
    assert [point.step for point in store.metric_history(run.id, "train/loss")] == list(range(1, 9))
    assert len(rows(folder / "history/steps.csv")) == 8
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "environment.json", "cohort/manifest.csv", "cohort/check.json", "log.txt"} <= present
    assert {"figures/learning_rate.png", "validation/epoch_0001.csv"} <= present
    names = {key.removeprefix("dmx.checkpoint.") for key in run.tags if key.startswith("dmx.checkpoint.")}
    assert names == {"initial", "last", "best", "epoch:0", "epoch:1"}
    assert "Optimizer initialized. Uninitialized: yes. Reset requested: no." in teller.sentences
    assert str(project) not in (folder / "config.yaml").read_text()


def test_a_checkpoint_describes_itself(project: Path, manifest: Path) -> None:
    done = train(settings(manifest), session(project))
    store = open_store(root=project)
    folder = artifacts(store, done.run) / "checkpoints/step_000000008"
    described = json.loads((folder / "checkpoint.json").read_text())
    assert described["contract"]["channels"] == ["t1"]
    assert described["contract"]["classes"] == ["background", "ball"]
    assert described["model"]["normal"]["widths"] == [4, 4]
    assert described["global_step"] == 8
    assert described["epoch"] == 2
    assert described["metrics"]["val_volume/dice"] == store.get_run(done.run.id).metrics["val_volume/dice"]


@pytest.mark.parametrize("stop_after", [2, 4, 7])
def test_a_resumed_training_equals_an_uninterrupted_one(project: Path, manifest: Path, stop_after: int) -> None:
    store = open_store(root=project)
    whole = train(settings(manifest), session(project)).run
    parted = train(settings(manifest), session(project, Teller(stop_after=stop_after)))
    assert parted.reason == "stopped"
    assert store.get_run(parted.run.id).status == "KILLED"
    part_way = final_state(store, parted.run)
    assert resume(parted.run.id, session(project)).reason == "finished"
    run = store.get_run(parted.run.id)
    assert run.status == "FINISHED"
    assert run.tags["dmx.optimizer_state"] == "restored: resumed"
    assert_same(final_state(store, whole), final_state(store, run))
    with pytest.raises(AssertionError):
        assert_same(final_state(store, whole), part_way)
    for key in ("train/loss", "val/dice", "val/loss", "epoch"):
        left, right = (store.metric_history(one.id, key) for one in (whole, run))
        assert [(p.step, p.value) for p in left] == [(p.step, p.value) for p in right], key
    left, right = (rows(artifacts(store, one) / "history/steps.csv") for one in (whole, run))
    assert [row["loss"] for row in left] == [row["loss"] for row in right]


def test_a_damaged_checkpoint_is_skipped_and_named(project: Path, manifest: Path) -> None:
    parted = train(settings(manifest), session(project, Teller(stop_after=6)))
    folder = artifacts(open_store(root=project), parted.run) / "checkpoints/step_000000006/model.safetensors"
    data = bytearray(folder.read_bytes())
    data[-1] ^= 1
    folder.write_bytes(data)
    teller = Teller()
    resume(parted.run.id, session(project, teller))
    assert any(
        "step_000000006 is skipped" in sentence and "model.safetensors" in sentence for sentence in teller.sentences
    )
    assert any("goes on after step 4" in sentence for sentence in teller.sentences)


def test_workers_do_not_change_what_is_learned(project: Path, manifest: Path) -> None:
    store = open_store(root=project)
    alone, helped = (
        train(settings(manifest, sampling={"workers": workers}), session(project)).run for workers in (0, 2)
    )
    assert_same(final_state(store, alone), final_state(store, helped))
    other = train(settings(manifest, training={"epochs": 1}), session(project)).run
    assert final_state(store, other)["training"] != final_state(store, alone)["training"]


def test_a_complete_run_has_nothing_left_to_train(project: Path, manifest: Path) -> None:
    done = train(settings(manifest), session(project))
    teller = Teller()
    assert resume(done.run.id, session(project, teller)).reason == "finished"
    assert any("nothing is left to train" in sentence for sentence in teller.sentences)


def test_a_training_that_was_taken_over_ends_and_leaves_the_run_alone(
    project: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "BEAT_SECONDS", 0.05)
    teller, steps = Teller(), []

    def listen(event: Event) -> None:
        if isinstance(event, StepEnded):
            steps.append(event.global_step)
            store = open_store(root=project)
            (run,) = store.list_runs()
            store.set_tags(run.id, {"dmx.host": "other", "dmx.pid": "1"})
            time.sleep(1.0)

    with pytest.raises(RunError, match="was taken over by process 1 on other"):
        train(settings(manifest), Session(root=project, report=teller, listeners=(listen,)))
    assert len(steps) < 4
    (run,) = open_store(root=project).list_runs()
    assert (run.status, run.tags["dmx.host"]) == ("RUNNING", "other")


def test_a_run_in_the_trash_is_not_called_complete(project: Path, manifest: Path) -> None:
    teller = Teller()

    def listen(event: Event) -> None:
        if isinstance(event, StepEnded) and event.global_step == 1:
            store = open_store(root=project)
            store._client.delete_run(store.list_runs()[0].id)  # type: ignore[attr-defined]

    done = train(settings(manifest), Session(root=project, report=teller, listeners=(listen,)))
    assert not done.delivered
    assert any("is in the trash" in sentence and "dmx runs sync" in sentence for sentence in teller.sentences)


def test_a_run_that_ended_early_is_complete_and_trains_no_epoch_more(project: Path, manifest: Path) -> None:
    early = {"training": {"epochs": 9}, "optimizer": {"lr": 1e-9}, "checkpoints": {"early_stopping": 1}}
    ended = train(settings(manifest, **early), session(project))
    assert ended.reason == "early_stopping"
    store = open_store(root=project)
    before = [point.step for point in store.metric_history(ended.run.id, "epoch")]
    for _ in range(2):
        teller = Teller()
        assert resume(ended.run.id, session(project, teller)).reason == "early_stopping"
        assert any("is complete: no improvement" in sentence for sentence in teller.sentences)
    # A process that was killed after its last checkpoint and before it could say so.
    store.set_status(ended.run.id, "KILLED")
    teller = Teller()
    assert resume(ended.run.id, session(project, teller)).reason == "early_stopping"
    assert any("It had ended early already" in sentence for sentence in teller.sentences)
    assert [point.step for point in store.metric_history(ended.run.id, "epoch")] == before
    assert store.get_run(ended.run.id).status == "FINISHED"


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"cohort": {"channels": ["t2"]}}, ConfigError, "names 't2', the manifest has t1"),
        ({"cohort": {"classes": ["background"]}}, ConfigError, "at least two classes"),
        ({"cohort": {"classes": ["background", "b#1"]}}, ConfigError, "b_1"),
        ({"cohort": {"labels": {1: 5}}}, CohortError, "labels 0 to 1 after cohort.labels was applied, got 1"),
        ({"sampling": {"segment": 3}}, ModelError, "at least 5x5x5"),
        ({"checkpoints": {"best_metric": "test/dice"}}, ConfigError, "val_volume/"),
        ({"training": {"device": "tpu"}}, ConfigError, "'tpu'"),
    ],
)
def test_what_can_be_known_is_said_before_a_run_exists(
    project: Path, manifest: Path, changes: dict[str, dict[str, object]], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        train(settings(manifest, **changes), session(project))
    assert open_store(root=project).list_runs() == []


def test_a_cohort_with_errors_does_not_train(project: Path, manifest: Path) -> None:
    (project / "scans/t1_1.nii.gz").write_bytes(b"no scan")
    with pytest.raises(CohortError, match="case_1"):
        train(settings(manifest), session(project))


def test_only_trainings_can_be_resumed(project: Path, manifest: Path) -> None:
    with pytest.raises(RunError, match="balls/last"):
        resume("balls/last", session(project))


def test_pseudonyms_hide_subjects_in_everything_that_is_logged(project: Path, manifest: Path) -> None:
    done = train(settings(manifest, tracking={"pseudonyms": True}), session(project))
    folder = artifacts(open_store(root=project), done.run)
    texts = [path for path in folder.rglob("*") if path.suffix in {".csv", ".json", ".yaml", ".txt"}]
    assert texts
    for path in texts:
        assert "case_1" not in path.read_text(), path
    assert not [path for path in folder.rglob("*") if "case_3" in path.name]
