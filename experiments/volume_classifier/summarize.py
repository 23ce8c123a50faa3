"""Print the tables of the README: accuracy and AUC of each way, and their paired differences to training from scratch.

Usage: python summarize.py cohort.csv   (in the folder that holds mlruns)
"""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.manifest import read_manifest
from dmx.cohort.volume import read_grid
from dmx.errors import DmxError, RunError
from dmx.evaluation.classification import roc_auc
from dmx.evaluation.paired import paired_difference
from dmx.tracking.files import read_text
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.scores import Evaluation, paired_scores
from dmx.tracking.store import RunStore

WAYS = ("scratch", "transfer", "frozen")
LABELS = ("few", "all")
SEEDS = (0, 1, 2)
LARGE = "probability/large"
RESAMPLES = 2000

Floats = NDArray[np.float64]


def mean_auc(large: NDArray[np.bool_], scores: Floats) -> float:
    """Return the mean over seeds of the area under the ROC curve.

    Args:
        large: Whether each case is large [cases].
        scores: What each seed's network says [seeds, cases].
    """
    areas = [roc_auc(large, one) for one in scores]
    return mean(area for area in areas if area is not None)


def auc_gain(large: NDArray[np.bool_], first: Floats, second: Floats, *, resamples: int) -> tuple[float, float, float]:
    """Return how much larger the second mean AUC is, and the ends of its 95 % bootstrap interval.

    The same cases are drawn for both, small and large ones separately, so that each draw has both.
    """
    generator = np.random.default_rng(0)
    groups = [np.flatnonzero(large == value) for value in (False, True)]
    gains = []
    for _ in range(resamples):
        drawn = np.concatenate([generator.choice(group, len(group)) for group in groups])
        gains.append(mean_auc(large[drawn], second[:, drawn]) - mean_auc(large[drawn], first[:, drawn]))
    low, high = np.quantile(gains, [0.025, 0.975])
    return mean_auc(large, second) - mean_auc(large, first), float(low), float(high)


def scores_of(evaluations: Sequence[Evaluation], cases: Sequence[str]) -> Floats:
    """Return the probability of ``large`` [seeds, cases]."""
    tables = [one.scores(LARGE) for one in evaluations]
    return np.array([[table[case] for case in cases] for table in tables])


def row(labels: str, way: str, evaluations: Sequence[Evaluation], scratch: Sequence[Evaluation]) -> str:
    """Return a line of the table.

    Args:
        labels: How many labels there were.
        way: How the networks were trained.
        evaluations: One for each seed.
        scratch: What they are compared with, in the same order.
    """
    subjects = evaluations[0].subjects
    cases = sorted(subjects)
    truth = {case["case"]: case["truth"] for case in evaluations[0].rows}
    large = np.array([truth[case] == "large" for case in cases])
    right = [[mean(one.scores("accuracy")[case] for one in of) for case in cases] for of in (scratch, evaluations)]
    each = [mean(one.scores("accuracy").values()) for one in evaluations]
    scores = scores_of(evaluations, cases)
    areas = [mean_auc(large, scores[k : k + 1]) for k in range(len(scores))]
    line = f"| {labels} | `{way}` | {_listed(each)} | {_listed(areas)} |"
    if way == WAYS[0]:
        return line + " | |"
    gain = paired_difference(*(dict(zip(cases, of, strict=True)) for of in right), subjects)
    assert gain is not None
    area, low, high = auc_gain(large, scores_of(scratch, cases), scores, resamples=RESAMPLES)
    line += f" {gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] |"
    return line + f" {area:+.3f} [{low:+.3f}, {high:+.3f}] |"


def _listed(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def without_classifier(manifest: Path, predictions: str) -> list[str]:
    """Return what the volumes of predicted label maps tell, and what the sizes of the scans do.

    Args:
        manifest: The whole cohort; ``all.csv`` beside it holds the labels.
        predictions: Table of the predictions of the segmentation, as text.
    """
    held_out = read_manifest(manifest.with_name("all.csv")).in_split("evaluation")
    scans = {case.name: [path for path in case.channels.values() if path] for case in read_manifest(manifest).cases}
    voxels = {case.name: float(np.prod(read_grid(scans[case.name][0]).shape)) for case in held_out}
    lines = csv.DictReader(io.StringIO(predictions))
    volumes = {line["case"]: float(line["volume_ml/hippocampus"]) for line in lines}
    large = np.array([case.label == 1 for case in held_out])
    known = {"volume of the predicted label map": volumes, "number of voxels of the scan": voxels}
    scores = {what: np.array([[values[case.name] for case in held_out]]) for what, values in known.items()}
    return [f"{what}: AUC {mean_auc(large, values):.3f}" for what, values in scores.items()]


def table(store: RunStore) -> list[str]:
    """Return the lines of the table, from the newest evaluations.

    Raises:
        RunError: A run does not exist, or has not been evaluated.
    """
    lines = ["| labels | way | accuracy (each seed) | AUC (each seed) | difference of accuracy | difference of AUC |"]
    lines.append("|---|---|---|---|---|---|")
    for labels in LABELS:
        runs = [[store.find_run(f"volume-classifier/{way}-{labels}-{seed}") for way in WAYS] for seed in SEEDS]
        found = [paired_scores(store, of) for of in runs]
        if any(scores is None or len(scores.evaluations) < len(WAYS) for scores in found):
            raise RunError("Not all runs have been evaluated; run.sh does all of it.")
        tables = [scores.evaluations for scores in found if scores is not None]
        lines += [row(labels, way, [of[k] for of in tables], [of[0] for of in tables]) for k, way in enumerate(WAYS)]
    return lines


def main() -> None:
    """Print the table, and what is known without a classifier."""
    store = open_store()
    try:
        lines = table(store)
        counted = read_text(store, store.find_run("volume-classifier/counted").id, "predictions/predictions.csv")
        lines += ["", *without_classifier(Path(sys.argv[1]), counted or "")]
    except DmxError as error:
        raise SystemExit(str(error)) from None
    print("\n".join(lines))


if __name__ == "__main__":
    main()
