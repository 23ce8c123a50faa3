import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import typer
from typer.testing import CliRunner, Result

from dmx.cli import runs as runs_command
from dmx.cli.ui import ui as ui_command
from dmx.errors import ConfigError, DmxError, RunError
from dmx.tracking import environment as surroundings
from dmx.tracking.compare import compare
from dmx.tracking.environment import environment, git_state
from dmx.tracking.lineage import Source, children, file_source_tags, source_tags
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.names import short_words
from dmx.tracking.privacy import Pseudonyms, relative, store_salt
from dmx.tracking.relocate import relocate
from dmx.tracking.session import ActiveRun, checkpoint_path
from dmx.tracking.store import RunInfo
from dmx.tracking.ui import free_port, serving

Begin = Callable[..., ActiveRun]
Now = Callable[[ActiveRun], RunInfo]


def test_a_moved_project_is_mended(begin: Begin, train: Any, now: Now, project: Path, tmp_path: Path) -> None:
    with begin() as run:
        train(run).start()
    run.store._client.create_experiment("far", artifact_location="s3://bucket/far")  # type: ignore[attr-defined]
    new = tmp_path / "new place"
    shutil.move(project, new)
    store = open_store(root=new)
    info = store.get_run(run.info.id)
    assert checkpoint_path(store, info, "initial", root=new).is_relative_to(new)
    assert relocate(new / "mlruns" / "mlflow.db") == 0
    shutil.move(new, project)
    assert relocate(project / "mlruns" / "mlflow.db") == 3
    shutil.move(project, new)
    with pytest.raises(RunError, match="There is no run store"):
        relocate(project / "mlruns" / "mlflow.db")


def test_a_comparison_shows_what_differs(begin: Begin, now: Now) -> None:
    found = []
    for rate, dice in ((1, 0.5), (2, 0.75)):
        with begin(params={"lr": rate, "seed": 0, **({"only": "here"} if rate == 2 else {})}) as run:
            run.log_metrics({"val/dice": dice}, 1)
        found.append(now(run))
    result = compare(found)
    assert [(row.name, row.values) for row in result.params] == [("lr", ("1", "2")), ("only", (None, "here"))]
    assert [(row.name, row.values) for row in result.metrics] == [("val/dice", (0.5, 0.75))]
    assert result.equal_params == 1


def test_lineage_names_parent_root_and_all_sources(begin: Begin, now: Now) -> None:
    with begin() as first:
        pass
    source = Source(run=now(first), checkpoint="checkpoints/step_000000005", sha256="ab")
    tags = source_tags([source], experiment="study")
    assert tags == {
        "dmx.source_run_id": first.info.id,
        "dmx.source_checkpoint": "checkpoints/step_000000005",
        "dmx.source_sha256": "ab",
        "dmx.root_run_id": first.info.id,
        "mlflow.parentRunId": first.info.id,
    }
    with begin(tags=tags, kind="predict") as second:
        pass
    small = Source(run=now(second), checkpoint="c", sha256="cd", share=0.25)
    tags = source_tags([small, source], experiment="elsewhere")
    assert "mlflow.parentRunId" not in tags
    assert tags["dmx.source_run_id"] == first.info.id
    assert source_tags([source, small], experiment="elsewhere")["dmx.source_run_id"] == first.info.id
    assert [item["share"] for item in json.loads(tags["dmx.sources"])] == [0.25, 1.0]
    assert source_tags([small], experiment="x")["dmx.root_run_id"] == first.info.id
    assert [run.id for run in children(first.store, now(first))] == [second.info.id]
    assert file_source_tags(Path("/home/anna/model.ckpt"), "ef")["dmx.source_file"] == "model.ckpt"


def test_words_are_cut_between_words() -> None:
    assert short_words("Hippocampus: two pathways, bf16 and more") == "hippocampus-two-pathways"
    assert short_words("x" * 40) == "x" * 28
    assert short_words("§!") == "run"


def test_pseudonyms_need_the_secret_and_spare_other_words(tmp_path: Path) -> None:
    salt = store_salt(tmp_path)
    assert salt == store_salt(tmp_path) != store_salt(tmp_path / "other")
    hide = Pseudonyms(salt, ["sub-01", "sub-01_ses-1", "ab"])
    assert hide("sub-01_ses-1.nii sub-01 ab") == f"{hide('sub-01_ses-1')}.nii {hide('sub-01')} ab"
    assert hide("ab") != "ab"
    assert Pseudonyms(b"other", ["sub-01"])("sub-01") != hide("sub-01")
    assert Pseudonyms(salt, [])("sub-01") == "sub-01"


def test_paths_lose_what_is_outside_of_the_project(tmp_path: Path) -> None:
    assert relative(tmp_path / "data" / "m.csv", tmp_path) == "data/m.csv"
    assert relative(Path("/home/anna/m.csv"), tmp_path) == "m.csv"


def test_the_environment_tells_versions_and_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/anna/bin/dmx", "train", "/home/anna/x.yaml", "--uri=http://u:secret@h"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = environment()
    json.dumps(found)
    assert found["command"] == ["dmx", "train", "x.yaml", "--uri=http://u:***@h"]
    assert {"torch", "mlflow"} <= set(found["packages"])  # type: ignore[call-overload]
    assert found["variables"]["OMP_NUM_THREADS"] == "3"  # type: ignore[index]


