"""Projects in folders of any name, moved and copied: a run lives where its project is, and nowhere else."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import pytest

from dmx.config.load import as_dict
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.relocate import relocate
from dmx.tracking.ui import free_port, serving
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.finetune import FinetuneRequest, finetune
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, make_manifest, session, settings

NAMES = ("study #2", "what? now", "100 % sure", "a%20b", 'it\'s "it"', "Größe ä", "b & c + d; e=f", "new\nline", " x ")
SMALL = {
    "training": {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2},
    "validation": {"segments": 4, "volumes_every_epochs": 0, "overlays": 0},
}


@pytest.fixture
def place(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where projects are; facts are kept elsewhere."""
    monkeypatch.setenv("DMX_CACHE_DIR", str(tmp_path / "facts"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "place"


def make_project(folder: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project with a cohort and an empty store, and go there."""
    (folder / "mlruns").mkdir(parents=True)
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(folder / "mlruns/mlflow.db")) as target:
        source.backup(target)
    monkeypatch.chdir(folder)
    make_manifest(folder)
    return folder


def interrupted(project: Path) -> str:
    """Train two steps of four; return the run's id."""
    return train(settings(project / "cohort.csv", **SMALL), session(project, Teller(stop_after=2))).run.id


def files(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, without what opening a store leaves."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith((".mlflow", "mlflow.db-"))
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_run_lives_in_a_folder_of_any_name(
    place: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    first = make_project(place / name, migrated, monkeypatch)
    run_id, other = interrupted(first), interrupted(first)
    moved = place / f"moved {name}"
    monkeypatch.chdir(place)
    first.rename(moved)
    monkeypatch.chdir(moved)
    assert resume(run_id, session(moved)).run.id == run_id
    found = evaluate(EvaluateRequest(run=run_id), session(moved))
    relocate(moved / "mlruns/mlflow.db")
    store = open_store(root=moved)
    folders = [store.local_artifacts(item) for item in (run_id, other, found.run.id)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder is not None
        assert folder.is_relative_to(moved / "mlruns/artifacts")
        assert (folder / "log.txt").is_file() or (folder / "evaluation/cases.csv").is_file()
    assert [path.name for path in place.iterdir()] == [moved.name]
    assert set(store.list_artifacts(run_id)) >= {"checkpoints", "config.yaml", "history"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_pages_of_a_project_of_any_name_show_its_files(
    place: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    project = make_project(place / name, migrated, monkeypatch)
    run_id = interrupted(project)
    with serving(open_store(root=project).uri, free_port(5950)) as base:
        page = f"{base}/get-artifact?path=config.yaml&run_uuid={run_id}"
        assert b"steps_per_epoch" in urlopen(page, timeout=60).read()
    assert [path.name for path in place.iterdir()] == [name]


def test_work_in_a_copy_leaves_the_original_as_it_is(
    place: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = make_project(place / "original", migrated, monkeypatch)
    run_id = interrupted(original)
    before = files(original)
    copy = place / "copy"
    shutil.copytree(original, copy)
    monkeypatch.chdir(copy)
    resume(run_id, session(copy))
    given = as_dict(settings(copy / "cohort.csv", **SMALL))
    child = finetune(FinetuneRequest(run=run_id, experiment=copy / "none.yaml", settings=given), session(copy)).run.id
    assert files(original) == before
    store = open_store(root=copy)
    for run in (run_id, child):
        folder = store.local_artifacts(run)
        assert folder is not None
        assert folder.is_relative_to(copy)
        assert (folder / "checkpoints").is_dir()
