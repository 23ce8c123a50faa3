"""Train one network of MONAI twice: by a plain loop on MONAI's CacheDataset, and by dmx; the ratio of their speeds.

The same UNet, loss (cross-entropy), optimizer (SGD), segment size and cases; random crops about foreground and
background voxels, no augmentation. Each side runs in a process of its own, in turns, several times.

    python benchmarks/peer.py [--rounds 3] [--steps 10]
"""

import argparse
import json
import statistics
import tempfile
import warnings
from functools import partial
from pathlib import Path

from common import Clock, cores, in_own_process, peak_bytes, print_table, write_case

CASES, CLASSES, SHAPE, SEGMENT, BATCH = 4, 2, (128, 128, 96), 64, 4
SKIPPED = 2
UNET = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}
LR, MOMENTUM = 0.01, 0.9


def train_monai(options: argparse.Namespace) -> Clock:
    """Train as MONAI's tutorials do, and return a clock that began after the first steps."""
    import torch
    from monai.data import CacheDataset, ThreadDataLoader, list_data_collate
    from monai.networks.nets import UNet
    from monai.transforms import Compose, FgBgToIndicesd, RandCropByPosNegLabeld

    network = UNet(spatial_dims=3, in_channels=2, out_channels=CLASSES, **UNET)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True)
    loss = torch.nn.CrossEntropyLoss()
    with tempfile.TemporaryDirectory() as folder:
        case = write_case(Path(folder), SHAPE)()
        data = [{"image": case.channels_CIJK.clone(), "label": case.labels_IJK.clone()[None]} for _ in range(CASES)]
    crop = RandCropByPosNegLabeld(
        keys=["image", "label"],
        label_key="label",
        spatial_size=(SEGMENT,) * 3,
        num_samples=1,
        fg_indices_key="label_fg_indices",
        bg_indices_key="label_bg_indices",
    )
    transform = Compose([FgBgToIndicesd(keys="label"), crop])
    # Each case several times, so that a step reads as many segments as it has on the other side.
    dataset = CacheDataset(data * (BATCH * (SKIPPED + options.steps) // CASES), transform, progress=False)
    loader = ThreadDataLoader(dataset, batch_size=BATCH, shuffle=True, collate_fn=list_data_collate)
    network.train()
    clock = Clock()
    for step, batch in enumerate(loader, start=1):
        optimizer.zero_grad()
        value = loss(network(batch["image"].as_tensor()), batch["label"].as_tensor()[:, 0].long())
        value.backward()
        optimizer.step()
        # What every loop does: it shows the loss.
        value.item()
        if step == SKIPPED:
            clock = Clock()
    return clock


def train_dmx(options: argparse.Namespace) -> Clock:
    """Train by `fit`, and return a clock that began after the first steps."""
    from dmx.config.model import ModelSection
    from dmx.config.optimization import OptimizerSection, RegularizationSection
    from dmx.config.sections import AugmentationSection, SamplingSection, TrainingSection
    from dmx.model.build import build_network
    from dmx.sampling.prefetch import Prefetcher
    from dmx.sampling.sampler import SegmentSampler
    from dmx.sampling.source import MemoryMappedSource
    from dmx.training.events import Event, StepEnded
    from dmx.training.loop import fit
    from dmx.training.settings import FitSettings
    from dmx.training.state import new_state

    network = build_network(ModelSection(name="UNet", arguments=UNET), num_channels=2, num_classes=CLASSES)
    steps = SKIPPED + options.steps
    settings = FitSettings(
        classes=("background", "lesion"),
        training=TrainingSection(epochs=1, steps_per_epoch=steps, batch_size=BATCH, device="cpu"),
        optimizer=OptimizerSection(name="sgd", lr=LR, momentum=MOMENTUM),
        regularization=RegularizationSection(l1=0.0, l2=0.0),
    )
    clocks = []

    def listen(event: Event) -> None:
        if isinstance(event, StepEnded) and event.global_step == SKIPPED:
            clocks.append(Clock())

    with tempfile.TemporaryDirectory() as folder:
        load = write_case(Path(folder), SHAPE)
        sampler = SegmentSampler(
            MemoryMappedSource([partial(load) for _ in range(CASES)]),
            network.segment_plan((SEGMENT,) * 3),
            SamplingSection(),
            AugmentationSection(),
            batch_size=BATCH,
            steps_per_epoch=steps,
            num_classes=CLASSES,
            seed=0,
            device="cpu",
        )
        with Prefetcher(lambda key: sampler.batch(*key), following=sampler.following, workers=1) as batches:
            fit(new_state(network, settings), lambda *key: batches.get(key), settings, listeners=[listen])
    return clocks[0]


def measure(options: argparse.Namespace) -> dict[str, float]:
    import torch

    warnings.filterwarnings("ignore", module="monai")
    torch.set_num_threads(options.threads)
    clock = (train_monai if options.side == "monai" else train_dmx)(options)
    segments = BATCH * options.steps
    return {"rate": segments / clock.wall, "busy": clock.busy / segments, "peak": peak_bytes() / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps measured in each round")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--side", choices=("monai", "dmx"), help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, float]]] = {"monai": [], "dmx": []}
    for _ in range(options.rounds):
        for side, results in found.items():
            words = ["--side", side, "--steps", options.steps, "--threads", options.threads]
            results.append(in_own_process(__file__, words))
    rows = []
    for side, title in (("monai", "MONAI's UNet in a plain loop"), ("dmx", "the same UNet in dmx")):
        middle = {key: statistics.median(one[key] for one in found[side]) for key in ("rate", "busy", "peak")}
        rows.append(
            {
                "training": title,
                "segments/s": middle["rate"],
                "CPU-s per segment": middle["busy"],
                "peak GB": middle["peak"],
            }
        )
    pairs = zip(found["dmx"], found["monai"], strict=True)
    ratio = statistics.median(ours["rate"] / theirs["rate"] for ours, theirs in pairs)
    print_table(
        "Beside MONAI",
        rows,
        f"dmx trains {ratio:.2f} times as many segments per second (median of {options.rounds} pairs). A step is "
        f"{BATCH} segments of {SEGMENT}³ voxels; {options.steps} steps, fp32, {options.threads} threads.",
    )


if __name__ == "__main__":
    main()
