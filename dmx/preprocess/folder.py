"""Folders of prepared data that several processes may share: an entry is complete or absent."""

import errno
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dmx.errors import DmxError
from dmx.preprocess.entry import read_index

_LEFTOVER = ".tmp-"
_ABANDONED_S = 24 * 3600
_ATTEMPTS = 10


def ready_folder(folder: Path) -> None:
    """Make a folder of entries and remove what processes left in it that were killed.

    Raises:
        DmxError: The folder cannot be written.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_LEFTOVER}*"):
            if _is_abandoned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)


def make_entry(folder: Path, key: str, write: Callable[[Path], None]) -> None:
    """Write an entry into a folder beside it and give it its name when it is complete.

    Args:
        folder: Folder of entries.
        key: Name of the entry.
        write: Writes into an empty folder.

    Raises:
        DmxError: The folder cannot be written.
    """
    beside = _temporary(folder)
    try:
        with _writing(folder):
            beside.mkdir()
            write(beside)
            publish(beside, folder / key)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_index(entry: Path) -> dict[str, Any]:
    """Return the small file of an entry that was just made.

    Raises:
        DmxError: Somebody removed it.
    """
    index = read_index(entry)
    if index is None:
        raise DmxError(f"The entry '{entry}' of the cache vanished while it was made. Start again.")
    return index


def publish(beside: Path, entry: Path) -> None:
    """Give a complete entry its name; one that is there and whole stays, a damaged one goes."""
    for _ in range(_ATTEMPTS):
        if read_index(entry) is not None:
            return
        aside = _temporary(entry.parent)
        with suppress(FileNotFoundError):
            entry.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        try:
            beside.rename(entry)
        except OSError as error:
            # Another process has put its own there in between.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    if read_index(entry) is None:
        raise OSError(f"'{entry}' cannot be replaced")


def _temporary(folder: Path) -> Path:
    return folder / f"{_LEFTOVER}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn a failure of the disk into a sentence."""
    try:
        yield
    except OSError as error:
        raise DmxError(
            f"The cache '{folder}' cannot be written: {error.strerror or error}. Free some space, or name another "
            "folder."
        ) from error


def _is_abandoned(leftover: Path) -> bool:
    """Tell whether the process that made a temporary folder is gone: on this host by its id, elsewhere by age."""
    host, _, process = leftover.name.removeprefix(_LEFTOVER).rpartition("-")[0].rpartition("-")
    with suppress(OSError):
        if time.time() - leftover.stat().st_mtime > _ABANDONED_S:
            return True
    if host != socket.gethostname() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
