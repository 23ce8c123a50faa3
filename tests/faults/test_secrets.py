"""A password in an address, in an option or in the environment is in nothing that a run keeps or a command says."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmx.config.load import as_dict
from dmx.errors import RunError
from dmx.tracking.location import mask
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import NewRun, start_run
from tests.faults.world import World
from tests.workflows.conftest import settings

SECRET = "s3cr3t-Passw0rd"
OTHER = "An0ther-t0ken"
ADDRESSES = (
    f"http://anna:{SECRET}@127.0.0.1:9",
    f"https://anna:{SECRET}@127.0.0.1:9/mlflow",
    f"postgresql://anna:{SECRET}@127.0.0.1:9/mlflow",
    f"postgresql+psycopg2://anna:{SECRET}@127.0.0.1:9/mlflow?sslmode=disable",
    f"mysql+pymysql://anna:{SECRET}@127.0.0.1:9/mlflow",
    f"postgresql://127.0.0.1:9/mlflow?user=anna&password={SECRET}",
    f"http://anna:{SECRET}@[::1",
    f"magic://anna:{SECRET}@host",
    f"file://anna:{SECRET}@host/x",
    f"http://anna:a@b:{SECRET}@127.0.0.1:9",
)


def found(root: Path, *secrets: str) -> list[str]:
    """Return the files below a folder that hold a secret, by name or content."""
    places = []
    for path in root.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if any(secret.encode() in content or secret in path.name for secret in secrets):
            places.append(str(path.relative_to(root)))
    return places


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_password_is_masked_wherever_an_address_stands(address: str) -> None:
    for text in (address, f"({address})", f'{{"uri": "{address}", "mail": "x@y"}}', f"cannot reach {address}: a@b"):
        shown = mask(text)
        assert SECRET not in shown
        assert "***" in shown
    assert mask("https://docs.example.org/x and mail@example.org") == "https://docs.example.org/x and mail@example.org"


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_error_names_the_store_without_its_password(world: World, address: str) -> None:
    done = world.call("runs", "list", "--store", address)
    assert done.code == 2, done.crash
    assert SECRET not in done.out + done.err
    assert "store" in done.err


def test_a_run_keeps_no_password(
    world: World, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Train as somebody does whose server wants a password; the runs go to a file, so that every byte can be read."""
    root = here / "project"
    (root / "mlruns").mkdir(parents=True)
    shutil.copy(world.database, root / "mlruns/mlflow.db")
    address = f"http://anna:{SECRET}@tracking.example.org"
    small = settings(
        world.manifest,
        training={"epochs": 1, "steps_per_epoch": 1, "batch_size": 2},
        validation={"segments": 2, "volumes_every_epochs": 0, "overlays": 0},
        tracking={"uri": address},
    )
    # It stands in the description as well, where a person may have pasted it.
    text = yaml.safe_dump({**as_dict(small), "description": f"runs are at {address}"})
    (root / "x.yaml").write_text(text)
    # Beside the project, an uncommitted change: what git shows of it is kept as a file of the run.
    commands = ("init -q .", "add -A .", "-c user.name=a -c user.email=b commit -q --no-gpg-sign -m x --no-verify")
    (root / "notes.txt").write_text("nothing\n")
    (root / ".gitignore").write_text("x.yaml\nmlruns\n")
    for words in commands:
        subprocess.run(["git", *words.split()], cwd=root, check=True, capture_output=True)
    (root / "notes.txt").write_text(f"the server is {address}\n")
    opened = []

    def store(uri: str | None = None, folder: Path | None = None) -> Any:
        opened.append(uri)
        return open_store(f"sqlite:///{root}/mlruns/mlflow.db")

    for name in ("TRACKING_PASSWORD", "TRACKING_TOKEN"):
        monkeypatch.setenv(f"MLFLOW_{name}", OTHER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", OTHER)
    monkeypatch.setattr("dmx.workflows.train.open_store", store)
    done = World(root).call("train", root / "x.yaml", "--set", f"tracking.uri={address}", "--name", "kept")
    assert done.code == 0, done.err + done.crash
    assert address in opened
    shown = done.out + done.err + "".join(capfd.readouterr())
    assert SECRET not in shown
    assert "anna:***@" in shown
    places = found(root, SECRET, OTHER)
    assert sorted(places) == ["notes.txt", "x.yaml"]
    kept = list((root / "mlruns").rglob("git.diff"))
    assert "anna:***@" in kept[0].read_text()


def test_the_reason_of_a_failure_is_kept_without_a_password(world: World, here: Path) -> None:
    said: list[str] = []
    store = open_store(root=world.root)
    new = NewRun(experiment="secrets", kind="train", words="x", note=f"at http://anna:{SECRET}@host/x")
    with suppress(RunError), start_run(store, new, root=here, notify=said.append) as run:
        run.log_params({"address": f"http://anna:{SECRET}@host/x"})
        run.log_line(f"http://anna:{SECRET}@host/x")
        run.log_text("a.json", f'{{"a": "http://anna:{SECRET}@host/x"}}')
        raise RunError(f"The run store http://anna:{SECRET}@host/x is gone.")
    kept = store.get_run(run.info.id)
    assert kept.params["address"] == "http://anna:***@host/x"
    assert kept.tags["dmx.end_reason"].startswith("The run store http://anna:***@host/x")
    assert not found(here, SECRET)
    assert SECRET.encode() not in world.database.read_bytes()


def test_the_process_list_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from dmx.tracking import ui

    started: list[list[str]] = []

    def popen(command: list[str], **words: Any) -> None:
        started.append(command)
        raise OSError

    monkeypatch.setattr(ui.subprocess, "Popen", popen)
    with pytest.raises(OSError), ui.serving(f"postgresql://anna:{SECRET}@host/db", 5000):  # noqa: PT011  (ours)
        pass
    assert started
    assert not any(SECRET in word for word in started[0])


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start a real server that wants a name and a password."""
    from dmx.tracking.ui import _end, free_port

    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/users.db\nadmin_username = anna\nadmin_password = {SECRET}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    port = free_port(5600)
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    variables = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "not guessed",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(process)


def _wait(address: str) -> bool:
    from urllib.request import urlopen

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with suppress(OSError), urlopen(f"{address}/health", timeout=2):
            return True
        time.sleep(0.5)
    return False


@pytest.mark.slow
def test_a_server_with_passwords_is_used_and_a_wrong_one_is_one_sentence(
    world: World, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    with server(here) as address:
        assert _wait(address), (here / "server.log").read_text()[-2000:]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        trained = world.call("train", world.experiment, "--set", f"tracking.uri={address}", "--name", "kept")
        assert trained.code == 0, trained.err + trained.crash
        shown = world.call("runs", "show", "balls/kept", "--store", address)
        assert "checkpoints" in shown.out, shown.err
        for name, password in (("anna", OTHER), ("nobody", SECRET)):
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            refused = world.call("runs", "list", "--store", address)
            assert refused.code == 2, refused.crash
            assert len(refused.err.strip().splitlines()) == 1
            assert "password" in refused.err
            assert OTHER not in refused.err
    assert not found(world.root / "mlruns", SECRET, OTHER)
