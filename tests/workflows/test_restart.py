"""Runs whose process was killed before their first checkpoint begin again from where they began."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

import dmx.workflows.transfer as transfers
from dmx.config.load import as_dict
from dmx.errors import CheckpointError, RunError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.process import process_of
from dmx.tracking.store import RunInfo
from dmx.training.events import TrainingStarted
from dmx.workflows.finetune import FinetuneRequest, finetune
from dmx.workflows.resume import Extension, resume
from dmx.workflows.session import Session
from dmx.workflows.train import train
from dmx.workflows.transfer import train_transferred, transfer, transfer_and_train
from tests.workflows.conftest import Teller, session, settings
from tests.workflows.test_train import artifacts, assert_same, final_state

# Each job runs in a process of its own that kills itself when the training begins, or a network is to be saved.
KILLED = """
import os, signal, sys
from pathlib import Path
import mlflow, torch
import dmx.workflows.transfer as transfers
from dmx.training.events import TrainingStarted
from dmx.workflows.session import Session
from tests.workflows.test_restart import JOBS

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

root = Path.cwd()
torch.set_num_threads(1)
session = Session(root=root, listeners=(lambda event: isinstance(event, TrainingStarted) and die(),))
transfers.saver = die
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        JOBS[name](root, session)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def experiment(root: Path, **sections: Any) -> dict[str, Any]:
    values = as_dict(
        settings(
            root / "cohort.csv",
            training={"epochs": 1},
            optimizer={"lr_scale": {"received": 0.1}},
            validation={"segments": 4, "volumes_every_epochs": 0},
        )
    )
    return {**values, "name": "second", "description": "again", "tracking": {"experiment": "balls"}, **sections}


def fine_tuned(root: Path, at: Any) -> RunInfo:
    path = root / "second.yaml"
    path.write_text(yaml.safe_dump(experiment(root)))
    request = FinetuneRequest(
        experiment=path, run="balls/source", checkpoint="epoch=0", keep_optimizer=True, allow_leak=True
    )
    return finetune(request, at).run


def moved(root: Path, at: Any) -> RunInfo:
    sources = {"source": {"run": "balls/last", "checkpoint": "epoch=0"}}
    values = experiment(root, transfer={"sources": sources, "head": "copy"})
    return transfer(values, at, path=root / "x.yaml", allow_leak=True).run


def moved_and_trained(root: Path, at: Any) -> RunInfo:
    rules = [{"network": "a", "source": "normal.*", "target": "normal.*"}]
    rules += [{"network": "file", "source": "fc.*", "target": "fc.*"}]
    sources = {"a": {"run": "balls/source"}, "file": {"file": "w.safetensors"}}
    values = experiment(root, transfer={"sources": sources, "map": rules})
    return transfer_and_train(values, at, path=root / "x.yaml", name=None, strict=False, allow_leak=True).run


def trained_after(root: Path, at: Any) -> RunInfo:
    return train_transferred(experiment(root), "balls/moved", at, path=root / "x.yaml").run


JOBS = {"finetune": fine_tuned, "transfer": moved, "transfer-and-train": moved_and_trained, "train": trained_after}


@pytest.fixture
def source(project: Path, manifest: Path) -> RunInfo:
    run = train(settings(manifest, training={"moving_average": None}), session(project), name="source").run
    folder = artifacts(open_store(root=project), run)
    state = final_state(open_store(root=project), run)["model"]
    assert isinstance(state, dict)
    save_file({name: tensor.clone() for name, tensor in state.items()}, project / "w.safetensors")
    assert folder.is_dir()
    return run


def kill(root: Path, *names: str) -> list[RunInfo]:
    """Begin jobs and kill them; return their runs, in the order of the names."""
    store = open_store(root=root)
    before = {run.id for run in store.list_runs()}
    top = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {top!r})\n{KILLED}", *names],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["9"] * len(names), done.stderr
    return sorted((run for run in store.list_runs() if run.id not in before), key=lambda run: run.started)


def contents(folder: Path) -> set[str]:
    """Return the artifacts of a run; MLflow's names of pictures hold the time."""
    return {str(path.relative_to(folder)).partition("+timestamp")[0] for path in folder.rglob("*") if path.is_file()}


