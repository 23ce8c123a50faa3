"""Measure what a training step costs with parts of the network frozen, against the step that trains everything.

The full DeepMedic configuration, 10 random segments of 37 voxels, adam with forward, backward and update; no sampling.
Each setting runs in a process of its own, so that its peak memory is its own.

    python benchmarks/freezing.py [--steps 4] [--kind default] [--quick]
"""

import argparse
import json
import statistics

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
)

SETTINGS = {
    "nothing": {},
    "normal 1-3, subsampled 1-3": {"normal": "1-3"},
    "subsampled pathways": {"subsampled": "all"},
    "all parallel pathways": {"normal": "all"},
    "fc but the head": {"fc": "1-2"},
    "all but the head": {"layers": "all_but_head"},
}
CLASSES = 5


def small_network(kind: str):
    """Return a network of the same pathways with few channels, for a quick look."""
    from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection
    from dmx.model.build import build_network

    section = ModelSection(
        normal=PathwaySection(widths=(4, 4, 5, 5)),
        subsampled=(SubsampledSection(factor=3), SubsampledSection(factor=5)),
        fc=FCSection(widths=(8, 8)),
        normalization=NormalizationSection(name="batch_rolling" if kind == "compatibility" else "batch"),
    )
    return build_network(section, num_channels=2, num_classes=CLASSES, compatibility=compatibility(kind))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Train some steps of one setting."""
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

    torch.set_num_threads(options.threads)
    network = (small_network if options.quick else full_network)(options.kind)
    segments, size = (2, 25) if options.quick else (SEGMENTS, SEGMENT)
    plan = plan_freeze(FreezeSection(**SETTINGS[options.frozen]), network_parts(network))
    settings = FitSettings(
        classes=tuple(f"class {n}" for n in range(CLASSES)),
        training=TrainingSection(device=options.device),
        optimizer=OptimizerSection(name="adam"),
        freeze=plan,
        compatibility=compatibility(options.kind),
    )
    state = new_state(network, settings)
    reads = network.segment_plan((size,) * 3)
    inputs = tuple(seeding.normal(1, (segments, 2, *patch.shape), state.device) for patch in reads.patches)
    target = (seeding.uniform(2, (segments, *reads.output_shape), state.device) * CLASSES).long()
    batch = Batch(inputs=inputs, target=target, cases=("random",) * segments)
    loss = Loss(settings.losses, CLASSES, compatibility=settings.compatibility)
    network.train()
    before = peak_bytes(options.device)
    wall, busy = [], []
    # The first steps choose algorithms and allocate what the others use again.
    for _ in range(2 + options.steps):
        clock = Clock()
        train_step(state, [batch], settings, loss=loss, lr=1e-4)
        wall.append(clock.wall)
        busy.append(clock.busy)
    slots = [tensor for tensors in state.optimizer.state.values() for tensor in tensors.values()]
    return {
        "trained": plan.num_parameters - plan.num_frozen_parameters(),
        "seconds": statistics.median(wall[2:]),
        "cpu_seconds": statistics.median(busy[2:]),
        "peak_gb": (peak_bytes(options.device) - before) / 1e9,
        "optimizer_mb": sum(tensor.numel() * tensor.element_size() for tensor in slots) / 1e6,
    }


def row(frozen: str, found: dict[str, float], whole: dict[str, float]) -> dict[str, object]:
    return {
        "frozen": frozen,
        "trained parameters": int(found["trained"]),
        "s per step": found["seconds"],
        "time, %": 100 * found["seconds"] / whole["seconds"],
        "CPU-s per step": found["cpu_seconds"],
        "peak GB of the step": found["peak_gb"],
        "memory, %": 100 * found["peak_gb"] / max(whole["peak_gb"], 1e-9),
        "optimizer MB": found["optimizer_mb"],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kind", choices=KINDS, default="compatibility", help="DeepMedic's network exactly, or default"
    )
    parser.add_argument("--steps", type=int, default=4, help="steps measured, after two")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="a small network and segments; the numbers mean nothing")
    parser.add_argument("--frozen", choices=SETTINGS, default="nothing", help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.one:
        print(json.dumps(measure(options)))
        return
    words = ["--kind", options.kind, "--steps", options.steps, "--threads", options.threads, "--device", options.device]
    words += ["--quick"] if options.quick else []
    found = {frozen: in_own_process(__file__, [*words, "--frozen", frozen]) for frozen in SETTINGS}
    print_table(
        "Freezing",
        [row(frozen, values, found["nothing"]) for frozen, values in found.items()],
        f"{'A small network' if options.quick else 'The full network'} ({options.kind}), a step without sampling; "
        f"median of {options.steps} steps, {options.threads} threads; memory above what the process had before the "
        "first step.",
    )


if __name__ == "__main__":
    main()
