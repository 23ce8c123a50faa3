"""The folder of a run on this machine: journal, how far it was delivered, files on their way, and a lock."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dmx.errors import RunError
from dmx.paths import lock, open_own, refuse_links, within
from dmx.tracking.location import runs_folder
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
    # A link in its place would be written through.
    draft.unlink(missing_ok=True)
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
        self.path = path
        self.in_place = artifacts is not None
        self.files = artifacts or path / "files"
        self.journal = path / "journal.jsonl"
        self.refused = path / "refused.jsonl"
        self._lock: IO[Any] | None = None

    @property
    def name(self) -> str:
        """Return what sentences call it."""
        return f"The folder of run {self.path.name[:8]}"

    def file(self, place: object, *, what: str) -> Path:
        """Return the file or folder among the run's artifacts that data names.

        Args:
            place: Path below :attr:`files`.
            what: What names it, as a sentence begins.

        Raises:
            RunError: It lies elsewhere.
        """
        return within(self.files, place, what=what)

    @property
    def delivered(self) -> int:
        """Bytes of the journal that the store has."""
        file = self.path / "delivered"
        text = file.read_text(encoding="ascii", errors="replace") if file.is_file() else "0"
        # Delivering everything again changes nothing.
        return int(text) if text.isdecimal() else 0

    @delivered.setter
    def delivered(self, offset: int) -> None:
        with drafted(self.path / "delivered") as draft:
            draft.write_text(str(offset), encoding="ascii")

    @property
    def undelivered(self) -> int:
        """Bytes of the journal that the store does not have."""
        return self.journal.stat().st_size - self.delivered if self.journal.is_file() else 0

    def lock(self) -> None:
        """Make the folder, and refuse every other process until this one ends or unlocks.

        Raises:
            RunError: Another process works on the run, the folder cannot be written, or it holds a symbolic link.
        """
        refuse_links(self.path, what=self.name)
        refuse_links(self.files, what=self.name)
        try:
            for folder in (self.path, self.files):
                folder.mkdir(parents=True, exist_ok=True)
            file = open_own(self.path / "lock", "a+", encoding="ascii")
        except OSError as error:
            raise RunError(
                f"{self.name} cannot be written ('{error.filename or self.path}'): {error.strerror}. Make it writable, "
                "or work in a copy of the project."
            ) from error
        try:
            lock(file, wait=False)
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
                    shutil.rmtree(name) if name.is_dir() and not name.is_symlink() else name.unlink(missing_ok=True)
        for folder in (self.path / "images" / OUTGOING, self.files / "incoming"):
            shutil.rmtree(folder, ignore_errors=True)

    def unlock(self) -> None:
        """Let other processes work on the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def run_folder(store: RunReader, run_id: str, root: Path | None = None) -> RunFolder:
    """Return the folder of a run on this machine; it is made when it is locked.

    Raises:
        RunError: The id is none, or the store names a folder that is not its own.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise RunError(f"The run store names a run {run_id[:60]!r}, which is no id that a folder could have.")
    path = within(runs_folder(store.uri, root), f"local/{run_id}/files", what="The run store").parent
    return RunFolder(path, store.local_artifacts(run_id))
