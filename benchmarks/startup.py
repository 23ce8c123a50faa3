"""Measure how long commands take that people run often.

python benchmarks/startup.py [--runs 5]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

from common import Clock, print_table

COMMANDS = (("--help",), ("model", "show", "--help"), ("runs", "list"))


def measure(words: tuple[str, ...], *, folder: str, runs: int) -> dict[str, object]:
    """Return the median seconds of a command in an empty project; one more run before, which fills caches."""
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    seconds = []
    for _ in range(runs + 1):
        clock = Clock()
        command = [sys.executable, "-P", "-m", "dmx", *words]
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        seconds.append(clock.wall)
    return {
        "command": " ".join(["dmx", *words]),
        "median s": statistics.median(seconds[1:]),
        "fastest s": min(seconds[1:]),
        "first s": seconds[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(words, folder=folder, runs=options.runs) for words in COMMANDS]
    print_table("Start-up", rows, f"Medians of {options.runs} runs after a first one, in a folder without runs.")


if __name__ == "__main__":
    main()
