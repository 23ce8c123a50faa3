"""A run that is asked for is made once, or nobody keeps it: lost answers, kills, and names chosen at one moment."""

import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dmx.errors import RunError
from dmx.tracking import creation
from dmx.tracking.creation import Note, alone, settle_all, settle_left
from dmx.tracking.folder import run_folder
from dmx.tracking.mlflow_store import MlflowStore, open_store
from dmx.tracking.names import sole_name
from dmx.tracking.session import start_run
from dmx.tracking.store import RunInfo, StoreRefusedError
from tests.tracking.conftest import new_run

TEXTS = {"config.yaml": "seed: 7\n"}


class Server(MlflowStore):
    """The embedded store with the address of a server, whose answers to creations can be lost.

    Attributes:
        answers: What becomes of the next creations: ``lost`` after the work was done, ``never`` arrived, ``late``:
            carried out when :meth:`catch_up` is called, ``refused``; then all goes well.
    """

    answers: tuple[str, ...] = ()
    silent = False

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._late: list[Callable[[], RunInfo]] = []

    @property
    def uri(self) -> str:
        return "http://127.0.0.1:9"

    def create_run(self, experiment: str, *, name: str, tags: Mapping[str, str]) -> RunInfo:
        answer, self.answers = (self.answers or ("",))[0], self.answers[1:]
        if answer == "refused":
            raise StoreRefusedError("That is no name.")
        if answer == "late":
            self._late.append(lambda: super(Server, self).create_run(experiment, name=name, tags=tags))
        if answer in ("never", "late"):
            raise RunError("Nobody answers.")
        run = super().create_run(experiment, name=name, tags=tags)
        if answer == "lost":
            raise RunError("The connection was closed.")
        return run

    def list_runs(self, **which: Any) -> list[RunInfo]:
        if self.silent and creation.CREATION in (which.get("tags") or {}):
            raise RunError("Nobody answers.")
        return super().list_runs(**which)

    def catch_up(self) -> None:
        for make in self._late:
            make()
        self._late.clear()


