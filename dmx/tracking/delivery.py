"""Bring a journal to the store: in the order of its entries, repeatedly if need be, behind the training's back."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dmx.errors import RunError
from dmx.paths import within
from dmx.tracking.checkpoints import is_checkpoint_path
from dmx.tracking.folder import RunFolder
from dmx.tracking.journal import Entry, read_entries
from dmx.tracking.process import now
from dmx.tracking.store import CheckpointModel, CohortInput, MetricPoint, RunWriter, StoreRefusedError

_EVERY_SECONDS = 2.0
_HEARTBEAT_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 300.0
_ONCE_MORE_SECONDS = 2.0
_LONGEST_SILENCE_SECONDS = 120.0
_METRICS_PER_BATCH = 500
_SHOWN = 200

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """Where entries go: a run of a store, and the folder with the files they speak of."""

    store: RunWriter
    run_id: str
    folder: RunFolder


def deliver(target: Target, notify: Notify, *, again: bool = False) -> int:
    """Deliver what the store does not have yet and return the number of entries.

    Args:
        target: Where entries go.
        notify: Gets a sentence for each entry that the store refuses; it is left out.
        again: Deliver everything from the beginning; the store ends up the same.

    Raises:
        RunError: The store cannot be reached; what has been delivered is remembered. Or an entry names a place that is
            not the run's: then nothing is delivered.
    """
    folder = target.folder
    start = 0 if again else folder.delivered
    _require_own(folder, start)
    count = 0
    for entries, end in _batches(folder.journal, start):
        try:
            _apply(target, entries)
        except StoreRefusedError as error:
            if len(entries) == 1:
                notify(str(error))
            else:
                _one_by_one(target, entries, notify)
        folder.delivered = end
        count += len(entries)
    return count


def _require_own(folder: RunFolder, start: int) -> None:
    """Require that each entry is one and names only what is in the run's folders, before the first is carried out."""
    what = f"The journal of run {folder.path.name[:8]}"
    for entry, _ in read_entries(folder.journal, start):
        try:
            kind = entry["do"]
            deleted = [entry["path"]] if kind == "delete" else []
            models = [model["path"] for model in entry["models"]] if kind == "checkpoints" else []
            if kind == "upload":
                folder.file(entry["path"], what=what)
            if kind == "image":
                within(folder.path, entry["source"], what=what)
        except (LookupError, TypeError) as error:
            raise RunError(f"{what} is damaged: '{folder.journal}' holds an entry that dmx has not written.") from error
        for path in (*deleted, *models):
            if not is_checkpoint_path(path):
                raise RunError(
                    f"{what} names '{str(path)[:_SHOWN]}' as a checkpoint, and it is none. Nothing was touched. dmx "
                    "writes no such thing: somebody has changed the project."
                )


def _one_by_one(target: Target, entries: Iterable[Entry], notify: Notify) -> None:
    for entry in entries:
        try:
            _apply(target, [entry])
        except StoreRefusedError as error:
            notify(str(error))


def _batches(journal: Path, start: int) -> Iterator[tuple[list[Entry], int]]:
    """Yield runs of metrics together and everything else one by one, each with the offset behind it."""
    for (metrics, _), group in groupby(read_entries(journal, start), key=lambda item: _metrics_of(item[0])):
        batch: list[Entry] = []
        size = end = 0
        for entry, offset in group:
            batch.append(entry)
            size += len(entry["values"]) if metrics else _METRICS_PER_BATCH
            end = offset
            if size >= _METRICS_PER_BATCH:
                yield batch, end
                batch, size = [], 0
        if batch:
            yield batch, end


def _metrics_of(entry: Entry) -> tuple[bool, str | None]:
    """Return whether an entry holds metrics, and of which other run."""
    return entry["do"] == "metrics", entry.get("run")


def _apply(target: Target, entries: list[Entry]) -> None:
    try:
        _carry_out(target, entries)
    except (LookupError, TypeError, AttributeError) as error:
        raise StoreRefusedError(
            f"An entry of the journal '{target.folder.journal}' is damaged and was left out ({error})."
        ) from error


