"""Run the benchmarks and print one page of Markdown tables, machine and date on top.

    python benchmarks/run.py [--only training sampling]

Each benchmark takes more options: `python benchmarks/training.py --help`. On two cores all of them take some minutes.
"""

import argparse
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from common import machine

NAMES = ("training", "prediction", "sampling", "freezing", "planning", "peer", "startup")
QUICK = ("freezing", "planning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help=f"see that {' and '.join(QUICK)} work; no real numbers")
    options = parser.parse_args()
    if options.quick and not set(options.only) <= set(QUICK):
        parser.error(f"--quick is for --only {' '.join(QUICK)}")
    print(f"{machine()}; {datetime.now(UTC):%Y-%m-%d}; Python {sys.version.split()[0]}, torch {version('torch')}\n")
    words = [] if options.only == NAMES else ["--only", *options.only]
    words += ["--quick"] if options.quick else []
    command = f"make bench ARGS='{' '.join(words)}'" if words else "make bench"
    print(f"Command: `{command}`\n", flush=True)
    failed = []
    for name in options.only:
        script = Path(__file__).with_name(f"{name}.py")
        words = ["--quick"] if options.quick else []
        if subprocess.run([sys.executable, str(script), *words], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
