"""Names of runs: what distinguishes them first, because the MLflow page cuts them."""

import re

from dmx.errors import RunError
from dmx.tracking.store import RunInfo, RunReader, RunStore

_LONGEST = 28
_LONGEST_GIVEN = 120
_TRIES = 3


def metric_key(text: str) -> str:
    """Return a text with what MLflow refuses in the key of a metric or picture replaced by ``_``."""
    return re.sub(r"[^A-Za-z0-9_\-./ ]+", "_", text)


def short_words(text: str) -> str:
    """Return the words of a text in lower case with dashes, cut between words.

    >>> short_words("Hippocampus: two pathways, bf16")
    'hippocampus-two-pathways'
    """
    name = ""
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        longer = f"{name}-{word}" if name else word[:_LONGEST]
        if len(longer) > _LONGEST:
            break
        name = longer
    return name or "run"


def next_name(store: RunReader, experiment: str, kind: str, words: str) -> str:
    """Return ``<words>-<kind>-<n>`` with a number that no run of the experiment has."""
    return f"{_start(kind, words)}{_highest(store, experiment, kind, words) + 1}"


def _start(kind: str, words: str) -> str:
    return f"{short_words(words)}-{kind}-"


def _highest(store: RunReader, experiment: str, kind: str, words: str) -> int:
    start = _start(kind, words)
    numbers = [
        int(run.name.removeprefix(start))
        for run in store.list_runs(experiment=experiment, tags={"dmx.kind": kind})
        if run.name.startswith(start) and run.name.removeprefix(start).isdigit()
    ]
    return max(numbers, default=0)


def sole_name(store: RunStore, run: RunInfo, words: str) -> RunInfo:
    """Give a new run the next number where another machine has chosen the same name at the same moment.

    Whoever sees the other one moves; of several, each moves by its own distance.

    Returns:
        The run as the store knows it then.
    """
    for _ in range(_TRIES):
        same = store.list_runs(experiment=run.experiment, tags={"mlflow.runName": run.name})
        ids = sorted({run.id, *(other.id for other in same)})
        if len(ids) == 1:
            break
        number = _highest(store, run.experiment, run.kind, words) + 1 + ids.index(run.id)
        store.rename_run(run.id, f"{_start(run.kind, words)}{number}")
        run = store.get_run(run.id)
    return run


def check_name(name: str) -> str:
    """Require a name by which the run can be found again.

    Raises:
        RunError: It is empty or longer than a table can show, or contains a slash, which separates experiment and run,
            or what is no printable character.
    """
    if not name.strip() or "/" in name:
        raise RunError(f"A run's name must not be empty or contain '/', got '{name}'.")
    if not name.isprintable() or len(name) > _LONGEST_GIVEN:
        raise RunError(f"A run's name must have at most {_LONGEST_GIVEN} printable characters, got {name[:60]!r}.")
    return name
