"""Print the accuracy of the ways over the seeds, and what an epoch costs, from the runs of ``run.sh``.

python summarize.py digits slices
"""

import argparse
import statistics
from collections.abc import Sequence

from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunStore

WAYS = ("scratch", "finetuned", "fixed")


def line(store: RunStore, images: str, way: str, seeds: Sequence[int]) -> str:
    """Return a row of the table: mean and range over the seeds."""
    scored = [store.find_run(f"{images}/scored-{way}-{seed}").metrics for seed in seeds]
    trained = [store.find_run(f"{images}/{way}-{seed}").metrics for seed in seeds]
    accuracies = [metrics["evaluation/accuracy"] for metrics in scored]
    seconds = statistics.mean(metrics["time/training"] for metrics in trained)
    return (
        f"| {images} | {way} | {statistics.mean(accuracies):.3f} ({min(accuracies):.3f} to {max(accuracies):.3f}) "
        f"| {seconds:.2f} |"
    )


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="names of the MLflow experiments")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    store = open_store()
    print("| images | way | accuracy, mean (range) over seeds | seconds per epoch |\n|---|---|---|---|")
    for images in options.images:
        for way in WAYS:
            print(line(store, images, way, options.seeds))


if __name__ == "__main__":
    main()
