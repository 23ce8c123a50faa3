"""The run store of a project without a server: an SQLite file, opened by one process at a time."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from os import R_OK, W_OK, access
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from urllib.parse import unquote

import psutil

from dmx.errors import RunError
from dmx.paths import link_error, open_own
from dmx.paths import lock as hold

_NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "lustre", "gpfs", "beegfs", "ceph", "afs", "glusterfs")
_SQLITE = "sqlite:///"
# All that an address gives a meaning, as SQLAlchemy reads it.
_QUOTED = str.maketrans({"%": "%25", "?": "%3F"})


def database_path(uri: str) -> Path | None:
    """Return the file of an SQLite address, ``None`` for any other.

    An address that was written by hand may have ``%`` and ``?`` in its folders as they are.
    """
    if not uri.startswith(_SQLITE):
        return None
    text = uri.removeprefix(_SQLITE)
    path = Path(unquote(text.partition("?")[0]))
    if not path.parent.is_dir() and Path(text).parent.is_dir():
        path = Path(text)
    return path.parent.resolve() / path.name


def database_uri(database: Path) -> str:
    """Return the address of an SQLite file.

    >>> database_uri(Path("/data/100 %/mlruns/mlflow.db"))
    'sqlite:////data/100 %25/mlruns/mlflow.db'
    """
    return f"{_SQLITE}{str(database).translate(_QUOTED)}"


def artifact_owner(database: Path) -> Path:
    """Return the folder that everything lies in which a store beside this database may name."""
    return database.parent if database.parent.name == "mlruns" else database.parent / "artifacts"


def mlflow_address(database: Path) -> str:
    """Return the address by which MLflow opens a database.

    MLflow takes an address for a path where it makes the folder, and quotes are then part of a name. So a folder whose
    name would need quotes gets another name, and so does a database that cannot be written: SQLite cannot open one
    whose log it cannot make, so what is opened is a copy.
    """
    if is_read_only(database):
        database = _snapshot(database)
    elif str(database) != str(database).translate(_QUOTED):
        database = _alias(database.parent) / database.name
    return f"{_SQLITE}{database}"


def is_read_only(database: Path) -> bool:
    """Tell whether a database is there and this user may only read it."""
    return access(database, R_OK) and not (access(database, W_OK) and access(database.parent, W_OK))


@cache
def _temporary() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="dmx-store-")


@cache
def _alias(folder: Path) -> Path:
    alias = Path(mkdtemp(dir=_temporary().name)) / "mlruns"
    alias.symlink_to(folder, target_is_directory=True)
    return alias


def _snapshot(database: Path) -> Path:
    """Return a copy of a database as it is now, with what stands in its log."""
    copy = Path(mkdtemp(dir=_temporary().name)) / "mlflow.db"
    for suffix in ("", "-wal"):
        source = database.with_name(f"{database.name}{suffix}")
        if source.is_file():
            shutil.copyfile(source, copy.with_name(f"{copy.name}{suffix}"))
    return copy


@contextmanager
def opening(database: Path) -> Iterator[None]:
    """Let one process at a time create or migrate the file, and switch it to WAL.

    Of several processes that migrate a new file at once, some fail in the middle.

    Raises:
        RunError: It is no database, is a symbolic link, or its folder cannot be written.
    """
    _require_database(database)
    if is_read_only(database):
        yield
        return
    with _lock(database):
        yield
        if not on_network(database):
            _switch_to_wal(database)


@contextmanager
def _lock(database: Path) -> Iterator[None]:
    folder = database.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.name == "mlruns" and not (folder / ".gitignore").exists():
            with open_own(folder / ".gitignore", "w", encoding="utf-8") as ignored:
                ignored.write("*\n!.gitignore\n")
        lock = open_own(folder / f".{database.name}.lock", "a")
    except OSError as error:
        raise RunError(
            f"The run store '{database}' cannot be opened: {error.strerror}. Make its folder writable, or keep runs "
            "elsewhere with --store or MLFLOW_TRACKING_URI."
        ) from error
    with lock:
        hold(lock, wait=True)
        yield


def _require_database(path: Path) -> None:
    """Refuse what is there and is no database, before anything is written beside it."""
    if path.is_symlink():
        raise link_error(path, what=f"'{path.parent.name}'")
    if path.is_dir():
        raise RunError(f"The run store must be a database file, '{path}' is a folder. Use sqlite:///PATH/mlflow.db.")
    if not path.is_file() or not path.stat().st_size or is_read_only(path):
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
