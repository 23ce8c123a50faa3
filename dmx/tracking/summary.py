"""The readable summary that the MLflow page of a run begins with."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dmx.errors import RunError
from dmx.tracking.family import frozen_words
from dmx.tracking.lineage import children, source_runs
from dmx.tracking.location import artifact_link, run_link
from dmx.tracking.store import RunInfo, RunReader, RunStore

BATCHES = "dmx.batches"
"""Tag of a run whose batches were given in Python: it does not know its data, nor how its network is built."""

WARNINGS = "warnings.txt"
"""Artifact with the warnings of a run, one a line."""

MAPPING = "transfer/mapping.html"
"""Artifact with the picture of what a transfer copied."""

_MOST_NOTE = 5000
_CHILDREN_SHOWN = 15
_USED_BY = re.compile(r"\n*\*\*Used by\*\*\n\n(?:- [^\n]*(?:\n|$))+")
_WARNINGS_SHOWN = 10
_LONGEST_WARNING = 300
_SCORES = (
    "val_volume/dice",
    "val/dice",
    "val/accuracy",
    "val/balanced_accuracy",
    "val/r2",
    "val/loss",
    "train/mean_loss",
)


class Logged(Protocol):
    """What a summary needs of its run."""

    @property
    def files(self) -> Path:
        """Return the folder of its artifacts on this machine."""

    def told(self, text: str) -> str:
        """Return a text as it may be kept."""

    def log_line(self, text: str) -> None:
        """Add a line to its log."""

    def log_text(self, path: str, text: str) -> None:
        """Make a text an artifact."""

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags."""


class Summary:
    """The Markdown summary of a run, and its warnings, each once.

    Args:
        run: The run.
        body: The summary so far.
        note: What the store shows now; the runs that it lists as using this one stay listed.
    """

    def __init__(self, run: Logged, body: str = "", *, note: str = "") -> None:
        self._run = run
        self._body = body
        found = _USED_BY.search(note)
        self._used_by = found.group().strip() if found else ""
        kept = run.files / WARNINGS
        self._warnings: list[str] = []
        with suppress(OSError):
            self._warnings = kept.read_text(encoding="utf-8", errors="replace").splitlines()

    def set(self, body: str) -> None:
        """Replace the summary; the warnings stay."""
        self._body = body
        self._publish()

    def warn(self, sentence: str) -> None:
        """Keep a warning in the log, in ``warnings.txt``, and in the summary; the tag ``dmx.warnings`` counts them."""
        line = self._run.told(" ".join(sentence.split()))
        if line in self._warnings:
            return
        self._warnings.append(line)
        self._run.log_line(f"Warning: {line}")
        self._run.log_text(WARNINGS, "".join(f"{warning}\n" for warning in self._warnings))
        self._run.set_tags({"dmx.warnings": str(len(self._warnings))})
        self._publish()

    def _publish(self) -> None:
        listed = "\n\n".join(filter(None, (warnings_list(self._warnings), self._used_by)))
        body = self._body[: _MOST_NOTE - len(listed)].rstrip()
        self._run.set_tags({"mlflow.note.content": f"{body}\n\n{listed}".strip() + "\n"})


def warnings_list(warnings: Sequence[str]) -> str:
    """Return warnings as a Markdown list, the first ones where there are many."""
    if not warnings:
        return ""
    lines = [f"- {line[:_LONGEST_WARNING]}" for line in warnings[:_WARNINGS_SHOWN]]
    if len(warnings) > _WARNINGS_SHOWN:
        lines.append(f"- … and {len(warnings) - _WARNINGS_SHOWN} more in `{WARNINGS}`")
    return "\n".join(["**Warnings**", "", *lines])


def describe(store: RunReader, run: RunInfo, params: Mapping[str, object], note: str) -> str:
    """Return what the summary of a new run begins with: links to its sources, what is frozen, the mapping, its note.

    Args:
        store: Where the run is; a source that it does not have gets no link.
        run: The run.
        params: Its params.
        note: What the user says of it.
    """
    lines = []
    checkpoint = run.tags.get("dmx.source_checkpoint", "")
    for number, source in enumerate(source_runs(run.tags)):
        with suppress(RunError):
            at = f", checkpoint `{checkpoint}`" if checkpoint and number == 0 else ""
            lines.append(f"**Source:** {_link(store.get_run(source))}{at}")
    if "dmx.source_file" in run.tags:
        lines.append(f"**Source:** file `{run.tags['dmx.source_file']}`")
    frozen = frozen_words({key: str(value) for key, value in params.items()})
    if frozen and run.kind in ("finetune", "transfer"):
        lines.append(f"**Frozen:** {frozen}")
    if run.kind == "transfer" or any(key.startswith("transfer.") for key in params):
        lines.append(f"**Mapping:** [layer by layer]({artifact_link(run.experiment_id, run.id, MAPPING)})")
    return "\n\n".join(filter(None, (*lines, note)))


def link_back(store: RunStore, run_id: str) -> None:
    """List the runs that started from a run in its summary, newest first; the rest of the summary stays.

    Raises:
        RunError: The store cannot be reached.
    """
    run = store.get_run(run_id)
    found = children(store, run)
    lines = [f"- {_link(child)} ({child.kind})" for child in found[:_CHILDREN_SHOWN]]
    if len(found) > _CHILDREN_SHOWN:
        lines.append(f"- and {len(found) - _CHILDREN_SHOWN} more, see `dmx runs lineage {run.id[:8]}`")
    listed = "\n".join(["**Used by**", "", *lines])
    before = _USED_BY.sub("", run.tags.get("mlflow.note.content", ""))[: _MOST_NOTE - len(listed)].rstrip()
    store.set_tags(run_id, {"mlflow.note.content": f"{before}\n\n{listed}\n".lstrip()})


def _link(run: RunInfo) -> str:
    """Return a link to a run's page that works wherever MLflow's pages are served."""
    return f"[{run.experiment}/{run.name}]({run_link('', run.experiment_id, run.id).removeprefix('/')})"


def training_note(run: RunInfo, progress: str, metrics: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Return the Markdown summary of a training.

    Args:
        run: The run; what its note said at the start comes first.
        progress: Where the training is, in words.
        metrics: The last values.
        names: Checkpoint of each name.
    """
    description = run.tags.get("dmx.description", "")
    rows = [("training", progress)]
    rows += [(f"`{key}`", f"{metrics[key]:.4f}") for key in _SCORES if key in metrics]
    rows += [(f"checkpoint `{name}`", f"`{names[name]}`") for name in ("best", "last") if name in names]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    commands = f"- load: `dmx.load_model('{run.id[:8]}', into=model)`" if BATCHES in run.tags else _commands(run)
    return f"{description}\n\n| | |\n|---|---|\n{table}\n\n{commands}\n".lstrip()


def predict_command(run: RunInfo) -> str:
    """Return the command that predicts with a run: label maps in a folder, or a table of scores."""
    output = "DIR" if run.tags.get("dmx.task", "segmentation") == "segmentation" else "TABLE.csv"
    return f"dmx predict --from-run {run.id[:8]} COHORT_OR_FILES -o {output}"


def _commands(run: RunInfo) -> str:
    return (
        f"- go on: `dmx resume {run.id[:8]}`\n"
        f"- predict: `{predict_command(run)}`\n"
        f"- score: `dmx evaluate --from-run {run.id[:8]} COHORT`"
    )
