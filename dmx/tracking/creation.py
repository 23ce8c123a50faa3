"""Create runs so that neither a lost answer nor a killed process leaves one that nobody goes on with.

Before a run is created, a note on this machine says what it begins with: ``mlruns/creating/<id>.jsonl``. The run
carries the note's id as a tag, by which it is found when the answer is lost. Whoever comes next finishes what a killed
process has begun, and removes what a server made twice.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dmx.errors import RunError
from dmx.paths import PlaceError, lock, open_own, within
from dmx.tracking.embedded import database_path, database_uri
from dmx.tracking.folder import drafted, run_folder
from dmx.tracking.journal import Journal, read_entries
from dmx.tracking.store import RunInfo, RunStore, StoreRefusedError

CREATION = "dmx.creation"
_FOLDER = "creating"
_BEFORE_ATTEMPTS_SECONDS = (0.0, 1.0, 3.0)
_LONGEST_LOCK_SECONDS = 30.0
# A server that hangs can carry out a request much later.
_REMEMBERED_SECONDS = 86_400.0


@contextmanager
def alone(mlruns: Path, *, patience: float = _LONGEST_LOCK_SECONDS) -> Iterator[bool]:
    """Let one process of a project at a time create runs, so that no two choose the same name.

    Args:
        mlruns: The folder of the project's runs.
        patience: Seconds to wait for the others; then the work goes on without them.

    Yields:
        Whether no other process is at it.
    """
    folder = _notes_folder(mlruns)
    folder.mkdir(parents=True, exist_ok=True)
    with open_own(folder / "lock", "a", encoding="ascii") as file:
        deadline = time.monotonic() + patience
        locked = _lock(file)
        while not locked and time.monotonic() < deadline:
            time.sleep(0.02)
            locked = _lock(file)
        yield locked


def _notes_folder(mlruns: Path) -> Path:
    return within(mlruns, _FOLDER, what="The folder of runs")


def _address(store: str, mlruns: Path) -> str:
    """Return the address of a store as a note keeps it: that of the project's own store is the same in every place."""
    database = database_path(store)
    return database_uri(Path(database.name)) if database is not None and database.parent == mlruns.resolve() else store


def _lock(file: IO[str]) -> bool:
    try:
        lock(file, wait=False)
    except BlockingIOError:
        return False
    return True


@dataclass
class Note:
    """What this machine knows of the creation of a run.

    Attributes:
        path: The note's file: an entry per line, append-only.
        content: What the run begins with: address of its ``store``, ``params``, ``texts``.
        run: Id of the run; empty until it is known.
        open: Requests of which it is not known what they have made.
        kept: Whether the run's own folder has the content.
        given_up: Whether the command ended without a run.
    """

    path: Path
    content: Mapping[str, Any]
    run: str = ""
    open: int = 0
    kept: bool = False
    given_up: bool = False
    _file: IO[str] | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """Return what the run's tag says."""
        return self.path.stem

    @classmethod
    def write(cls, mlruns: Path, store: str, *, params: Mapping[str, str], texts: Mapping[str, str]) -> "Note":
        """Keep on the disk what a run begins with."""
        content = {"store": _address(store, mlruns), "params": params, "texts": texts}
        note = cls(_notes_folder(mlruns) / f"{uuid.uuid4().hex}.jsonl", content)
        note.add({"content": note.content})
        return note

    @classmethod
    def read(cls, path: Path) -> "Note | None":
        """Return a note; ``None`` for one that was cut off before its run was asked for, or is none.

        Raises:
            RunError: It is a symbolic link.
        """
        within(path.parent, path.name, what="The folder of runs")
        try:
            entries = [entry for entry, _ in read_entries(path)]
            content = {name: entries[0]["content"][name] for name in ("store", "params", "texts")}
            texts = {str(place): str(text) for place, text in content["texts"].items()}
            content = {"store": str(content["store"]), "params": dict(content["params"]), "texts": texts}
            numbers = sum(int(entry.get("open", 0)) for entry in entries[1:])
        except (LookupError, TypeError, ValueError, AttributeError, RunError):
            return None
        note = cls(path, content, open=numbers)
        for entry in entries[1:]:
            note.run = str(entry.get("run", note.run))
            note.kept |= "kept" in entry
            note.given_up |= "given_up" in entry
        return note

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an entry."""
        if self._file is None:
            self._file = open_own(self.path, "a", encoding="utf-8")
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Forget the creation."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def found(self, store: RunStore) -> list[RunInfo]:
        """Return the runs that the store has of this creation, oldest first."""
        return store.list_runs(tags={CREATION: self.id})[::-1]

    def create(self, store: RunStore, experiment: str, *, name: str, tags: Mapping[str, str]) -> RunInfo:
        """Create the run; what a request without an answer has made is found by the note's tag.

        Raises:
            RunError: The store cannot be reached or refuses.
        """
        try:
            return self._create(store, experiment, name=name, tags={**tags, CREATION: self.id})
        except RunError:
            self.add({"given_up": True})
            self.close()
            if not self.open or not _remote(store):
                self.remove()
            raise

    def _create(self, store: RunStore, experiment: str, *, name: str, tags: Mapping[str, str]) -> RunInfo:
        failure: RunError | None = None
        # An embedded store does what it is told or says why not.
        for seconds in _BEFORE_ATTEMPTS_SECONDS if _remote(store) else (0.0,):
            time.sleep(seconds)
            if failure is not None and (found := self.found(store)):
                return self.known(found[0])
            self.add({"open": 1})
            self.open += 1
            try:
                return self.known(store.create_run(experiment, name=name, tags=tags))
            except StoreRefusedError:
                self.open -= 1
                raise
            except RunError as error:
                failure = error
        assert failure is not None
        raise failure

    def known(self, run: RunInfo) -> RunInfo:
        """Remember which run the store has made."""
        self.add({"run": run.id, "open": -1})
        self.run = run.id
        self.open -= 1
        return run

    def finish(self, store: RunStore, mlruns: Path) -> None:
        """Say that the run's own folder has what the note holds."""
        if not self.open:
            self.remove()
            return
        self.add({"kept": True})
        self.kept = True
        with suppress(RunError):
            settle(store, self, mlruns)