def test_the_state_of_the_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path).tags() == {}

    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", "code.py")
    git("commit", "-m", "start")
    clean = git_state(tmp_path)
    assert (len(clean.commit), clean.dirty, clean.diff) == (40, False, "")
    (tmp_path / "code.py").write_text("a = 2\n")
    dirty = git_state(tmp_path)
    assert dirty.tags() == {"mlflow.source.git.commit": clean.commit, "dmx.git_dirty": "true"}
    assert "+a = 2" in dirty.diff
    monkeypatch.setattr(surroundings, "_LONGEST_DIFF", 10)
    assert "cut after 10" in git_state(tmp_path).diff


def dmx(*words: str) -> Result:
    return CliRunner().invoke(runs_command.app, words)


def test_runs_are_listed_shown_and_compared(begin: Begin, train: Any, project: Path) -> None:
    assert "No runs in" in dmx("list").stdout
    with begin(params={"lr": 0.1}) as first:
        train(first).go(1, 10)
    with begin(kind="predict", tags={"dmx.source_run_id": first.info.id}) as second:
        pass
    shown = dmx("list").stdout
    assert first.info.id[:8] in shown
    assert "0.200" in shown
    assert first.info.id[:8] not in dmx("list", "--kind", "predict").stdout
    page = dmx("show", "study/two-pathways-train-1").stdout
    for text in (first.info.id, "lr", "0.1", "epoch=2", "history", "study/two-pathways-predict-1"):
        assert text in page
    table = dmx("compare", first.info.id, second.info.id).stdout
    assert "dmx.kind" in table
    assert "val/dice" in table
    for text, path in ((page, f"runs/{first.info.id}?"), (table, "compare-runs?runs=")):
        link = text.split()[-1]
        assert path in link
        assert link.endswith("workflowType=machine_learning&viewStateShareKey=dmx")


def test_runs_are_kept_in_order(begin: Begin, leave: Any, project: Path) -> None:
    run = begin(params={"seed": 1})
    leave(run)
    run.store.set_tags(run.info.id, {"dmx.process_started": "1"})
    assert "1 run closed." in dmx("reap", "--stale", "2h").stdout
    assert "0 runs closed." in dmx("reap").stdout
    assert "0 entries delivered." in dmx("sync", run.info.id).stdout
    assert "1 entry delivered." in dmx("sync", run.info.id, "--again").stdout
    assert "0 artifact locations" in dmx("relocate").stdout


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (("compare", "x"), ConfigError, "at least two runs"),
        (("reap", "--stale", "soon"), ConfigError, "e.g. 2h"),
        (("show", "study/none"), RunError, "No run"),
    ],
)
def test_wrong_words_are_explained(project: Path, words: tuple[str, ...], error: type[DmxError], says: str) -> None:
    result = dmx(*words)
    assert isinstance(result.exception, error)
    assert says in str(result.exception)


def test_the_commands_start_without_mlflow_and_torch() -> None:
    code = "import sys; import dmx.cli.runs, dmx.cli.ui; print({'mlflow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port(port) <= port + 19
    with pytest.raises(RunError, match="--port"):
        free_port(65536)


def ui(*words: str) -> Result:
    app = typer.Typer()
    app.command()(ui_command)
    return CliRunner().invoke(app, words)


def test_the_pages_are_served_and_ended_with_ctrl_c(
    begin: Begin, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = [sys.executable, "-c", _SERVER]
    real = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert "mlflow.db" in options["env"]["MLFLOW_BACKEND_STORE_URI"]
        assert options["env"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
        assert command[command.index("--host") + 1] == "127.0.0.1"
        started.append(real([*server, command[command.index("--port") + 1]], **options))
        return started[0]

    monkeypatch.setattr("dmx.tracking.ui.subprocess.Popen", popen)
    monkeypatch.setattr(signal, "pause", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with begin() as run:
        result = ui("--port", "5900")
    assert result.exit_code == 0, result.output
    assert "/runs?workflowType=machine_learning&viewStateShareKey=dmx" in result.stdout
    assert f"/#/experiments/{run.info.experiment_id}/" in result.stdout
    assert started[0].poll() is not None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_server_that_does_not_start_says_why(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmx.tracking.ui.PYTHON", ("false",))
    with pytest.raises(RunError, match="did not start: it said nothing"), serving("sqlite:///x.db", 1):
        pass


_SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


@pytest.mark.slow
def test_the_real_pages_answer(begin: Begin, project: Path) -> None:
    with begin() as run:
        run.log_text("config.yaml", "seed: 1")
    with serving(f"sqlite:///{project}/mlruns/mlflow.db", free_port(5950)) as base:
        url = f"{base}/get-artifact?path=config.yaml&run_uuid={run.info.id}"
        with urlopen(url, timeout=30) as answer:
            assert answer.read() == b"seed: 1"
        with pytest.raises(RunError, match="made without a server"):
            open_store(base).create_run("study", name="x", tags={})
    time.sleep(0.2)
    with pytest.raises(OSError, match="refused"):
        urlopen(base, timeout=2)
    assert os.environ.get("MLFLOW_BACKEND_STORE_URI") is None
