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
from typing import Any

from common import SEGMENT, cores, full_configuration, in_own_process, print_table

CASES = 4
SPACING_MM = 3.0
SKIPPED = 2
"""The first steps choose algorithms and fill the prefetcher."""


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Return the seconds of each step, and the processor seconds of one, of all processes together."""
    import psutil

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
        busy: list[float] = []

        def listen(event: Event) -> None:
            if isinstance(event, StepEnded):
                seconds.append(event.seconds)
                times = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), *(helpers.pids if helpers else ()))]
                busy.append(sum(time.user + time.system for time in times))

        with assembled.batches() as batches, helping(assembled, session) as helpers:
            settings = assembled.checked.settings
            fit(assembled.state, lambda *key: batches.get(key), settings, listeners=[listen], helpers=helpers)
    return {"seconds": seconds[SKIPPED:], "busy": (busy[-1] - busy[SKIPPED - 1]) / options.steps}


def row(processes: int, threads: int, turns: list[dict[str, Any]]) -> dict[str, object]:
    seconds = [value for turn in turns for value in turn["seconds"]]
    return {
        "processes": processes,
        "threads of each": threads,
        "s per step, median": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "CPU-s per step": statistics.mean(turn["busy"] for turn in turns),
    }


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
        print(json.dumps(measure(options)))
        return
    passes = max(2, options.processes)
    settings = (1, options.processes)
    found: dict[int, list[dict[str, Any]]] = {processes: [] for processes in settings}
    for processes in settings * options.rounds:
        words = ["--steps", options.steps, "--precision", options.precision, "--threads", options.threads]
        words += ["--processes", processes, "--passes", passes]
        found[processes].append(in_own_process(__file__, words))
    print_table(
        "Processes",
        [row(processes, max(1, options.threads // processes), turns) for processes, turns in found.items()],
        f"The full default network, {options.precision}; a step is {passes} passes of 5 segments of "
        f"{SEGMENT}³ voxels; {options.rounds} turns of {options.steps} steps.",
    )


if __name__ == "__main__":
    main()
