"""Measure how long it takes to plan a transfer between two of DeepMedic's full networks.

python benchmarks/planning.py [--runs 20] [--quick]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from common import Clock, full_configuration, peak_bytes, print_table

CHANNELS, CLASSES = ("flair", "t1"), ("background", "edema", "core", "enhancing", "necrosis")


def measure(extra: str, *, runs: int) -> dict[str, object]:
    """Return the median seconds from the files of a checkpoint to the plan, and of its parts."""
    from safetensors.torch import save_file

    from dmx.model.build import build_network
    from dmx.model.sketch import sketch_network, sketch_section
    from dmx.transfer.header import check_header, read_header
    from dmx.transfer.options import TransferOptions
    from dmx.transfer.planning import plan_transfer

    section = full_configuration("compatibility")
    network = build_network(section, num_channels=2, num_classes=5, compatibility="deepmedic", seed=1)
    target = sketch_network(network, name="target", channels=CHANNELS, classes=CLASSES)
    options = TransferOptions(head="copy", extra="zero-cross" if extra == "zero-cross" else "random")
    described, planned = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(network.state_dict(), path)
        size, before = path.stat().st_size, peak_bytes()
        # Nothing beyond the table of contents is there to be read.
        with path.open("r+b") as file:
            file.truncate(8 + int.from_bytes(file.read(8), "little"))
        for _ in range(runs):
            clock = Clock()
            source = sketch_section(
                section, name="source", channels=CHANNELS, classes=CLASSES, compatibility="deepmedic"
            )
            check_header(source, read_header(path))
            described.append(clock.wall)
            clock = Clock()
            plan_transfer(source, target, options)
            planned.append(clock.wall)
    return {
        "extra": extra,
        "weights MB": size / 1e6,
        "describe source s": statistics.median(described),
        "plan s": statistics.median(planned),
        "slowest sum s": max(a + b for a, b in zip(described, planned, strict=True)),
        "peak MB more": (peak_bytes() - before) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two runs")
    options = parser.parse_args()
    options.runs = 2 if options.quick else options.runs
    rows = [measure(extra, runs=options.runs) for extra in ("random", "zero-cross")]
    print_table(
        "Planning a transfer",
        rows,
        f"Medians of {options.runs} runs; the weights are cut off the file, so none can be read.",
    )


if __name__ == "__main__":
    main()
