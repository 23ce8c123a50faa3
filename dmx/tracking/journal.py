"""What a run has to tell the store, first written to a file of this machine: one JSON object per line, append-only."""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmx.errors import RunError
from dmx.paths import open_own
from dmx.tracking.store import RunInfo, RunReader

_FSYNC_SECONDS = 5.0

Entry = dict[str, Any]


class Journal:
    """An append-only file of entries.

    Every entry is handed to the operating system at once, so that a killed process loses nothing; the disk is told to
    keep it every few seconds and with :meth:`sync`, which bounds what a power cut takes.

    Args:
        path: The file; a last line that was cut off while it was written is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        self._file = open_own(path, "ab")
        _remove_torn_line(path)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry."""
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
        if time.monotonic() - self._synced > _FSYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Return when the disk has everything."""
        with self._lock:
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Make sure that the disk has everything, and close the file."""
        self.sync()
        self._file.close()


def read_entries(path: Path, start: int = 0) -> Iterator[tuple[Entry, int]]:
    """Yield each complete entry from a byte offset on, with the offset behind it.

    Raises:
        RunError: A line is no entry.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            entry = _entry(line)
            if entry is None:
                raise RunError(
                    f"'{path}' is damaged: byte {start} begins a line that dmx has not written. Bring the file back, "
                    "or remove it; what the run store has stays."
                )
            start += len(line)
            yield entry, start


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def last_steps(path: Path) -> dict[str, int]:
    """Return the last step of each metric of the run itself that the journal holds."""
    steps: dict[str, int] = {}
    for entry, _ in read_entries(path):
        if entry["do"] == "metrics" and "run" not in entry:
            for key in entry["values"]:
                steps[key] = max(steps.get(key, -1), entry["step"])
    return steps


def known_steps(store: RunReader, info: RunInfo, path: Path) -> dict[str, int]:
    """Return the last step of each metric that was logged: by the journal, by the store where that was lost."""
    if path.is_file() and path.stat().st_size:
        return last_steps(path)
    return {key: store.metric_history(info.id, key)[-1].step for key in info.metrics}


def uploads(path: Path) -> set[str]:
    """Return the files and folders that the journal says are to be artifacts."""
    return {entry["path"] for entry, _ in read_entries(path) if entry["do"] == "upload"}


def untold(path: Path, files: Path) -> list[str]:
    """Return the files below a folder that are to be artifacts and of which the journal does not say so yet."""
    told = uploads(path)
    present = sorted(file.relative_to(files) for file in files.rglob("*") if file.is_file())
    # A checkpoint is told of when it gets its names.
    kept = (file for file in present if file.parts[0] != "checkpoints")
    return [file.as_posix() for file in kept if told.isdisjoint(map(str, (file, *file.parents)))]


def _remove_torn_line(path: Path) -> None:
    if path.is_file():
        complete = path.read_bytes().rfind(b"\n") + 1
        if complete < path.stat().st_size:
            os.truncate(path, complete)
