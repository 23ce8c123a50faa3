"""Scores of whole images and volumes: one pass in inference mode over all, then what they are worth."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmx.evaluation.classification import score_classes, score_targets
from dmx.evaluation.metrics import Row
from dmx.sampling.batch import Batch

Forward = Callable[[Sequence[Tensor]], Tensor]


@torch.no_grad()
def collect_scores(
    forward: Forward, batches: Iterable[Batch], *, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return the scores of all cases, float32 [cases, outputs], and their targets, both where the batches are.

    Args:
        forward: The network in inference mode, or the part of it that reads the batches.
        batches: The cases.
        dtype: bfloat16 or float16 for mixed precision; None: float32.
    """
    scores, targets = [], []
    for batch in batches:
        with torch.autocast(batch.target.device.type, dtype=dtype, enabled=dtype is not None):
            scores.append(forward(batch.inputs).float())
        targets.append(batch.target)
    return torch.cat(scores), torch.cat(targets)


def measure(task: str, scores: Tensor, target: Tensor, *, outputs: Sequence[str]) -> Row:
    """Return what scores are worth: the rows of :mod:`dmx.evaluation.classification`.

    Args:
        task: ``classification`` or ``regression``.
        scores: [cases, outputs], before the softmax.
        target: Class of each case, int64 [cases], or its numbers [cases, outputs].
        outputs: Names of the classes or targets.
    """
    truth = target.cpu().numpy()
    if task == "regression":
        return score_targets(truth, scores.double().cpu().numpy(), targets=outputs)
    return score_classes(truth, probabilities(scores), classes=outputs)


def probabilities(scores: Tensor) -> NDArray[np.float64]:
    """Return the softmax of scores [cases, classes]."""
    values: NDArray[np.float64] = torch.softmax(scores.double(), dim=1).cpu().numpy()
    return values


def confusion(target: Tensor, scores: Tensor, *, num_classes: int) -> NDArray[np.int64]:
    """Return how many cases of each true class (rows) were given which class (columns)."""
    pairs = target.cpu() * num_classes + scores.argmax(dim=1).cpu()
    counts: NDArray[np.int64] = np.bincount(pairs.numpy(), minlength=num_classes**2).reshape(num_classes, num_classes)
    return counts