def _remote(store: RunStore) -> bool:
    return database_path(store.uri) is None


def settle_all(store: RunStore, mlruns: Path, *, patience: float = _LONGEST_LOCK_SECONDS) -> None:
    """Settle what processes have left that were killed while they created a run, or that got no answer.

    Args:
        store: Where runs are kept; notes of other stores stay.
        mlruns: The folder of the project's runs.
        patience: Seconds to wait while other processes create runs; then nothing is done.

    Raises:
        RunError: The store cannot be reached.
    """
    if any(_notes_folder(mlruns).glob("*.jsonl")):
        with alone(mlruns, patience=patience) as locked:
            settle_left(store, mlruns, locked=locked)


def settle_left(store: RunStore, mlruns: Path, *, locked: bool) -> None:
    """Do the same inside of :func:`alone`: if that is so, every note is of a creation that has ended."""
    for path in sorted(_notes_folder(mlruns).glob("*.jsonl")) if locked else ():
        note = Note.read(path)
        if note is None:
            path.unlink(missing_ok=True)
        elif note.content["store"] in (store.uri, _address(store.uri, mlruns)):
            settle(store, note, mlruns)


def settle_before(store: RunStore, mlruns: Path, *, locked: bool, notify: Callable[[str], None]) -> None:
    """Do the same before a new run is created, which goes on whatever comes of it."""
    try:
        settle_left(store, mlruns, locked=locked)
    except PlaceError as error:
        notify(str(error))
    except RunError:
        # A store that cannot be reached says so when the run is created.
        return


def settle(store: RunStore, note: Note, mlruns: Path) -> None:
    """Keep what the run of a creation begins with, and put further runs of the same creation into the trash."""
    found = note.found(store)
    if found and not note.run and not note.given_up:
        note.known(found[0])
    if note.run and not note.kept:
        if not _keep(store, note, mlruns):
            return
        note.add({"kept": True})
    for other in found:
        if other.id != note.run:
            store.discard_run(other.id)
            note.add({"open": -1})
            note.open -= 1
    note.close()
    age = time.time() - note.path.stat().st_mtime
    if note.open <= 0 or not _remote(store) or age > _REMEMBERED_SECONDS:
        note.remove()


def _keep(store: RunStore, note: Note, mlruns: Path) -> bool:
    """Write into a run's folder what its process had no time for; return whether none works on it.

    Raises:
        RunError: The note names a place that is not the run's; then nothing is written.
    """
    folder = run_folder(store, note.run, mlruns.parent)
    what = f"The note '{note.path}'"
    texts = {folder.file(place, what=what): (place, text) for place, text in note.content["texts"].items()}
    try:
        folder.lock()
    except RunError:
        return False
    try:
        journal = Journal(folder.journal)
        journal.append({"do": "params", "values": note.content["params"]})
        for path, (place, text) in texts.items():
            with drafted(path) as draft:
                draft.write_text(text, encoding="utf-8")
            journal.append({"do": "upload", "path": place})
        journal.close()
    finally:
        folder.unlock()
    return True
