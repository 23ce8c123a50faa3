"""Mend the embedded store after its folder was moved: MLflow keeps artifact locations as absolute paths."""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from dmx.errors import RunError
from dmx.tracking.embedded import opening

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def relocate(database: Path) -> int:
    """Let every artifact location below a former ``artifacts`` folder point to the one beside the database.

    Args:
        database: ``mlruns/mlflow.db`` in its new place.

    Returns:
        Number of locations that were changed. Locations that are no paths, or whose folder is not here, stay.

    Raises:
        RunError: There is no such database.
    """
    if not database.is_file():
        raise RunError(f"There is no run store at {database}. Run this in the project's folder.")
    folder = database.resolve().parent
    changed = 0
    with opening(database), closing(sqlite3.connect(database)) as connection, connection:
        former = _former_folders(connection, folder)
        for table, column in _COLUMNS:
            for (location,) in connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
                moved = _moved(location, former, folder)
                if moved is not None:
                    query = f"UPDATE {table} SET {column} = ? WHERE {column} = ?"
                    changed += connection.execute(query, (moved, location)).rowcount
    return changed


def _former_folders(connection: sqlite3.Connection, folder: Path) -> list[Path]:
    """Return the folders above ``artifacts/<experiment>`` of other places, of experiments whose folder is here."""
    found: dict[Path, None] = {}
    for (location,) in connection.execute("SELECT artifact_location FROM experiments").fetchall():
        path = _path(location)
        if path is None or path.parent.name != "artifacts" or path.parent.parent == folder:
            continue
        if (folder / "artifacts" / path.name).is_dir():
            found[path.parent.parent] = None
    return list(found)


def _moved(location: str | None, former: list[Path], folder: Path) -> str | None:
    path = _path(location)
    for base in former:
        if path is not None and path.is_relative_to(base):
            return str(folder / path.relative_to(base))
    return None


def _path(location: str | None) -> Path | None:
    """Return a location of this machine's file system as a path."""
    parsed = urlparse(location or "")
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") and parsed.path else None
