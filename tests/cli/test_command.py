"""The command as a person uses it, in a process of its own where the exit code counts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dmx.config.load import as_dict
from dmx.tracking.mlflow_store import open_store
from tests.workflows.conftest import settings


def dmx(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dmx", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def experiment(project: Path, manifest: Path) -> Path:
    path = project / "balls.yaml"
    path.write_text(yaml.safe_dump(as_dict(settings(manifest))))
    return path


def test_help_names_every_command(tmp_path: Path) -> None:
    done = dmx("--help", folder=tmp_path)
    assert done.returncode == 0
    for name in ("train", "resume", "predict", "evaluate", "cohort", "model", "config", "runs", "ui"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("train", "missing.yaml"), "'missing.yaml' does not exist"),
        (("train", "balls.yaml", "--set", "training.epoch=1"), "Did you mean 'epochs'?"),
        (("resume", "balls/last"), "balls"),
        (("predict", "scans/t1_0.nii.gz", "--from-run", "x", "-o", "out"), "'x'"),
        (("runs", "show", "nobody"), "nobody"),
        (("model", "show", "balls.yaml", "--segment", "2"), "too small"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    project: Path, experiment: Path, words: tuple[str, ...], part: str
) -> None:
    done = dmx(*words, folder=project)
    assert done.returncode == 2, done.stderr
    assert part in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_from_training_to_scores(project: Path, experiment: Path) -> None:
    trained = dmx("train", experiment, "--name", "first", "--set", "training.steps_per_epoch=20", folder=project)
    assert trained.returncode == 0, trained.stderr
    assert "Epoch 1 ended" in trained.stdout
    assert "dmx predict --from-run" in trained.stdout
    scored = dmx("evaluate", "--from-run", "balls/first", folder=project)
    assert scored.returncode == 0, scored.stderr
    assert "Dice" in scored.stdout
    listed = dmx("runs", "list", folder=project)
    assert "balls/first" in listed.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(project: Path, experiment: Path, number: int, code: int) -> None:
    command = [sys.executable, "-m", "dmx", "train", "balls.yaml", "--set", "training.steps_per_epoch=100000"]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    store = open_store(root=project)
    deadline = time.monotonic() + 120
    history = None
    while not (history and history.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
        history = next(iter((project / "mlruns/artifacts").rglob("steps.csv")), None)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    run = store.find_run("balls/last")
    assert run.status == "KILLED"
    assert f"dmx resume {run.id[:8]}" in out
    resumed = dmx("runs", "show", run.id[:8], folder=project)
    assert "last" in resumed.stdout


def test_settings_are_shown_as_yaml_that_reads_back(project: Path, experiment: Path) -> None:
    shown = dmx("config", "show", experiment, "--set", "seed=7", folder=project)
    assert yaml.safe_load(shown.stdout)["seed"] == 7
    assert dmx("config", "schema", folder=project).stdout.startswith("{")
