"""The readable summary that the MLflow page of a run begins with."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from dmx.tracking.store import RunInfo

BATCHES = "dmx.batches"
"""Tag of a run whose batches were given in Python: it does not know its data, nor how its network is built."""

WARNINGS = "warnings.txt"
"""Artifact with the warnings of a run, one a line."""

_MOST_NOTE = 5000
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
    """

    def __init__(self, run: Logged, body: str = "") -> None:
        self._run = run
        self._body = body
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
        listed = warnings_list(self._warnings)
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
