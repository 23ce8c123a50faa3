"""Files of strangers execute nothing and write nowhere but in the folder given; their names are shown harmlessly."""

import io
import json
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from dmx.cli.main import app
from dmx.cohort.case import Case, Cohort
from dmx.cohort.manifest import manifest_text, read_manifest
from dmx.errors import CheckpointError, CohortError, DmxError, RunError, TransferError
from dmx.tracking.checkpoints import checkpoint_names, fetch_checkpoint
from dmx.tracking.family import Family, Link, Member
from dmx.tracking.family_page import lineage_html
from dmx.tracking.folder import run_folder
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunInfo
from dmx.training.checkpoint import read_checkpoint, verify_checkpoint, write_checkpoint
from dmx.transfer.picture import mapping_html
from dmx.transfer.plan import TransferPlan
from dmx.workflows.weights_file import open_weights_file
from tests.faults.world import World

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
ANSI = "a\x1b[2J\x1b[31mred\x1b]0;title\x07\x9b31m\u202eb"


class Payload:
    """What a pickle would do when it is opened: leave a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    return write_checkpoint(
        tmp_path / "checkpoints/step_000000001",
        model_state={"w": torch.ones(2)},
        training_state={"position": 1},
        manifest={"epoch": 1, "global_step": 1},
    )


def resign(folder: Path, **changes: Any) -> None:
    """Change a checkpoint as a stranger would: with hashes that fit."""
    from dmx.training import checkpoint as module

    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest.pop("sha256")
    for name in manifest["files"]:
        if (folder / name).is_file():
            manifest["files"][name] = module._entry((folder / name).read_bytes())
    manifest |= changes
    signed = {**manifest, "sha256": module._digest(manifest)}
    (folder / "checkpoint.json").write_bytes(module._manifest_bytes(signed))


def pickled(trace: Path) -> Iterator[bytes]:
    """Yield payloads as plain pickle, in torch's old format and in its zip format."""
    yield pickle.dumps({"position": Payload(trace)})
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save({"position": Payload(trace)}, buffer, _use_new_zipfile_serialization=new)
        yield buffer.getvalue()


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_pickle_in_a_checkpoint_is_refused_and_not_executed(tmp_path: Path, folder: Path, kind: int) -> None:
    trace = tmp_path / "executed"
    (folder / "training_state.pt").write_bytes(list(pickled(trace))[kind])
    resign(folder)
    assert not verify_checkpoint(folder)
    with pytest.raises(CheckpointError, match="without executing code"):
        read_checkpoint(folder)
    assert not trace.exists()
    # The payload does what it says where somebody opens it carelessly.
    with pytest.raises(Exception, match=r".*"):
        torch.load(folder / "training_state.pt", weights_only=False)["missing"]
    assert trace.exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin", "weights.safetensors"])
def test_a_pickle_as_weights_is_refused_and_not_executed(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "executed"
    for data in pickled(trace):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DmxError):
            open_weights_file(tmp_path / name, name="stranger")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "..", "", "sub/model.safetensors", "x\0y"])
