"""Measure what a training step costs with pathways frozen, against the step in which everything is trained.

The full DeepMedic configuration with three pathways, or a small one by default; each setting in a process of its own,
so that its peak memory is its own. Prints a table, then the numbers as JSON.

    python benchmarks/freezing.py [--network small|full] [--segments 4] [--steps 10] [--threads 2] [--device cpu]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

SETTINGS = {
    "nothing frozen": {},
    "normal 1-3 (and subsampled)": {"normal": "1-3"},
    "all parallel pathways": {"normal": "all"},
    "subsampled pathways only": {"subsampled": "all"},
    "fc but the head": {"fc": "1-2"},
    "all but the head": {"layers": "all_but_head"},
}


@dataclass(frozen=True)
class Measured:
    """The cost of a step.

    Attributes:
        setting: What is frozen.
        trained: Parameters that are trained.
        step_ms: Median duration of a step.
        peak_mb: Largest memory during the steps, above what the process had before the first one.
        optimizer_mb: Memory of the optimizer's state.
    """

    setting: str
    trained: int
    step_ms: float
    peak_mb: float
    optimizer_mb: float


def make_network(size: str):
    """Return a network of three pathways and its segment size."""
    from dmx.config.model import FCSection, ModelSection, PathwaySection, SubsampledSection
    from dmx.model.build import build_network

    full = size == "full"
    section = ModelSection(
        normal=PathwaySection(residual=(4, 6, 8)) if full else PathwaySection(widths=(15, 15, 20, 20, 20, 20, 25, 25)),
        subsampled=(SubsampledSection(factor=3), SubsampledSection(factor=5)),
        fc=FCSection(widths=(250, 250), residual=(2,)) if full else FCSection(widths=(75, 75)),
    )
    return build_network(section, num_channels=2, num_classes=5), (37, 37, 37) if full else (25, 25, 25)


def peak_memory(device) -> float:
    """Return the largest memory so far, in MB: of the GPU, or of the process."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(setting: str, *, size: str, segments: int, steps: int, device_name: str) -> Measured:
    """Train some steps of one setting on random segments."""
    import torch

    from dmx import seeding
    from dmx.config.freeze import FreezeSection
    from dmx.config.optimization import OptimizerSection
    from dmx.config.sections import TrainingSection
    from dmx.sampling.batch import Batch
    from dmx.training.losses import Loss
    from dmx.training.settings import FitSettings
    from dmx.training.state import new_state
    from dmx.training.step import train_step
    from dmx.transfer.freeze_parts import network_parts
    from dmx.transfer.freeze_planning import plan_freeze

    network, segment = make_network(size)
    plan = plan_freeze(FreezeSection(**SETTINGS[setting]), network_parts(network))
    settings = FitSettings(
        classes=tuple("abcde"),
        training=TrainingSection(device=device_name),
        optimizer=OptimizerSection(name="adam"),
        freeze=plan,
    )
    state = new_state(network, settings)
    reads = network.segment_plan(segment)
    inputs = tuple(seeding.normal(1, (segments, 2, *patch.shape), state.device) for patch in reads.patches)
    target = (seeding.uniform(2, (segments, *reads.output_shape), state.device) * 5).long()
    batch = Batch(inputs=inputs, target=target, cases=("random",) * segments)
    loss = Loss(settings.losses, 5)
    network.train()
    before, durations = peak_memory(state.device), []
    for _ in range(steps + 2):
        start = time.perf_counter()
        train_step(state, [batch], settings, loss=loss, lr=1e-4)
        durations.append((time.perf_counter() - start) * 1e3)
    slots = [tensor for tensors in state.optimizer.state.values() for tensor in tensors.values()]
    return Measured(
        setting=setting,
        trained=plan.num_parameters - plan.num_frozen_parameters(),
        # The first steps allocate what the others use again.
        step_ms=statistics.median(durations[2:]),
        peak_mb=peak_memory(torch.device(state.device)) - before,
        optimizer_mb=sum(tensor.numel() * tensor.element_size() for tensor in slots) / 1e6,
    )


def measured_apart(setting: str, arguments: argparse.Namespace) -> dict[str, float | str]:
    """Measure a setting in a process of its own."""
    words = ["--network", arguments.network, "--device", arguments.device]
    words += [word for key in ("segments", "steps", "threads") for word in (f"--{key}", str(getattr(arguments, key)))]
    command = [sys.executable, __file__, *words, "--setting", setting]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    content: dict[str, float | str] = json.loads(result.stdout)
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("small", "full"), default="small")
    parser.add_argument("--segments", type=int, default=4, help="segments per step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--setting", choices=tuple(SETTINGS), help="measure this one alone, as JSON")
    arguments = parser.parse_args()
    if arguments.setting:
        import torch

        torch.set_num_threads(arguments.threads)
        sizes = {"size": arguments.network, "segments": arguments.segments, "steps": arguments.steps}
        print(json.dumps(asdict(measure(arguments.setting, **sizes, device_name=arguments.device))))
        return
    rows = [measured_apart(setting, arguments) for setting in SETTINGS]
    whole = rows[0]
    print(f"{'frozen':<30}{'trained':>12}{'step':>12}{'':>7}{'peak':>11}{'':>7}{'optimizer':>12}")
    for row in rows:
        step, peak = row["step_ms"] / whole["step_ms"], row["peak_mb"] / max(whole["peak_mb"], 1e-9)
        print(
            f"{row['setting']:<30}{row['trained']:>12,}{row['step_ms']:>9.1f} ms{step:>7.0%}"
            f"{row['peak_mb']:>8.0f} MB{peak:>7.0%}{row['optimizer_mb']:>9.2f} MB"
        )
    print(json.dumps({"machine": platform.processor() or platform.machine(), **vars(arguments), "rows": rows}))


if __name__ == "__main__":
    main()
