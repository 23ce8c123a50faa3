"""Each session of a run keeps with what code, packages and hardware it was worked on."""

import json
import subprocess
from pathlib import Path

import pytest

from dmx.cli import runs as runs_command
from dmx.tracking import provenance
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.provenance import differences, read_sessions
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, session, settings
from tests.workflows.test_train import artifacts

SMALL = {
    "training": {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2},
    "validation": {"segments": 4, "volumes_every_epochs": 0, "overlays": 0},
}


def git(folder: Path, *words: str) -> None:
    person = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *person, *words], cwd=folder, check=True, capture_output=True)


def test_a_resume_with_other_code_and_packages_is_recorded_and_said_once(
    project: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = project / "network.py"
    code.write_text("width = 1\n")
    git(project, "init")
    git(project, "add", "network.py")
    git(project, "commit", "-m", "one")
    run = train(settings(manifest, **SMALL), session(project, Teller(stop_after=1))).run
    first, second, third = Teller(stop_after=2), Teller(stop_after=3), Teller()
    # Nothing has changed.
    resume(run.id, session(project, first))
    code.write_text("width = 2\n")
    git(project, "commit", "-am", "two")
    code.write_text("width = 3\n")
    monkeypatch.setattr(provenance.psutil, "cpu_count", lambda logical=True: 99)
    monkeypatch.setattr("torch.__version__", "9.9.9")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    resume(run.id, session(project, second))
    resume(run.id, session(project, third))
    said = [[s for s in teller.sentences if "goes on with other" in s] for teller in (first, second, third)]
    assert [len(sentences) for sentences in said] == [0, 1, 0]
    assert "Session 2 of the run" in said[1][0]
    for part in ("commit ", "other uncommitted changes", "→ 9.9.9", "→ 99"):
        assert part in said[1][0]
    store = open_store(root=project)
    info = store.get_run(run.id)
    records = read_sessions(store, info)
    assert [record["session"] for record in records] == [0, 1, 2, 3]
    assert [record["dirty"] for record in records] == [False, False, True, True]
    assert [record["job"] for record in records] == ["", "", "slurm 77", "slurm 77"]
    assert len({record["commit"] for record in records}) == 2
    assert "+width = 3" in (artifacts(store, info) / "sessions/session_2.diff").read_text()
    assert not (artifacts(store, info) / "sessions/session_1.diff").exists()
    runs_command.show(run.id)
    shown = " ".join(capsys.readouterr().out.split())
    assert "sessions" in shown
    assert "torch 9.9.9" in shown
    assert "with uncommitted changes" in shown


def test_a_run_of_an_earlier_version_is_compared_by_what_it_kept(project: Path, manifest: Path) -> None:
    run = train(settings(manifest, **SMALL), session(project, Teller(stop_after=1))).run
    store = open_store(root=project)
    folder = artifacts(store, store.get_run(run.id))
    (folder / "sessions/session_0.json").unlink()
    kept = json.loads((folder / "environment.json").read_text())
    kept["packages"]["torch"] = "1.0.0"
    (folder / "environment.json").write_text(json.dumps(kept))
    teller = Teller()
    resume(run.id, session(project, teller))
    assert any("torch 1.0.0 →" in sentence for sentence in teller.sentences)


def test_what_is_no_record_is_left_out(project: Path, manifest: Path) -> None:
    run = train(settings(manifest, **SMALL), session(project, Teller(stop_after=1))).run
    store = open_store(root=project)
    info = store.get_run(run.id)
    (artifacts(store, info) / "sessions/session_0.json").write_text("[" * 100_000)
    (artifacts(store, info) / "sessions/session_1.json").write_text('{"session": "x"}')
    (artifacts(store, info) / "environment.json").write_text('{"packages": 1, "cpu": []}')
    assert [record["session"] for record in read_sessions(store, info)] == [0]
    assert differences({"torch": "1"}, {"numpy": "2"}) == []