def test_a_checkpoint_lists_no_files_but_its_own(folder: Path, name: str) -> None:
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    resign(folder, files={**files, name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(CheckpointError, match="none of its files"):
        read_checkpoint(folder)
    assert verify_checkpoint(folder)


@pytest.mark.parametrize("entry", [None, 5, "x", [], {}, {"bytes": 1}])
def test_a_checkpoint_says_what_its_files_hold(folder: Path, entry: object) -> None:
    resign(folder, files={"model.safetensors": entry})
    with pytest.raises(CheckpointError, match="does not say"):
        read_checkpoint(folder)


def test_a_link_out_of_a_checkpoint_is_refused(tmp_path: Path, folder: Path) -> None:
    inside = folder / "model.safetensors"
    outside = tmp_path / "outside.safetensors"
    inside.rename(outside)
    inside.symlink_to(outside)
    for verify in (True, False):
        with pytest.raises(CheckpointError, match="link that leaves the folder"):
            read_checkpoint(folder, verify=verify)
    inside.unlink()
    outside.rename(inside)
    assert read_checkpoint(folder).model_state["w"].sum() == 2


@pytest.mark.parametrize(
    "path",
    ["../../../etc", "/etc", "checkpoints/../../x/step_1", "checkpoints/step_1/..", "step_1", "checkpoints/step_x", ""],
)
def test_a_tag_points_to_no_other_folder(path: str) -> None:
    tags = {"dmx.checkpoint.best": path, "dmx.checkpoint.last": "checkpoints/step_000000004"}
    assert checkpoint_names(tags) == {"last": "checkpoints/step_000000004"}


@pytest.mark.parametrize("run_id", ["../../x", "/tmp/x", "", "a/b", "..", "a\0b", "x" * 500])
def test_a_run_id_leads_to_no_other_folder(world: World, tmp_path: Path, run_id: str) -> None:
    with pytest.raises(RunError, match="no id"):
        run_folder(open_store(root=world.root), run_id, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["", "[", "5", "null", "[]", "{}", '{"format_version": 1}', "[" * 50_000, '{"format_version": 1, "options": 3}'],
)
def test_a_plan_of_a_stranger_is_a_plan_or_refused(text: str) -> None:
    with pytest.raises(TransferError):
        TransferPlan.from_json(text)


@pytest.mark.parametrize("name", ["../../x", "a/b", "/etc/x", "..", ".x", "a\\b", "a\0b", ANSI, "x" * 300, "a\nb", " "])
def test_a_case_is_named_so_that_its_files_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    case = Case(name=name, subject="s", channels={"t1": tmp_path / "scan.nii.gz"})
    cohort = Cohort(name="c", classes=(), channels=("t1",), cases=(case,))
    with pytest.raises(CohortError):
        manifest_text(cohort, tmp_path / "m.csv")
    text = manifest_text(replace(cohort, cases=(replace(case, name="sound"),)), tmp_path / "m.csv")
    quoted = name.replace('"', '""')
    (tmp_path / "m.csv").write_text(text.replace("sound,", f'"{quoted}",'))
    with pytest.raises(CohortError, match=r"m\.csv"):
        read_manifest(tmp_path / "m.csv")


def test_odd_names_that_are_no_danger_are_predicted_inside_of_the_folder(world: World, here: Path) -> None:
    names = ("CON", "NUL.x", "-rf", "$(touch x)", "a;b", "=1+1", "[red]x", "ünï", "x" * 120)
    case = read_manifest(world.manifest).cases[0]
    cases = tuple(replace(case, name=name, subject=f"s{number}") for number, name in enumerate(names))
    (here / "m.csv").write_text(manifest_text(replace(read_manifest(world.manifest), cases=cases), here / "m.csv"))
    before = world.tree()
    done = world.call("predict", here / "m.csv", "--from-run", world.run_id, "-o", here / "out")
    assert done.code == 0, done.err + done.crash
    new = {path for path in world.tree() if path not in before and not path.startswith("mlruns/")}
    assert new == {f"{here.relative_to(world.root)}/out/{name}_segmentation.nii.gz" for name in names}


def test_control_characters_reach_no_terminal(world: World, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dmx.cli.console import err, out

    for console in (out, err):
        console.print(ANSI)
        console.print(ANSI, soft_wrap=True, markup=False)
        table = __import__("rich.table").table.Table(ANSI)
        table.add_row(ANSI)
        console.print(table)
    shown = "".join(capsys.readouterr())
    assert not [char for char in shown if char != "\n" and (ord(char) < 32 or 127 <= ord(char) < 160)]
    assert "\u202e" not in shown
    assert "red" in shown
    done = world.call("runs", "show", f"balls/{ANSI}")
    assert done.code == 2
    assert "\x1b" not in done.err + done.out


def test_markup_in_names_is_shown_as_it_is(world: World, here: Path) -> None:
    (here / "[red]x.csv").write_text("case,subject\n")
    done = world.call("cohort", "check", here / "[red]x.csv")
    assert done.code == 2
    assert "[red]x.csv" in done.err


def test_names_in_html_are_text() -> None:
    first = Member(id=NASTY, name=NASTY, kind=NASTY, status=NASTY, cohort=NASTY, frozen=NASTY, best=(NASTY, 0.5))
    second = replace(first, id="b", origin=NASTY, evaluations=(((NASTY, 0.5), NASTY),))
    family = Family(
        run="b",
        members={NASTY: first, "b": second},
        links=(Link(source=NASTY, child="b", checkpoint=NASTY, share=0.5),),
    )
    page = lineage_html(family)
    assert "alert(1)" in page
    assert "<script" not in page
    assert "<img" not in page


def test_names_in_the_picture_of_a_mapping_are_text(world: World, here: Path) -> None:
    from dmx.config.model import ModelSection
    from dmx.model.sketch import sketch_section
    from dmx.transfer.planning import plan_transfer

    section = ModelSection()
    names = {"channels": (NASTY,), "classes": ("background", NASTY)}
    source = sketch_section(section, name=NASTY, **names)
    page = mapping_html(plan_transfer(source, sketch_section(section, name=f"new {NASTY}", **names)))
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "alert(1)" in page


def test_the_pages_are_served_on_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from dmx.tracking import ui

    started: list[list[str]] = []

    class RefusedError(Exception):
        pass

    def popen(command: list[str], **words: Any) -> None:
        started.append(command)
        raise RefusedError

    monkeypatch.setattr(ui.subprocess, "Popen", popen)
    with pytest.raises(RefusedError), ui.serving("sqlite:////tmp/secret:word@x.db", 5000):
        pass
    command = started[0]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert not any("sqlite" in word for word in command)
    help_text = CliRunner().invoke(app, ["ui", "--help"]).output
    assert "--host" not in help_text


class _Server(BaseHTTPRequestHandler):
    """An MLflow server of a stranger: its artifacts have names that lead elsewhere."""

    names: tuple[str, ...] = ()
    location = "mlflow-artifacts:/1/abc/artifacts"

    def do_GET(self) -> None:
        run = {
            "info": {
                "run_id": "abc",
                "run_uuid": "abc",
                "run_name": "x",
                "experiment_id": "1",
                "status": "FINISHED",
                "start_time": 1,
                "artifact_uri": self.location,
                "lifecycle_stage": "active",
            },
            "data": {},
        }
        if "/runs/get" in self.path:
            self._answer(json.dumps({"run": run}).encode())
        elif "experiments/get" in self.path:
            self._answer(
                json.dumps({"experiment": {"experiment_id": "1", "name": "e", "artifact_location": "x"}}).encode()
            )
        elif "mlflow-artifacts/artifacts?" in self.path or self.path.endswith("artifacts/artifacts"):
            nested = "step_000000001" in self.path
            files = [{"path": name, "is_dir": False, "file_size": 3} for name in self.names] if nested else []
            self._answer(json.dumps({"files": files}).encode())
        else:
            self._answer(b"bad")

    do_POST = do_GET

    def _answer(self, body: bytes) -> None:
        if "search" in self.path:
            body = b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@contextmanager
def stranger(*names: str) -> Iterator[str]:
    """Serve a run whose checkpoint has files of these names."""
    handler = type("Handler", (_Server,), {"names": names})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "name", ["../../../../escaped", "/tmp/dmx_escaped", "..", "%2e%2e/%2e%2e/escaped", "a/../../b"]
)
def test_an_artifact_of_a_server_lands_in_no_other_folder(tmp_path: Path, name: str) -> None:
    target = tmp_path / "a/b/c/run"
    info = RunInfo(
        id="abc",
        name="x",
        experiment="e",
        experiment_id="1",
        status="FINISHED",
        started=1,
        ended=None,
        artifact_uri=_Server.location,
        params={},
        metrics={},
        tags={"dmx.checkpoint.last": "checkpoints/step_000000001"},
    )
    with stranger("model.safetensors", name) as uri, suppress(RunError):
        fetch_checkpoint(open_store(uri), info, "last", target)
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(target)]
    assert not outside
    with stranger("model.safetensors", "sound.txt") as uri:
        fetched = fetch_checkpoint(open_store(uri), info, "last", target)
    assert sorted(path.name for path in fetched.iterdir()) == ["model.safetensors", "sound.txt"]
    assert not Path("/tmp/dmx_escaped").exists()
