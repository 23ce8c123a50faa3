"""The run store of a project without a server: an SQLite file, opened by one process at a time."""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil

from dmx.errors import RunError

_NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "lustre", "gpfs", "beegfs", "ceph", "afs", "glusterfs")
_SQLITE = "sqlite:///"


def database_path(uri: str) -> Path | None:
    """Return the file of an SQLite address, ``None`` for any other."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


@contextmanager
def opening(database: Path) -> Iterator[None]:
    """Let one process at a time create or migrate the file, and switch it to WAL.

    Of several processes that migrate a new file at once, some fail in the middle.
    """
    _require_database(database)
    folder = database.parent
    if not folder.is_dir():
        folder.mkdir(parents=True)
    if folder.name == "mlruns" and not (folder / ".gitignore").exists():
        (folder / ".gitignore").write_text("*\n!.gitignore\n", encoding="utf-8")
    with (folder / f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        if not on_network(database):
            _switch_to_wal(database)


def _require_database(path: Path) -> None:
    """Refuse what is there and is no database, before anything is written beside it."""
    if path.is_dir():
        raise RunError(f"The run store must be a database file, '{path}' is a folder. Use sqlite:///PATH/mlflow.db.")
    if not path.is_file() or not path.stat().st_size:
        return
    # SQLite itself has to look: whoever else opens and closes the file takes away the locks of this process's
    # connections, and the next process that ends removes the log from under them.
    try:
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise RunError(f"The run store '{path}' is no SQLite database.") from None


def _switch_to_wal(database: Path) -> None:
    """Let readers and one writer work at the same time; the file remembers it."""
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode=WAL")


def on_network(path: Path) -> bool:
    """Tell whether a path is on a network file system, where WAL's shared memory does not work."""
    mounts = [part for part in psutil.disk_partitions(all=True) if path.is_relative_to(part.mountpoint)]
    if not mounts:
        return False
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype.lower()
    return kind.startswith(_NETWORK)
