"""Print the accuracy of the ways over the seeds, and what an epoch costs, from the runs of ``run.sh``.

python summarize.py digits slices alexnet
"""

import argparse
import statistics
from collections.abc import Sequence

from dmx.errors import DmxError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunStore

WAYS = ("scratch", "finetuned", "conv5", "fixed", "document")


def line(store: RunStore, experiment: str, way: str, seeds: Sequence[int]) -> str | None:
    """Return a row of the table, mean and range over the seeds; None where the way was not tried."""
    try:
        scored = [store.find_run(f"{experiment}/scored-{way}-{seed}").metrics for seed in seeds]
        trained = [store.find_run(f"{experiment}/{way}-{seed}").metrics for seed in seeds]
    except DmxError:
        return None
    seconds = statistics.median(metrics["time/epoch"] for metrics in trained)
    columns = [_over([metrics[f"evaluation/{name}"] for metrics in scored]) for name in ("accuracy", "auc")]
    return f"| {experiment} | {way} | {' | '.join(columns)} | {seconds:.2f} |"


def _over(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", help="names of the MLflow experiments")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    store = open_store()
    print("| runs | way | accuracy, mean (range) over seeds | AUC | seconds of the last epoch |\n|---|---|---|---|---|")
    for experiment in options.experiments:
        rows = [row for way in WAYS if (row := line(store, experiment, way, options.seeds)) is not None]
        print("\n".join(rows) if rows else f"| {experiment} | not found | | | |")


if __name__ == "__main__":
    main()
