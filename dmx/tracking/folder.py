"""The folder of a run on this machine: journal, how far it was delivered, files on their way, and a lock."""

import fcntl
import os
from pathlib import Path
from typing import IO

from dmx.errors import RunError


class RunFolder:
    """What a run keeps on this machine.

    Args:
        path: ``mlruns/local/<run id>`` of the project.
        artifacts: The run's artifact folder when the store keeps it on this machine; files are then written in place.
    """

    def __init__(self, path: Path, artifacts: Path | None) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.in_place = artifacts is not None
        self.files = artifacts or path / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.journal = path / "journal.jsonl"
        self._lock: IO[str] | None = None

    @property
    def delivered(self) -> int:
        """Bytes of the journal that the store has."""
        file = self.path / "delivered"
        return int(file.read_text(encoding="ascii")) if file.is_file() else 0

    @delivered.setter
    def delivered(self, offset: int) -> None:
        draft = self.path / "delivered.new"
        draft.write_text(str(offset), encoding="ascii")
        draft.replace(self.path / "delivered")

    @property
    def undelivered(self) -> int:
        """Bytes of the journal that the store does not have."""
        return self.journal.stat().st_size - self.delivered if self.journal.is_file() else 0

    def lock(self) -> None:
        """Refuse every other process until this one ends or unlocks.

        Raises:
            RunError: Another process works on the run.
        """
        file = (self.path / "lock").open("a+", encoding="ascii")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise RunError(
                f"Run {self.path.name[:8]} is in use by process {holder} of this machine. Wait for it, or end it first."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock = file

    def unlock(self) -> None:
        """Let other processes work on the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
