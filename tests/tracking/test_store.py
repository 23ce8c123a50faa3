import logging
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dmx.errors import RunError
from dmx.tracking.catalog import when
from dmx.tracking.mlflow_store import MlflowStore, open_store
from dmx.tracking.pictures import save_figure
from dmx.tracking.store import CheckpointModel, CohortInput, MetricPoint, RunInfo, StoreRefusedError


@pytest.fixture
def info(store: MlflowStore) -> RunInfo:
    return store.create_run("study", name="first-train-1", tags={"dmx.kind": "train"})


def test_a_run_is_where_the_project_is(store: MlflowStore, info: RunInfo, project: Path) -> None:
    assert info.status == "RUNNING"
    assert info.kind == "train"
    assert store.local_artifacts(info.id) == project / "mlruns" / "artifacts" / "study" / info.id / "artifacts"
    assert store.get_run(info.id) == info
    with closing(sqlite3.connect(project / "mlruns" / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_an_inherited_run_captures_nothing(store: MlflowStore, info: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", info.id)
    other = store.create_run("study", name="second", tags={})
    store.log_metrics(other.id, [MetricPoint("loss", 1.0, 1, 1)])
    assert other.id != info.id
    assert store.get_run(info.id).metrics == {}


def test_metrics_sent_twice_are_stored_once(store: MlflowStore, info: RunInfo) -> None:
    points = [MetricPoint("loss", 1 / step, step, 1000 + step) for step in range(1, 700)]
    store.log_metrics(info.id, points)
    store.log_metrics(info.id, points)
    assert store.metric_history(info.id, "loss") == points


def test_a_param_never_changes(store: MlflowStore, info: RunInfo) -> None:
    params = {f"p{number}": str(number) for number in range(200)}
    store.log_params(info.id, params)
    store.log_params(info.id, params)
    assert store.get_run(info.id).params == params
    with pytest.raises(StoreRefusedError, match="not allowed"):
        store.log_params(info.id, {"p1": "other"})


def test_tags_are_set_and_removed(store: MlflowStore, info: RunInfo) -> None:
    store.set_tags(info.id, {"a": "1", "b": "2"})
    store.set_tags(info.id, {"a": None, "never": None})
    tags = store.get_run(info.id).tags
    assert "a" not in tags
    assert tags["b"] == "2"


def test_a_cohort_is_an_input_in_each_context(store: MlflowStore, info: RunInfo) -> None:
    for context in ("training", "validation", "training"):
        store.log_cohort(
            info.id, CohortInput(name="c", digest="d" * 32, context=context, source="m.csv", summary={"cases": 3})
        )
    inputs = store._client.get_run(info.id).inputs.dataset_inputs
    assert sorted(item.tags[0].value for item in inputs) == ["training", "validation"]
    assert all(len(item.dataset.digest) <= 36 and item.dataset.digest.startswith("ddd") for item in inputs)
    assert inputs[0].dataset.profile == '{"cases": 3}'


def test_models_stand_for_checkpoints_without_doubling_metrics(store: MlflowStore, info: RunInfo) -> None:
    store.log_metrics(info.id, [MetricPoint("val/dice", step / 10, step, step) for step in (5, 10)])
    model = CheckpointModel(path="checkpoints/step_000000005", step=5, names=("best",))
    store.log_checkpoints(info.id, [model])
    store.log_checkpoints(info.id, [model])
    (logged,) = store._client.search_logged_models([info.experiment_id])
    assert logged.tags["dmx.checkpoint"] == model.path
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("val/dice", 0.5)]
    assert len(store.metric_history(info.id, "val/dice")) == 2
    run = store._client.get_run(info.id)
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    assert not run.inputs.model_inputs
    store.delete_artifacts(info.id, model.path)
    assert not store._client.search_logged_models([info.experiment_id])


def test_files_go_and_come(store: MlflowStore, info: RunInfo, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    store.upload(info.id, tmp_path / "a.txt", "deep/er")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.txt").write_text("b")
    store.upload(info.id, tmp_path / "folder", "checkpoints/step_000000001")
    assert sorted(store.list_artifacts(info.id)) == ["checkpoints", "deep"]
    assert store.download(info.id, "deep/er/a.txt", tmp_path / "back").read_text() == "a"
    store.delete_artifacts(info.id, "checkpoints/step_000000001")
    store.delete_artifacts(info.id, "checkpoints/step_000000001")
    assert store.list_artifacts(info.id, "checkpoints") == []


def test_a_picture_of_a_step_is_stored_once(store: MlflowStore, info: RunInfo, tmp_path: Path) -> None:
    save_figure(Figure(figsize=(1, 1)), tmp_path / "x.png")
    for step in (1, 10, 1):
        store.log_image(info.id, tmp_path / "x.png", key="validation/a", point=(step, 5))
    names = store.list_artifacts(info.id, "images")
    assert len([name for name in names if name.endswith(".png")]) == 2


def test_the_status_comes_back_after_an_end(store: MlflowStore, info: RunInfo) -> None:
    store.set_status(info.id, "KILLED")
    assert store.get_run(info.id).ended is not None
    store.set_status(info.id, "RUNNING")
    assert store.get_run(info.id).status == "RUNNING"


def test_runs_are_found_by_what_a_person_types(store: MlflowStore, info: RunInfo) -> None:
    time.sleep(0.002)
    second = store.create_run("study", name="second", tags={"dmx.kind": "predict"})
    store.create_run("study", name="foreign", tags={})
    assert store.find_run(info.id).id == info.id
    assert store.find_run("study/first-train-1").id == info.id
    assert store.find_run("study/second").id == second.id
    prefix = next(info.id[:n] for n in range(1, 33) if not second.id.startswith(info.id[:n]))
    assert store.find_run(prefix).id == info.id
    assert [run.name for run in store.list_runs()] == ["second", "first-train-1"]
    assert [run.name for run in store.list_runs(tags={"dmx.kind": "train"})] == ["first-train-1"]
    assert len(store.list_runs(limit=1)) == 1
    assert store.list_runs(experiment="other") == []


def test_the_last_run_is_the_last_that_holds_a_network(store: MlflowStore, info: RunInfo) -> None:
    for kind in ("evaluate", "predict", "activations", "ablate", "probe"):
        time.sleep(0.002)
        used = store.create_run("study", name=kind, tags={"dmx.kind": kind})
        assert store.find_run("study/last").id == info.id
        assert store.find_run(f"study/{kind}").id == store.find_run(used.id).id == used.id
    for kind in ("finetune", "transfer", "import", "train"):
        time.sleep(0.002)
        made = store.create_run("study", name=kind, tags={"dmx.kind": kind})
        time.sleep(0.002)
        store.create_run("study", name=f"{kind} used", tags={"dmx.kind": "predict"})
        assert store.find_run("study/last").id == made.id
    named = store.create_run("study", name="last", tags={"dmx.kind": "predict"})
    assert store.find_run("study/last").id == named.id


def test_an_experiment_without_a_network_says_so(store: MlflowStore) -> None:
    store.create_run("other", name="only", tags={"dmx.kind": "predict"})
    with pytest.raises(RunError, match=r"no run that holds a network.*'other/only'"):
        store.find_run("other/last")
    with pytest.raises(RunError, match="No run 'nowhere/last'"):
        store.find_run("nowhere/last")


def test_what_is_not_found_is_explained(store: MlflowStore) -> None:
    with pytest.raises(RunError, match="there is no run yet"):
        store.find_run("study/first")
    one, two = (store.create_run("study", name="same", tags={"dmx.kind": "train"}) for _ in range(2))
    with pytest.raises(RunError, match="names 2 runs") as error:
        store.find_run("study/same")
    assert one.id[:8] in str(error.value)
    assert two.id[:8] in str(error.value)
    assert "RUNNING" in str(error.value)
    assert when(one.started) in str(error.value)
    with pytest.raises(RunError, match="for example 'study/same'"):
        store.find_run("studie/same")
    with pytest.raises(RunError, match="not found"):
        store.find_run("0" * 32)


def test_an_experiment_in_the_trash_is_named(store: MlflowStore, info: RunInfo) -> None:
    store._client.delete_experiment(info.experiment_id)
    with pytest.raises(RunError, match="trash"):
        store.create_run("study", name="x", tags={})


def test_an_experiment_of_a_server_is_not_used_directly(store: MlflowStore) -> None:
    store._client.create_experiment("served", artifact_location="mlflow-artifacts:/7")
    with pytest.raises(RunError, match="made through a server"):
        store.create_run("served", name="x", tags={})


def test_a_dead_server_is_one_short_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"^The run store http://anna:\*\*\*@127.0.0.1:9 does not answer\. Start it"):
        open_store("http://anna:secret@127.0.0.1:9")


def test_other_errors_become_sentences_too(remote: MlflowStore, info: RunInfo, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="failed in 'upload'"):
        remote.upload(info.id, tmp_path / "absent")


def test_mlflow_stays_quiet(store: MlflowStore) -> None:
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.INFO)


@pytest.mark.slow
def test_processes_that_start_together_share_a_fresh_store(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from dmx.tracking.mlflow_store import open_store
open_store(root=Path({str(tmp_path)!r})).create_run("study", name="x", tags={{"dmx.kind": "train"}})
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(open_store(root=tmp_path).list_runs(experiment="study")) == 3
