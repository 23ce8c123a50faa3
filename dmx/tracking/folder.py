"""The folder of a run on this machine: journal, how far it was delivered, files on their way, and a lock."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dmx.errors import RunError
from dmx.tracking.location import project_root
from dmx.tracking.store import RunReader

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DRAFT = ".partial"
# What MLflow writes an artifact to before it gets its name.
_UPLOADING = ".artifact.uploading."
# Pictures on their way to the store.
OUTGOING = "outgoing"


@contextmanager
def drafted(path: Path, *, folder: Path | None = None) -> Iterator[Path]:
    """Yield a hidden place to write to, which takes the place of ``path`` when the block ends well.

    Args:
        path: Where the file goes.
        folder: Where it is written; ``None``: beside its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = (folder or path.parent) / f".{path.name}{_DRAFT}"
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen with a part of its content, whenever the process is killed."""
    doomed = folder.with_name(f".{folder.name}{_DRAFT}")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


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
        with drafted(self.path / "delivered") as draft:
            draft.write_text(str(offset), encoding="ascii")

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

    def sweep(self) -> None:
        """Remove what a killed process left half-written; call it with the lock held."""
        for top in (self.path, self.files):
            for name in list(top.rglob(".*")):
                if name.name.startswith(_UPLOADING) or name.name.endswith(_DRAFT):
                    shutil.rmtree(name) if name.is_dir() else name.unlink(missing_ok=True)
        for folder in (self.path / "images" / OUTGOING, self.files / "incoming"):
            shutil.rmtree(folder, ignore_errors=True)

    def unlock(self) -> None:
        """Let other processes work on the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def run_folder(store: RunReader, run_id: str, root: Path | None = None) -> RunFolder:
    """Return the folder of a run on this machine."""
    if not _RUN_ID.fullmatch(run_id):
        raise RunError(f"The run store names a run {run_id[:60]!r}, which is no id that a folder could have.")
    path = (root or project_root()) / "mlruns" / "local" / run_id
    return RunFolder(path, store.local_artifacts(run_id))
