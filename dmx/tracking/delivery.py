"""Bring a journal to the store: in the order of its entries, repeatedly if need be, behind the training's back."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from dmx.errors import RunError
from dmx.paths import within
from dmx.tracking.checkpoints import is_checkpoint_path
from dmx.tracking.folder import RunFolder
from dmx.tracking.journal import Entry, Journal, read_entries
from dmx.tracking.process import Heartbeat
from dmx.tracking.store import (
    CheckpointModel,
    CohortInput,
    MetricPoint,
    RunStore,
    Status,
    StoreClosedError,
    StoreRefusedError,
)

_EVERY_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 300.0
_ONCE_MORE_SECONDS = 2.0
_LONGEST_SILENCE_SECONDS = 120.0
_METRICS_PER_BATCH = 500
_SHOWN = 200

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """Where entries go: a run of a store, and the folder with the files they speak of."""

    store: RunStore
    run_id: str
    folder: RunFolder


def deliver(target: Target, notify: Notify, *, again: bool = False) -> int:
    """Deliver what the store does not have yet and return the number of entries.

    Args:
        target: Where entries go.
        notify: Gets a sentence for each entry that the store refuses; it is laid aside.
        again: Deliver everything from the beginning; the store ends up the same.

    Raises:
        RunError: The store cannot be reached, or takes nothing for this run (``StoreClosedError``); what has been
            delivered is remembered. Or an entry names a place that is not the run's: then nothing is delivered.
    """
    folder = target.folder
    start = 0 if again else folder.delivered
    _require_own(folder, folder.journal, start)
    if again:
        folder.refused.unlink(missing_ok=True)
    count = 0
    for entries, end in _batches(folder.journal, start):
        _apply_or_lay_aside(target, entries, notify)
        folder.delivered = end
        count += len(entries)
    return count


def _require_own(folder: RunFolder, file: Path, start: int) -> None:
    """Require that each entry is one and names only what is in the run's folders, before the first is carried out."""
    what = f"The journal of run {folder.path.name[:8]}"
    for entry, _ in read_entries(file, start):
        try:
            kind = entry["do"]
            deleted = [entry["path"]] if kind == "delete" else []
            models = [model["path"] for model in entry["models"]] if kind == "checkpoints" else []
            if kind == "upload":
                folder.file(entry["path"], what=what)
            if kind == "image":
                within(folder.path, entry["source"], what=what)
        except (LookupError, TypeError) as error:
            raise RunError(f"{what} is damaged: '{file}' holds an entry that dmx has not written.") from error
        for path in (*deleted, *models):
            if not is_checkpoint_path(path):
                raise RunError(
                    f"{what} names '{str(path)[:_SHOWN]}' as a checkpoint, and it is none. Nothing was touched. dmx "
                    "writes no such thing: somebody has changed the project."
                )


def deliver_refused(target: Target, notify: Notify) -> int:
    """Try again what the store has refused before, and return the number of entries that it takes now.

    Raises:
        RunError: The store cannot be reached, or takes nothing for this run; nothing is forgotten.
    """
    refused = target.folder.refused
    _require_own(target.folder, refused, 0)
    entries = [entry for entry, _ in read_entries(refused)]
    left = []
    for entry in entries:
        try:
            _apply(target, [entry])
        except StoreRefusedError as error:
            _require_open(target, error)
            notify(str(error))
            left.append(entry)
    refused.unlink(missing_ok=True)
    _lay_aside(target, left)
    return len(entries) - len(left)


def _apply_or_lay_aside(target: Target, entries: list[Entry], notify: Notify) -> None:
    try:
        _apply(target, entries)
    except StoreRefusedError as error:
        _require_open(target, error)
        if len(entries) == 1:
            notify(str(error))
            _lay_aside(target, entries)
        else:
            for entry in entries:
                _apply_or_lay_aside(target, [entry], notify)


def _require_open(target: Target, error: StoreRefusedError) -> None:
    """Raise ``StoreClosedError`` where it was not the entry that was refused, but anything for this run would be."""
    if why := target.store.why_closed(target.run_id):
        raise StoreClosedError(why) from error


def _lay_aside(target: Target, entries: Iterable[Entry]) -> None:
    for entry in entries:
        refused = Journal(target.folder.refused)
        refused.append(entry)
        refused.close()


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
    """A thread that delivers a run's journal every few seconds.

    An unreachable store costs the training nothing: the thread waits longer and longer and tries again.

    Args:
        target: Where entries go.
        notify: Told each kind of trouble once.
        every: Seconds between two attempts.

    Attributes:
        complete: Whether the store has everything.
    """

    def __init__(self, target: Target, notify: Notify, *, every: float = _EVERY_SECONDS) -> None:
        self._target = target
        self._notify = notify
        self._every = every
        self._wake = threading.Event()
        self._stopping = False
        self.complete = False
        self._heart = Heartbeat(target.store, target.run_id)
        self._told: set[type[Exception] | None] = set()
        self._thread = threading.Thread(target=self._run, name="dmx-delivery", daemon=True)
        self._thread.start()

    @property
    def taken_by(self) -> str:
        """Return which process works on the run instead of this one, whose words count no longer then."""
        return self._heart.taken_by

    def finish(self, status: Status) -> None:
        """Deliver the rest, and tell the user what the store has not got.

        Args:
            status: How the run ends; a store that has not got it all learns at least that it does.
        """
        target, folder = self._target, self._target.folder
        done = self.close()
        if self.taken_by:
            return
        self.complete = done and not folder.refused.exists()
        if self.complete:
            return
        run, uri = target.run_id, target.store.uri
        if done:
            self._notify(
                f"Run {run} is not complete in {uri}, which refused a part of it; that is kept in '{folder.refused}'. "
                f"When the store takes it, run 'dmx runs sync {run[:8]}'."
            )
            return
        why = ""
        with suppress(RunError):
            why = target.store.why_closed(run)
        if status != "FINISHED" and not why:
            # What holds up the journal, a full disk perhaps, must not make a dead run look alive.
            with suppress(RunError):
                target.store.set_status(run, status)
        then = f"{why} Then" if why else "When it can be reached,"
        self._notify(f"Run {run} is not yet complete in {uri}: not delivered. {then} run 'dmx runs sync {run[:8]}'.")

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
        self._heart.end()
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
        if self.taken_by:
            return True
        # Whatever goes wrong here is no reason to end a training.
        try:
            deliver(self._target, self._tell)
        except RunError as error:
            self._tell(f"{error} The training goes on; what is logged is kept and delivered later.", type(error))
            return False
        except Exception as error:
            self._tell(f"The run cannot be logged ({type(error).__name__}: {error}). The training goes on.", Exception)
            return False
        return True

    def _tell(self, sentence: str, kind: type[Exception] | None = None) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._notify(sentence)
