"""Mend the embedded store after its folder was moved or copied: MLflow keeps artifact locations as absolute paths."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from dmx.errors import RunError
from dmx.paths import within
from dmx.tracking.embedded import opening
from dmx.tracking.location import local_path

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
# In a plain path MLflow takes these for parts of an address.
_MISREAD = frozenset("%?#;")


def relocate(database: Path) -> int:
    """Let every artifact location below a former ``artifacts`` folder point to the one beside the database.

    Args:
        database: ``mlruns/mlflow.db`` in its new place.

    Returns:
        Number of locations that were changed. Locations that are no paths, or whose folder is not here, stay.

    Raises:
        RunError: There is no such database, or it cannot be written.
    """
    if not database.is_file():
        raise RunError(f"There is no run store at {database}. Run this in the project's folder.")
    with opening(database):
        try:
            return mend(database, folder=database.resolve().parent)
        except sqlite3.OperationalError as error:
            raise RunError(f"The run store {database} cannot be mended: {error}.") from error


def mend(database: Path, *, folder: Path) -> int:
    """Do the same in a database that nobody else opens; nothing is written where nothing has to be mended.

    Args:
        database: The file.
        folder: Where it belongs: the folder with ``artifacts``.
    """
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        former = _former_folders(connection, folder)
        return sum(_mend_column(connection, *place, former=former, folder=folder) for place in _COLUMNS if former)


def _mend_column(connection: sqlite3.Connection, table: str, column: str, *, former: list[Path], folder: Path) -> int:
    changed = 0
    for (location,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
        moved = _moved(location, former, folder)
        if moved not in (None, location):
            query = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
            changed += connection.execute(query, (moved, location)).rowcount
    return changed


def _former_folders(connection: sqlite3.Connection, folder: Path) -> list[Path]:
    """Return the folders above ``artifacts/<experiment>`` of other places, of experiments whose folder is here.

    The folder itself is one where a location in it is written so that MLflow would misread it.
    """
    found: dict[Path, None] = {}
    for (location,) in connection.execute("SELECT artifact_location FROM experiments").fetchall():
        path = local_path(location or "")
        if path is None or path.parent.name != "artifacts":
            continue
        here = path.parent.parent == folder
        misread = not location.startswith("file:") and not _MISREAD.isdisjoint(location)
        if misread if here else (folder / "artifacts" / path.name).is_dir():
            found[path.parent.parent] = None
    return list(found)


def _moved(location: str | None, former: list[Path], folder: Path) -> str | None:
    path = local_path(location or "")
    for base in former:
        if path is not None and path.is_relative_to(base) and path != base:
            # What may not be used is refused when it is to be used.
            with suppress(RunError):
                return within(folder, path.relative_to(base), what="The run store").as_uri()
    return None
