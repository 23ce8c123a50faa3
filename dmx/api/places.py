"""What a person may write for a run or a store, and who hears of warnings."""

import logging
from pathlib import Path

from dmx.errors import RunError
from dmx.tracking.location import embedded_uri, mask, project_root
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunStore
from dmx.workflows.session import Session, Silence

_RUNS = "runs:/"
_FOLDER = "mlruns"


class Logged(Silence):
    """Pass warnings to the logger ``dmx`` of Python, which prints them unless the program decides otherwise."""

    def warn(self, sentence: str) -> None:
        """Log a warning."""
        logging.getLogger("dmx").warning("Warning: %s", sentence)


def run_name(run: str) -> str:
    """Return the name of a run without MLflow's ``runs:/``.

    Raises:
        RunError: It is no text, or more than a run is named.
    """
    name = run.removeprefix(_RUNS) if isinstance(run, str) else ""
    if not name or (name != run and "/" in name):
        raise RunError(
            f"A run is named as 'runs:/<id>', by its id, the start of one, 'experiment/run-name' or 'experiment/last', "
            f"got {run!r}."
        )
    return name


def locate(store: str | Path | None) -> tuple[str | None, Path]:
    """Return the address of a store and the folder of its project.

    Args:
        store: Address (``sqlite:///…``, ``http://…``), or the folder ``mlruns`` of a project; ``None``: as on the
            command line.

    Raises:
        RunError: It is neither.
    """
    if store is None:
        return None, project_root()
    if "://" in str(store):
        return str(store), project_root()
    folder = Path(store).resolve()
    if folder.name != _FOLDER:
        raise RunError(
            f"store must be an address such as sqlite:///PATH/mlflow.db or http://…, or a folder called '{_FOLDER}', "
            f"got '{mask(str(store))}'."
        )
    return embedded_uri(folder.parent), folder.parent


def open_place(store: str | Path | None) -> tuple[RunStore, Session]:
    """Return an opened store, and a session in its project that shows warnings only."""
    uri, root = locate(store)
    return open_store(uri, root), Session(root=root, report=Logged())
