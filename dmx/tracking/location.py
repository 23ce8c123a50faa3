"""Where runs are kept: the project's root, the address of the store, and its links."""

import json
import os
import re
import socket
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from dmx.errors import RunError
from dmx.paths import within
from dmx.tracking.embedded import database_path, database_uri

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_PATIENCE_S = 10.0
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_VIEW = "workflowType=machine_learning&viewStateShareKey=dmx"
# A password ends at the last @ of its word: one that was not escaped can hold others.
_PASSWORD = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^\s/@:]*):(?P<password>[^\s'\"<>]*)@")
_QUERY = re.compile(r"(?P<key>[?&](?:password|passwd|pwd|token|secret|sslpassword)=)[^&\s'\"<>]+", re.IGNORECASE)


def project_root(start: Path | None = None) -> Path:
    """Return the nearest folder at or above ``start`` with ``mlruns/`` or ``pyproject.toml``, else ``start`` itself."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "mlruns").is_dir() or (folder / "pyproject.toml").is_file():
            return folder
    return here


def project_of(uri: str, root: Path) -> Path:
    """Return the folder from which the runs of a store name their files.

    Args:
        uri: Address of the store.
        root: Folder of the project that is worked in; it counts where the store is that of no project.
    """
    database = database_path(uri)
    return database.parent.parent if database is not None and database.parent.name == "mlruns" else root


def embedded_uri(root: Path) -> str:
    """Return the address of the project's own store."""
    return database_uri(root / "mlruns" / "mlflow.db")


def runs_folder(uri: str, root: Path | None = None) -> Path:
    """Return the folder ``mlruns`` in which a store's runs keep what is theirs on this machine.

    It is that of the store where the store is a project's own, from wherever it is opened: one run has one journal and
    one lock.

    Args:
        uri: Address of the store.
        root: Folder of the project; found from the working directory when it is not given.
    """
    database = database_path(uri)
    if database is not None and database.parent.name == "mlruns":
        return database.parent
    return (root or project_root()) / "mlruns"


def resolve_uri(uri: str | None, root: Path) -> str:
    """Return the address that counts: the given one, else MLFLOW_TRACKING_URI, else the project's own store.

    Raises:
        RunError: The address is a folder, which MLflow no longer supports.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or embedded_uri(root)
    if "://" not in chosen or chosen.startswith("file:"):
        raise RunError(
            f"The run store must be a database or a server, got '{mask(chosen)}'. "
            "Use sqlite:///PATH/mlflow.db, postgresql+psycopg2://…, http://… or leave the address out."
        )
    return chosen


def is_server(uri: str) -> bool:
    """Tell whether the address is one of an MLflow server."""
    return uri.startswith(("http://", "https://"))


def answers(uri: str) -> bool:
    """Tell whether somebody listens where a database's address points; True for other addresses, which are not tried.

    MLflow itself tries a database ten times, for more than a minute, before it says that there is none.
    """
    port = _PORTS.get(uri.partition("://")[0].partition("+")[0])
    try:
        parts = urlsplit(uri)
        if port is None or not parts.hostname:
            return True
        with socket.create_connection((parts.hostname, parts.port or port), timeout=_PATIENCE_S):
            return True
    except ValueError:
        # A port that is no number: what reads the address says so.
        return True
    except OSError:
        return False


def mask(text: str) -> str:
    """Hide the password of every address in a text, before its host or among its options.

    >>> mask("postgresql://anna:secret@db/mlflow is down")
    'postgresql://anna:***@db/mlflow is down'
    """
    return _QUERY.sub(r"\g<key>***", _PASSWORD.sub(r"\g<scheme>\g<user>:***@", text))


def folder_name(experiment: str) -> str:
    """Return a folder name for an experiment.

    >>> folder_name("BRATS / tiny")
    'BRATS-tiny'
    """
    return re.sub(r"[^\w.-]+", "-", experiment).strip("-.") or "experiment"


def local_path(location: str) -> Path | None:
    """Return an artifact location of MLflow as a path of this machine; ``None`` for any other.

    A store is only a file: whether the path may be used is for :func:`dmx.paths.within` to say.

    >>> local_path("file:///data/study%20%232/mlruns"), local_path("/data/study #2"), local_path("s3://bucket/1")
    (PosixPath('/data/study #2/mlruns'), PosixPath('/data/study #2'), None)
    """
    if not location.startswith("file:"):
        return None if _SCHEME.match(location) else Path(location)
    parts = urlsplit(location)
    return Path(unquote(parts.path)) if parts.netloc in ("", "localhost") else None


def artifact_location(uri: str, experiment: str, taken: set[str]) -> str:
    """Return where the artifacts of a new experiment go in a store that is opened directly: beside its database.

    It is a ``file:`` address, in which MLflow misreads no name.

    Raises:
        RunError: The database is no file.
    """
    database = database_path(uri)
    if database is None:
        raise RunError(
            f"The run store {mask(uri)} does not say where artifacts go. Reach it through an MLflow server, "
            f"or create experiment '{experiment}' first with an artifact location that all machines reach."
        )
    base = folder_name(experiment)
    names = (base, *(f"{base}-{number}" for number in range(2, len(taken) + 3)))
    folder = within(database.parent, "artifacts", what="The run store")
    used = {local_path(location) for location in taken}
    return within(folder, next(name for name in names if folder / name not in used), what="The run store").as_uri()


def check_route(uri: str, location: str) -> None:
    """Require that artifacts are reached in the same way, directly or through a server, as the store.

    Raises:
        RunError: They are not.
    """
    if location.startswith("mlflow-artifacts:") and not is_server(uri):
        raise RunError(
            f"The artifacts at {location} belong to an experiment that was made through a server, and the run store "
            f"was opened directly ({mask(uri)}). Set MLFLOW_TRACKING_URI to the server's http address."
        )
    if is_server(uri) and (location.startswith("file:") or not _SCHEME.match(location)):
        raise RunError(
            f"The artifacts at {location} belong to an experiment that was made without a server, and the run store "
            f"was reached through one ({mask(uri)}). Use the database's own address, or another experiment."
        )


def pages(uri: str) -> str:
    """Return where the MLflow pages of a store are: at its server, or where ``dmx ui`` serves them."""
    return uri if is_server(uri) else "http://127.0.0.1:5000"


def experiment_link(base: str, experiment_id: str) -> str:
    """Return the page with the table of an experiment's runs, with the project's columns.

    Without ``/runs`` MLflow goes there by itself and loses the columns on the way.
    """
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{_VIEW}"


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    """Return the page of a run."""
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{_VIEW}"


def artifact_link(experiment_id: str, run_id: str, path: str) -> str:
    """Return where a run's page shows an artifact, relative to MLflow's pages."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{quote(path)}?{_VIEW}"


def compare_link(base: str, experiment_ids: list[str], run_ids: list[str]) -> str:
    """Return the page that compares runs and preselects the params that differ."""
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (run_ids, experiment_ids))
    return f"{base.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}&{_VIEW}"
