"""The course of a training, from the tables of its run: losses of epochs and steps, scores."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from dmx.errors import RunError
from dmx.tracking.files import read_text
from dmx.tracking.history import as_numbers
from dmx.tracking.store import RunInfo, RunReader

Rows = Sequence[Mapping[str, float | None]]

_SEGMENTATION = "segmentation"
_MEASURES = {_SEGMENTATION: "dice", "classification": "accuracy", "regression": "r2"}


def course(epochs: Rows, steps: Rows, *, task: str = _SEGMENTATION) -> dict[str, Any]:
    """Return ``epoch_loss``, ``step_loss``, ``score_train`` and ``score_validation``.

    A score is Dice for segmentation, accuracy for classification, R² for regression. That of the training data is what
    a pass in inference mode at the end of an epoch measured; the running accuracy of the steps is none. An epoch in
    which a score was not measured has None, and a score that was never measured is an empty list.

    Args:
        epochs: A row per epoch with its metrics.
        steps: A row per step with ``epoch`` and ``loss``.
        task: What the network learned.
    """
    measure = _MEASURES.get(task, "dice")
    losses: list[list[float]] = [[] for _ in epochs]
    numbers = {row["epoch"]: index for index, row in enumerate(epochs)}
    for row in steps:
        index, loss = numbers.get(row["epoch"]), row["loss"]
        if index is None:
            # An epoch that was interrupted has steps and no row of its own.
            index = numbers[row["epoch"]] = len(losses)
            losses.append([])
        if loss is not None:
            losses[index].append(loss)
    return {
        "epoch_loss": [row["train/mean_loss"] for row in epochs],
        "step_loss": losses,
        "score_train": _scores(epochs, f"score_train/{measure}"),
        "score_validation": _scores(epochs, f"val/{measure}"),
    }


def _scores(epochs: Rows, key: str) -> list[float | None]:
    found = [row.get(key) for row in epochs]
    return found if any(value is not None for value in found) else []


def read_course(store: RunReader, run: RunInfo) -> dict[str, Any]:
    """Return the same of a run of the store, every step included.

    Raises:
        RunError: The run has not trained, or its tables cannot be reached.
    """
    tables = [read_text(store, run.id, f"history/{name}.csv") for name in ("epochs", "steps")]
    if tables[0] is None or tables[1] is None:
        raise RunError(f"Run '{run.experiment}/{run.name}' has no history: it has not trained, or not one epoch yet.")
    epochs, steps = (as_numbers(csv.DictReader(io.StringIO(text))) for text in tables if text is not None)
    return course(epochs, steps, task=run.tags.get("dmx.task", _SEGMENTATION))