@pytest.fixture
def server(store: MlflowStore, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(creation, "_BEFORE_ATTEMPTS_SECONDS", (0.0, 0.0, 0.0))
    return Server(store.uri)


def notes_of(project: Path) -> list[Path]:
    return sorted((project / "mlruns/creating").glob("*.jsonl"))


def alive(store: MlflowStore) -> list[tuple[str, str]]:
    return [(run.name, run.status) for run in store.list_runs()]


def test_what_a_run_begins_with_is_there_before_it_and_nothing_stays(
    store: MlflowStore, project: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    inner = store.create_run

    def create(*args: Any, **kwargs: Any) -> RunInfo:
        seen.extend(path.read_text() for path in notes_of(project))
        return inner(*args, **kwargs)

    monkeypatch.setattr(store, "create_run", create)
    texts = {"config.yaml": "address: http://anna:secret@host\n"}
    with start_run(store, new_run(texts=texts, params={"lr": 0.1}), root=project, notify=notes.append) as run:
        assert (run.files / "config.yaml").read_text() == "address: http://anna:***@host\n"
    assert len(seen) == 1
    assert "anna:***@host" in seen[0]
    assert '"lr": "0.1"' in seen[0]
    assert notes_of(project) == []
    assert alive(store) == [("two-pathways-train-1", "FINISHED")]


@pytest.mark.parametrize(
    ("answers", "left"), [(("lost",), 0), (("never",), 1), (("lost", "never"), 0), (("never", "never"), 1)]
)
def test_a_lost_answer_makes_no_second_run(
    server: Server, project: Path, notes: list[str], answers: tuple[str, ...], left: int
) -> None:
    """What perhaps arrives later is remembered."""
    server.answers = answers
    with start_run(server, new_run(texts=TEXTS), root=project, notify=notes.append) as run:
        run.log_metrics({"loss": 1.0}, 1)
    assert alive(server) == [("two-pathways-train-1", "FINISHED")]
    assert (run.files / "config.yaml").is_file()
    assert len(notes_of(project)) == left


def test_a_request_that_is_carried_out_late_leaves_no_run(server: Server, project: Path, notes: list[str]) -> None:
    server.answers = ("late",)
    with start_run(server, new_run(), root=project, notify=notes.append):
        server.catch_up()
        assert alive(server) == [("two-pathways-train-1", "RUNNING")] * 2
    assert alive(server) == [("two-pathways-train-1", "FINISHED")]
    assert notes_of(project) == []


def test_a_command_that_gave_up_is_cleaned_up_after(server: Server, project: Path, notes: list[str]) -> None:
    server.answers = ("late", "lost", "")
    server.silent = True
    with pytest.raises(RunError, match="Nobody answers"):
        start_run(server, new_run(), root=project, notify=notes.append)
    server.silent = False
    server.answers = ()
    server.catch_up()
    with start_run(server, new_run(), root=project, notify=notes.append):
        pass
    assert [status for _, status in alive(server)] == ["FINISHED"]
    assert notes_of(project) == []


def test_a_refusal_leaves_nothing(server: Server, project: Path, notes: list[str]) -> None:
    server.answers = ("refused",)
    with pytest.raises(StoreRefusedError):
        start_run(server, new_run(), root=project, notify=notes.append)
    assert alive(server) == []
    assert notes_of(project) == []


def test_a_run_whose_process_was_killed_while_it_was_made_can_go_on(
    store: MlflowStore, project: Path, notes: list[str]
) -> None:
    mlruns = project / "mlruns"
    with alone(mlruns):
        note = Note.write(mlruns, store.uri, params={"lr": "0.1"}, texts=TEXTS)
        run = note.create(store, "study", name="killed", tags={"dmx.kind": "train"})
    assert len(notes_of(project)) == 1
    settle_all(store, mlruns)
    assert notes_of(project) == []
    folder = run_folder(store, run.id, project)
    assert (folder.files / "config.yaml").read_text() == TEXTS["config.yaml"]
    assert folder.journal.read_text().splitlines() == [
        '{"do":"params","values":{"lr":"0.1"}}',
        '{"do":"upload","path":"config.yaml"}',
    ]
    assert store.get_run(run.id).status == "RUNNING"


def test_notes_of_others_and_torn_ones_are_told_apart(store: MlflowStore, project: Path) -> None:
    mlruns = project / "mlruns"
    with alone(mlruns):
        other = Note.write(mlruns, "http://elsewhere", params={}, texts={})
        Note.write(mlruns, store.uri, params={}, texts={})
        for name, text in (("torn", '{"content": {"store"'), ("zero", "\0\0\n"), ("other", "[]\n")):
            (mlruns / f"creating/{name}.jsonl").write_text(text)
        settle_left(store, mlruns, locked=True)
    assert notes_of(project) == [other.path]


def test_a_run_on_which_somebody_works_already_is_left_alone(store: MlflowStore, project: Path) -> None:
    mlruns = project / "mlruns"
    (mlruns / "creating").mkdir()
    note = Note.write(mlruns, store.uri, params={}, texts=TEXTS)
    run = note.create(store, "study", name="slow", tags={"dmx.kind": "train"})
    folder = run_folder(store, run.id, project)
    folder.lock()
    settle_all(store, mlruns)
    assert notes_of(project) == [note.path]
    folder.unlock()
    settle_all(store, mlruns)
    assert notes_of(project) == []
    assert (folder.files / "config.yaml").is_file()


def test_while_others_create_runs_nothing_is_settled(store: MlflowStore, project: Path) -> None:
    mlruns = project / "mlruns"
    with alone(mlruns) as first:
        Note.write(mlruns, store.uri, params={}, texts={})
        settle_all(store, mlruns, patience=0.05)
        with alone(mlruns, patience=0.0) as second:
            assert (first, second) == (True, False)
    assert len(notes_of(project)) == 1
    settle_all(store, mlruns)
    assert notes_of(project) == []


def test_a_note_that_nothing_came_of_is_forgotten_after_a_day(server: Server, project: Path) -> None:
    mlruns = project / "mlruns"
    with alone(mlruns):
        note = Note.write(mlruns, server.uri, params={}, texts={})
        server.answers = ("never",) * 3
        with pytest.raises(RunError):
            note.create(server, "study", name="never", tags={"dmx.kind": "train"})
    settle_all(server, mlruns)
    assert notes_of(project) == [note.path]
    yesterday = time.time() - 90_000
    os.utime(note.path, (yesterday, yesterday))
    settle_all(server, mlruns)
    assert notes_of(project) == []


def test_runs_that_begin_at_one_moment_have_names_of_their_own(project: Path, notes: list[str]) -> None:
    def begin(_: int) -> str:
        with start_run(open_store(root=project), new_run(), root=project, notify=notes.append) as run:
            return run.info.name

    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(begin, range(4)))
    assert sorted(names) == [f"two-pathways-train-{number}" for number in range(1, 5)]


def test_a_name_that_another_machine_chose_at_the_same_moment_is_given_up(store: MlflowStore, project: Path) -> None:
    tags = {"dmx.kind": "train"}
    runs = [store.create_run("study", name="a-train-3", tags=tags) for _ in range(2)]
    moved = [sole_name(store, run, "a").name for run in runs]
    assert len(set(moved)) == 2
    assert {run.name for run in store.list_runs()} == set(moved)
    with closing(sqlite3.connect(project / "mlruns/mlflow.db")) as connection:
        names = connection.execute("select name from runs").fetchall()
    assert {name for (name,) in names} == set(moved)
    alone_there = store.create_run("study", name="b-train-1", tags=tags)
    assert sole_name(store, alone_there, "b") == alone_there
