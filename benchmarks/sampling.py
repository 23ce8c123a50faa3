"""Measure what a batch of segments costs: the full DeepMedic configuration, with and without augmentation.

Ten segments of 37³ with patches of 37³, 23³ (factor 3) and 21³ (factor 5) from volumes of 240 x 240 x 155 with two
channels that are read through memory maps; then the same for 10 and for 10,000 cases, simulated by opening the same
files under many names.

    python benchmarks/sampling.py [--batches 10] [--threads 2]
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

from common import SEGMENT, SEGMENTS, Clock, cores, full_network, print_table, usual_augmentation, write_case

PLANS = (
    ("no augmentation", 10, 0.0),
    ("usual augmentation", 10, None),
    ("every change, always", 10, 1.0),
    ("no augmentation", 10_000, 0.0),
    ("usual augmentation", 10_000, None),
)


def measure(sampler, batches: int) -> dict[str, float]:
    """Return the median milliseconds of a batch: by the clock, and of processor time."""
    sampler.batch(0, 0)
    wall, busy = [], []
    for step in range(1, batches + 1):
        clock = Clock()
        sampler.batch(0, step)
        wall.append(clock.wall * 1e3)
        busy.append(clock.busy * 1e3)
    return {
        "ms per batch": statistics.median(wall),
        "CPU-ms per batch": statistics.median(busy),
        "CPU-ms per segment": statistics.median(busy) / SEGMENTS,
    }


def run(batches: int) -> list[dict[str, object]]:
    from dmx.config.sections import SamplingSection
    from dmx.sampling.sampler import SegmentSampler
    from dmx.sampling.source import MemoryMappedSource

    plan = full_network("default").segment_plan((SEGMENT,) * 3)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        load = write_case(Path(folder))
        for name, cases, probability in PLANS:
            # Separate callables: each stands for a case of its own.
            loaders = [partial(load) for _ in range(cases)]
            clock = Clock()
            sampler = SegmentSampler(
                MemoryMappedSource(loaders),
                plan,
                SamplingSection(),
                usual_augmentation(probability),
                batch_size=SEGMENTS,
                steps_per_epoch=batches + 1,
                num_classes=2,
                seed=0,
                device="cpu",
            )
            setup = clock.wall
            rows.append({"segments": name, "cases": cases, **measure(sampler, batches), "set-up, s": setup})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=10, help="batches of 10 segments per row")
    parser.add_argument("--threads", type=int, default=cores(), help="threads of torch")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    note = f"Medians of {options.batches} batches of {SEGMENTS} segments, {options.threads} threads."
    print_table("Sampling", run(options.batches), note)


if __name__ == "__main__":
    main()
