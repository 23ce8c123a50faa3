"""Find runs by what a person types."""

import re
from collections.abc import Iterable
from datetime import datetime

from dmx.errors import RunError
from dmx.tracking.store import RunInfo, RunReader

_ID = re.compile(r"[0-9a-f]{32}")
_PREFIX = re.compile(r"[0-9a-f]{1,31}")
NETWORK_KINDS = ("train", "finetune", "transfer", "import")
"""Kinds of runs that hold a network. The others use one: they score, predict, look inside."""


def find_run(store: RunReader, text: str) -> RunInfo:
    """Return the run that a text names.

    Args:
        store: Where to look.
        text: A run id, a unique prefix of one, ``experiment/run-name``, or ``experiment/last`` for the
            newest run that holds a network; evaluations and predictions are none.

    Raises:
        RunError: No run or several runs fit; several are listed with id, date and status.
    """
    if _ID.fullmatch(text):
        return store.get_run(text)
    runs = _candidates(store, text)
    if len(runs) == 1:
        return runs[0]
    if runs:
        raise RunError(
            f"'{text}' names {len(runs)} runs: {'; '.join(map(_line, runs[:10]))}. Give the run's id or more of it."
        )
    experiment, _, name = text.rpartition("/")
    if name == "last" and store.list_runs(experiment=experiment, limit=1):
        raise RunError(
            f"Experiment '{experiment}' in {store.uri} has no run that holds a network ({', '.join(NETWORK_KINDS)}), "
            f"so there is no '{text}'. Name the run that you mean{_known(store, text)}."
        )
    raise RunError(
        f"No run '{text}' in {store.uri}. Give a run id, the start of one, EXPERIMENT/RUN-NAME or EXPERIMENT/last"
        f"{_known(store, text)}."
    )


def last_training(store: RunReader, experiment: str) -> RunInfo | None:
    """Return the newest run of an experiment that holds a network: trained, fine-tuned, transferred or imported."""
    newest = [store.list_runs(experiment=experiment, tags={"dmx.kind": kind}, limit=1) for kind in NETWORK_KINDS]
    return max((run for runs in newest for run in runs), key=lambda run: run.started, default=None)


def _candidates(store: RunReader, text: str) -> list[RunInfo]:
    if "/" in text:
        experiment, name = text.rsplit("/", 1)
        runs = store.list_runs(experiment=experiment, tags={"mlflow.runName": name})
        if runs or name != "last":
            return runs
        last = last_training(store, experiment)
        return [last] if last is not None else []
    return store.list_runs(prefix=text) if _PREFIX.fullmatch(text) else []


def _line(run: RunInfo) -> str:
    return f"{run.id[:8]} ({run.experiment}/{run.name}, {when(run.started)}, {run.status})"


def _known(store: RunReader, text: str) -> str:
    """Name the runs that were meant perhaps: those of that name anywhere, else the newest ones."""
    name = text.rsplit("/", 1)[-1]
    runs = store.list_runs(tags={"mlflow.runName": name}, limit=3) or store.list_runs(limit=3)
    return f", for example {_names(runs)}" if runs else "; there is no run yet"


def _names(runs: Iterable[RunInfo]) -> str:
    return ", ".join(f"'{run.experiment}/{run.name}'" for run in runs)


def when(milliseconds: int) -> str:
    """Return local date and time of milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().strftime("%Y-%m-%d %H:%M")
