"""Run the benchmarks and print one page of Markdown tables, machine and date on top.

    python benchmarks/run.py [--only training sampling]

Each benchmark takes more options: `python benchmarks/training.py --help`. On two cores all of them take 8 minutes.
"""

import argparse
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from common import machine

NAMES = ("training", "prediction", "sampling", "peer", "startup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    options = parser.parse_args()
    print(f"{machine()}; {datetime.now(UTC):%Y-%m-%d}; Python {sys.version.split()[0]}, torch {version('torch')}\n")
    command = " ".join(["make bench", *([f"ARGS='--only {' '.join(options.only)}'"] if options.only != NAMES else [])])
    print(f"Command: `{command}`\n", flush=True)
    failed = []
    for name in options.only:
        script = Path(__file__).with_name(f"{name}.py")
        if subprocess.run([sys.executable, str(script)], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