def _carry_out(target: Target, entries: list[Entry]) -> None:
    if entries[0]["do"] == "metrics":
        points = [
            MetricPoint(key, value, entry["step"], entry["time"])
            for entry in entries
            for key, value in entry["values"].items()
        ]
        target.store.log_metrics(entries[0].get("run", target.run_id), points)
    for entry in entries:
        _ACTIONS.get(entry["do"], _nothing)(target, entry)


def _nothing(target: Target, entry: Entry) -> None:
    """Metrics have been sent together."""


def _upload(target: Target, entry: Entry) -> None:
    source = target.folder.file(entry["path"], what="The journal")
    # What keep-rules have deleted since, or lies in the store's own folder already, needs no copy.
    if source.exists() and not target.folder.in_place:
        parent = Path(entry["path"]) if source.is_dir() else Path(entry["path"]).parent
        target.store.upload(target.run_id, source, "" if parent == Path() else str(parent))


def _image(target: Target, entry: Entry) -> None:
    source = within(target.folder.path, entry["source"], what="The journal")
    if source.exists():
        point = (entry["step"], entry["time"])
        target.store.log_image(target.run_id, source, key=entry["key"], point=point)
        source.unlink()


def _cohort(target: Target, entry: Entry) -> None:
    target.store.log_cohort(target.run_id, CohortInput(**entry["cohort"]))


def _checkpoints(target: Target, entry: Entry) -> None:
    models = [CheckpointModel(path=m["path"], step=m["step"], names=tuple(m["names"])) for m in entry["models"]]
    target.store.log_checkpoints(target.run_id, models)


_ACTIONS: dict[str, Callable[[Target, Entry], None]] = {
    "params": lambda target, entry: target.store.log_params(target.run_id, entry["values"]),
    "tags": lambda target, entry: target.store.set_tags(target.run_id, entry["values"]),
    "status": lambda target, entry: target.store.set_status(target.run_id, entry["status"]),
    "delete": lambda target, entry: target.store.delete_artifacts(target.run_id, entry["path"]),
    "upload": _upload,
    "image": _image,
    "cohort": _cohort,
    "checkpoints": _checkpoints,
}


class Courier:
    """A thread that delivers a run's journal every few seconds and keeps its heartbeat.

    An unreachable store costs the training nothing: the thread waits longer and longer and tries again.
    """

    def __init__(self, target: Target, notify: Notify, *, every: float = _EVERY_SECONDS) -> None:
        self._target = target
        self._notify = notify
        self._every = every
        self._wake = threading.Event()
        self._stopping = False
        self._told = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="dmx-delivery", daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Deliver the rest, end the thread, and return whether the store has everything.

        A store that takes nothing for two minutes is no longer waited for.
        """
        self._stopping = True
        self._wake.set()
        left = -1
        while self._thread.is_alive() and left != self._target.folder.undelivered:
            left = self._target.folder.undelivered
            self._thread.join(_LONGEST_SILENCE_SECONDS)
        return self._target.folder.undelivered == 0

    def release(self) -> None:
        """Let other processes work on the run, as soon as nothing of it is on its way."""
        if self._thread.is_alive():
            threading.Thread(target=self._release_later, daemon=True).start()
        else:
            self._target.folder.unlock()

    def _release_later(self) -> None:
        self._thread.join()
        self._target.folder.unlock()

    def _run(self) -> None:
        wait = self._every
        while not self._stopping:
            self._wake.wait(wait)
            if not self._stopping:
                wait = self._every if self._attempt() else min(max(2 * wait, 10.0), _LONGEST_WAIT_SECONDS)
        # What was written while the attempt before was under way.
        if not self._attempt() and wait == self._every:
            # A store that answered until now may have failed just once.
            time.sleep(_ONCE_MORE_SECONDS)
            self._attempt()

    def _attempt(self) -> bool:
        # Whatever goes wrong here is no reason to end a training.
        try:
            deliver(self._target, self._tell)
            if time.monotonic() - self._beat > _HEARTBEAT_SECONDS:
                self._target.store.set_tags(self._target.run_id, {"dmx.heartbeat": now()})
                self._beat = time.monotonic()
        except RunError as error:
            self._tell(f"{error} The training goes on; what is logged is kept and delivered later.")
            return False
        except Exception as error:
            self._tell(f"The run cannot be logged ({type(error).__name__}: {error}). The training goes on.")
            return False
        return True

    def _tell(self, sentence: str) -> None:
        if not self._told:
            self._told = True
            self._notify(sentence)