def test_killed_runs_begin_again_and_become_what_they_would_have_been(project: Path, source: RunInfo) -> None:
    store = open_store(root=project)
    transferred = moved(project, session(project))
    store.set_tags(transferred.id, {"mlflow.runName": "moved"})
    killed = kill(project, "finetune", "transfer-and-train", "train")
    for run, job in zip(killed, (fine_tuned, moved_and_trained, trained_after), strict=True):
        assert (run.status, process_of(run.tags)) == ("RUNNING", "gone")
        assert not (artifacts(store, run) / "checkpoints").exists()
        wanted = store.get_run(job(project, session(project)).id)
        teller = Teller()
        assert resume(run.id, session(project, teller)).reason == "finished"
        found = store.get_run(run.id)
        assert_same(final_state(store, wanted), final_state(store, found))
        assert any("before its first checkpoint; it begins again from" in said for said in teller.sentences)
        assert found.status == "FINISHED"
        for key in ("dmx.optimizer_state", "dmx.source_run_id", "dmx.source_checkpoint", "dmx.source_sha256"):
            assert found.tags.get(key) == wanted.tags.get(key), key
        assert found.params == wanted.params
        again = {"sessions/session_1.json"}
        assert contents(artifacts(store, found)) == contents(artifacts(store, wanted)) | again
        begun = [said for said in teller.sentences if said.startswith("Optimizer")]
        assert len(begun) == 1
        teller = Teller()
        resume(run.id, session(project, teller))
        assert any("is complete: all epochs were done already" in said for said in teller.sentences)


def ended(root: Path, name: str, patch: pytest.MonkeyPatch) -> RunInfo:
    """Begin a job and end it at the same place by a signal that it can still note; return its run."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def when_it_trains(event: object) -> None:
        if isinstance(event, TrainingStarted):
            stop()

    with patch.context() as patched:
        patched.setattr(transfers, "saver", stop)
        with pytest.raises(KeyboardInterrupt):
            JOBS[name](root, Session(root=root, listeners=(when_it_trains,)))
    return open_store(root=root).find_run("balls/last")


def test_an_ended_transfer_saves_its_network_after_all(
    project: Path, source: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root=project)
    run = ended(project, "transfer", monkeypatch)
    assert run.status == "KILLED"
    with pytest.raises(RunError, match="not trained"):
        resume(run.id, session(project), extension=Extension(epochs=9, schedule="keep"))
    # By now 'balls/last' is another run: the source is the one with which it began.
    train(settings(project / "cohort.csv", training={"epochs": 1}), session(project))
    done = resume(run.id, session(project))
    assert done.reason == "transferred"
    found = store.get_run(run.id)
    assert found.tags["dmx.source_run_id"] == source.id
    assert found.tags["dmx.optimizer_state"] == "none: not trained"
    assert found.metrics["transfer/equivalence_error"] < 1e-5
    assert json.loads((artifacts(store, run) / "transfer/plan.json").read_text())["received"]
    assert json.loads((artifacts(store, run) / "checkpoints/step_000000000/checkpoint.json").read_text())["epoch"] == 0
    with pytest.raises(RunError, match="not trained"):
        resume(run.id, session(project))


def test_what_is_no_longer_there_cannot_be_begun_from(
    project: Path, source: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(root=project)
    run, other = (ended(project, name, monkeypatch) for name in ("finetune", "transfer-and-train"))
    (project / "w.safetensors").write_bytes((project / "w.safetensors").read_bytes()[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=r"w\.safetensors' with the SHA-256 .*was changed"):
        resume(other.id, session(project))
    path = run.tags["dmx.source_checkpoint"]
    tags = store.get_run(source.id).tags
    names = [key for key, value in tags.items() if key.startswith("dmx.checkpoint.") and value == path]
    store.set_tags(source.id, dict.fromkeys(names))
    with pytest.raises(RunError, match=r"checkpoints/step_000000004 of run 'balls/source', which is gone"):
        resume(run.id, session(project))
