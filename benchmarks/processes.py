"""Train the full default network with one process of all threads, and with several processes that share them.

Real cases of the demonstration, sampler, prefetching and training loop; a step is two passes (one per process where
there are more) of 5 segments of 37 voxels. The settings take turns, each in a process of its own.

    python benchmarks/processes.py [--steps 4] [--rounds 2] [--precision bf16]
"""

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from common import SEGMENT, cores, full_configuration, in_own_process, print_table

CASES = 4
SPACING_MM = 3.0
SKIPPED = 2
"""The first steps choose algorithms and fill the prefetcher."""


def measure(options: argparse.Namespace) -> list[float]:
    """Return the seconds of each step."""
    from dmx.cohort.demo import make_demo_cohort
    from dmx.config.data import CohortSection, SamplingSection
    from dmx.config.sections import Experiment, TrainingSection, ValidationSection
    from dmx.training.events import Event, StepEnded
    from dmx.training.loop import fit
    from dmx.workflows.assemble import assemble, check_training
    from dmx.workflows.processes import helping
    from dmx.workflows.session import Session

    with tempfile.TemporaryDirectory() as folder:
        os.environ["DMX_CACHE_DIR"] = folder
        make_demo_cohort(Path(folder) / "cohort", "A", cases=CASES, spacing_mm=SPACING_MM, seed=0)
        training = TrainingSection(
            epochs=1,
            steps_per_epoch=SKIPPED + options.steps,
            batch_size=5,
            accumulate=options.passes,
            device="cpu",
            precision=options.precision,
            channels_last=options.precision == "bf16",
            processes=options.processes,
            threads=max(1, options.threads // options.processes),
        )
        experiment = Experiment(
            name="processes",
            cohort=CohortSection(manifest=str(Path(folder) / "cohort" / "manifest.csv")),
            sampling=SamplingSection(segment=SEGMENT, workers=1),
            model=full_configuration("default"),
            training=training,
            validation=ValidationSection(every_epochs=0, volumes_every_epochs=0),
        )
        session = Session(root=Path(folder))
        assembled = assemble(check_training(experiment, session), session)
        assembled = replace(assembled, validate=None)
        seconds: list[float] = []

        def listen(event: Event) -> None:
            if isinstance(event, StepEnded):
                seconds.append(event.seconds)

        with assembled.batches() as batches, helping(assembled, session) as helpers:
            settings = assembled.checked.settings
            fit(assembled.state, lambda *key: batches.get(key), settings, listeners=[listen], helpers=helpers)
    return seconds[SKIPPED:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="steps measured, after two")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each setting")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=cores(), help="of all processes together")
    parser.add_argument("--processes", type=int, default=2, help="to be compared with one; above 1")
    parser.add_argument("--passes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps({"seconds": measure(options)}))
        return
    passes = max(2, options.processes)
    found: dict[int, list[float]] = {1: [], options.processes: []}
    for _ in range(options.rounds):
        for processes, seconds in found.items():
            words = ["--steps", options.steps, "--precision", options.precision, "--threads", options.threads]
            words += ["--processes", processes, "--passes", passes]
            seconds.extend(in_own_process(__file__, words)["seconds"])
    print_table(
        "Processes",
        [
            {
                "processes": processes,
                "threads of each": max(1, options.threads // processes),
                "s per step, median": statistics.median(seconds),
                "fastest": min(seconds),
                "slowest": max(seconds),
            }
            for processes, seconds in found.items()
        ],
        f"The full default network, {options.precision}; a step is {passes} passes of 5 segments of "
        f"{SEGMENT}³ voxels; {options.rounds} turns of {options.steps} steps.",
    )


if __name__ == "__main__":
    main()
