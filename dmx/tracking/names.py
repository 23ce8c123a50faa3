"""Names of runs: what distinguishes them first, because the MLflow page cuts them."""

import re

from dmx.errors import RunError
from dmx.tracking.store import RunReader

_LONGEST = 28
_LONGEST_GIVEN = 120


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
    start = f"{short_words(words)}-{kind}-"
    numbers = [
        int(run.name.removeprefix(start))
        for run in store.list_runs(experiment=experiment, tags={"dmx.kind": kind})
        if run.name.startswith(start) and run.name.removeprefix(start).isdigit()
    ]
    return f"{start}{max(numbers, default=0) + 1}"


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
