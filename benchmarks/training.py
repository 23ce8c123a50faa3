"""Train the full DeepMedic configuration: segments per second, peak memory, and what sampling takes of it.

Real `fit`, sampler, prefetching and usual augmentation, on memory-mapped scans of 240 x 240 x 155 voxels; a step is 10
segments of 37 voxels. Each setting runs in a process of its own.

    python benchmarks/training.py [--steps 4] [--kind default] [--precision bf16]
"""

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

from common import (
    KINDS,
    SEGMENT,
    SEGMENTS,
    Clock,
    compatibility,
    cores,
    full_network,
    in_own_process,
    peak_bytes,
    print_table,
    usual_augmentation,
    write_case,
)

CASES = 10
SETTINGS = (("fp32", False), ("bf16", True))
DEEPMEDIC = {
    "network": "DeepMedic v0.8.4",
    "precision": "fp32",
    "segments/s": SEGMENTS / 13.0,
    "s per step": 13.0,
    "CPU-s per step": 23.8,
    "peak GB": 6.1,
    "waiting for segments, %": None,
    "sampling, % of CPU": None,
}


def measure(options: argparse.Namespace) -> dict[str, float]:
    import torch

    from dmx.config.sections import SamplingSection, TrainingSection
    from dmx.sampling.prefetch import Prefetcher
    from dmx.sampling.sampler import SegmentSampler
    from dmx.sampling.source import MemoryMappedSource
    from dmx.training.events import Event, StepEnded
    from dmx.training.loop import fit
    from dmx.training.settings import FitSettings
    from dmx.training.state import new_state

    torch.set_num_threads(options.threads)
    network = full_network(options.kind)
    # The first steps choose algorithms and fill the prefetcher.
    skipped = 2
    training = TrainingSection(
        epochs=1,
        steps_per_epoch=skipped + options.steps,
        batch_size=SEGMENTS,
        device=options.device,
        precision=options.precision,
        channels_last=options.channels_last,
    )
    settings = FitSettings(
        classes=tuple(f"class {n}" for n in range(5)), training=training, compatibility=compatibility(options.kind)
    )
    state = new_state(network, settings)
    with tempfile.TemporaryDirectory() as folder:
        load = write_case(Path(folder))
        sampler = SegmentSampler(
            MemoryMappedSource([partial(load) for _ in range(CASES)]),
            network.segment_plan((SEGMENT,) * 3),
            SamplingSection(),
            usual_augmentation(),
            batch_size=SEGMENTS,
            steps_per_epoch=training.steps_per_epoch,
            num_classes=5,
            seed=0,
            device=state.device,
            compatibility=settings.compatibility,
        )
        events: list[tuple[StepEnded, float]] = []
        clock = Clock()

        def listen(event: Event) -> None:
            if isinstance(event, StepEnded):
                events.append((event, clock.busy))

        with Prefetcher(lambda key: sampler.batch(*key), following=sampler.following, workers=1) as batches:
            fit(state, lambda *key: batches.get(key), settings, listeners=[listen])
        peak = peak_bytes(options.device)
        # The work itself, without what threads spend on waiting for each other.
        torch.set_num_threads(1)
        sampling = batch_cost(sampler, options.steps)
    steps = [event for event, _ in events[skipped:]]
    busy = (events[-1][1] - events[skipped - 1][1]) / options.steps
    seconds = sum(step.seconds for step in steps)
    return {
        "segments_per_second": SEGMENTS * options.steps / seconds,
        "seconds": seconds / options.steps,
        "cpu_seconds": busy,
        "peak_gb": peak / 1e9,
        "waiting": sum(step.sampling_seconds for step in steps) / seconds,
        "sampling": sampling / busy,
    }


def batch_cost(sampler, batches: int) -> float:
    """Return the median processor seconds of making a batch."""
    costs = []
    for step in range(batches):
        clock = Clock()
        sampler.batch(0, step)
        costs.append(clock.busy)
    return statistics.median(costs)


def row(kind: str, precision: str, channels_last: bool, found: dict[str, float]) -> dict[str, object]:
    return {
        "network": f"full, {kind}",
        "precision": precision + (", channels last" if channels_last else ""),
        "segments/s": found["segments_per_second"],
        "s per step": found["seconds"],
        "CPU-s per step": found["cpu_seconds"],
        "peak GB": found["peak_gb"],
        "waiting for segments, %": 100 * found["waiting"],
        "sampling, % of CPU": 100 * found["sampling"],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="network: DeepMedic's exactly, or the default; both if left out")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="fp32 and bf16 if left out")
    parser.add_argument("--channels-last", action="store_true", help="memory layout, with --precision")
    parser.add_argument("--steps", type=int, default=4, help="steps measured, after two")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.one:
        print(json.dumps(measure(options)))
        return
    settings = [(options.precision, options.channels_last)] if options.precision else SETTINGS
    rows: list[dict[str, object]] = [DEEPMEDIC]
    for kind in [options.kind] if options.kind else KINDS:
        for precision, channels_last in settings:
            words = ["--kind", kind, "--precision", precision, "--steps", options.steps, "--threads", options.threads]
            words += ["--device", options.device, *(["--channels-last"] if channels_last else [])]
            rows.append(row(kind, precision, channels_last, in_own_process(__file__, words)))
    print_table(
        "Training",
        rows,
        f"A step is {SEGMENTS} segments of {SEGMENT}³ voxels with usual augmentation; mean of {options.steps} steps, "
        f"{options.threads} threads, one more for sampling.",
    )


if __name__ == "__main__":
    main()
