"""Measure what a batch of segments costs: the full DeepMedic configuration, with and without augmentation.

Ten segments of 37³ with patches of 37³, 23³ (factor 3) and 21³ (factor 5) from volumes of 240 x 240 x 155 with two
channels that are read through memory maps; then the same for 10 and for 10,000 cases, simulated by opening the same
files under many names. Prints a table, then the numbers as JSON.

    python benchmarks/sampling.py [--batches 20] [--threads 2]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from dmx import seeding
from dmx.config.augmentation import (
    AffineSection,
    AugmentationSection,
    BiasFieldSection,
    BlurSection,
    ElasticSection,
    GammaSection,
    IntensitySection,
    NoiseSection,
    ReflectSection,
)
from dmx.config.sections import SamplingSection
from dmx.geometry import PatchPlan, SegmentPlan, Triple
from dmx.sampling.sampler import SegmentSampler
from dmx.sampling.source import CaseData, MemoryMappedSource

SHAPE: Triple = (240, 240, 155)
SEGMENTS = 10
PLAN = SegmentPlan(
    shape=(37, 37, 37),
    output_shape=(21, 21, 21),
    margin_before=(8, 8, 8),
    margin_after=(8, 8, 8),
    patches=(
        PatchPlan("normal", (37, 37, 37), (1, 1, 1), (0, 0, 0)),
        PatchPlan("subsampled_1", (23, 23, 23), (3, 3, 3), (-16, -16, -16)),
        PatchPlan("subsampled_2", (21, 21, 21), (5, 5, 5), (-34, -34, -34)),
    ),
)
USUAL = AugmentationSection(
    affine=AffineSection(probability=0.5),
    elastic=ElasticSection(probability=0.2),
    reflect=ReflectSection(probability=(0.5, 0.0, 0.0)),
    intensity=IntensitySection(probability=0.5),
    gamma=GammaSection(probability=0.3),
    noise=NoiseSection(probability=0.2),
    bias_field=BiasFieldSection(probability=0.2),
    blur=BlurSection(probability=0.2),
)
EVERYTHING = AugmentationSection(
    affine=AffineSection(probability=1.0),
    elastic=ElasticSection(probability=1.0),
    reflect=ReflectSection(probability=(1.0, 1.0, 1.0)),
    intensity=IntensitySection(probability=1.0),
    gamma=GammaSection(probability=1.0),
    noise=NoiseSection(probability=1.0),
    bias_field=BiasFieldSection(probability=1.0),
    blur=BlurSection(probability=1.0),
)


def write_case(folder: Path) -> Callable[[], CaseData]:
    """Write the arrays of a case and return what opens them as memory maps."""
    channels = seeding.normal(0, (2, *SHAPE))
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[90:130, 100:140, 60:100] = 1
    arrays = {
        "channels": channels,
        "labels": labels,
        "foreground": labels.flatten().nonzero()[:, 0].int(),
        "background": (labels.flatten() == 0).nonzero()[:, 0].int(),
    }

    def opened(name: str, *, shared: bool = False) -> torch.Tensor:
        array = arrays[name]
        file = torch.from_file(str(folder / name), shared=shared, size=array.numel(), dtype=array.dtype)
        return file.view(array.shape)

    for name, array in arrays.items():
        # Shared: what is written into the map becomes the file.
        opened(name, shared=True).copy_(array)

    def load() -> CaseData:
        centers = {category: opened(category) for category in ("foreground", "background")}
        return CaseData("simulated", opened("channels"), opened("labels"), None, centers)

    return load


def measure(sampler: SegmentSampler, batches: int) -> dict[str, float]:
    """Return the median milliseconds of a batch: by the clock, and of processor time."""
    sampler.batch(0, 0)
    wall, busy = [], []
    for step in range(1, batches + 1):
        clock, processor = time.perf_counter(), time.process_time()
        sampler.batch(0, step)
        wall.append((time.perf_counter() - clock) * 1e3)
        busy.append((time.process_time() - processor) * 1e3)
    return {"wall_ms": statistics.median(wall), "cpu_ms": statistics.median(busy)}


def make_sampler(
    loaders: Sequence[Callable[[], CaseData]], augmentation: AugmentationSection, steps: int
) -> SegmentSampler:
    return SegmentSampler(
        MemoryMappedSource(loaders),
        PLAN,
        SamplingSection(),
        augmentation,
        batch_size=SEGMENTS,
        steps_per_epoch=steps,
        num_classes=2,
        seed=0,
        device="cpu",
    )


def run(batches: int) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        load = write_case(Path(folder))
        plans = [
            ("no augmentation", 10, AugmentationSection()),
            ("usual augmentation", 10, USUAL),
            ("every change, always", 10, EVERYTHING),
            ("no augmentation", 10_000, AugmentationSection()),
            ("usual augmentation", 10_000, USUAL),
        ]
        for name, cases, augmentation in plans:
            # Separate callables: each stands for a case of its own.
            loaders = [partial(load) for _ in range(cases)]
            begin = time.perf_counter()
            sampler = make_sampler(loaders, augmentation, batches + 1)
            setup = time.perf_counter() - begin
            rows.append({"what": name, "cases": cases, **measure(sampler, batches), "setup_s": setup})
    return rows


def machine() -> str:
    """Name the processor and the versions that the numbers belong to."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20, help="batches of 10 segments per row")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = run(options.batches)
    print(f"{machine()}\nmedian milliseconds per batch of {SEGMENTS} segments\n")
    print(f"{'':<22}{'cases':>8}{'clock':>10}{'processor':>11}{'per segment':>13}{'set-up, s':>11}")
    for row in rows:
        print(
            f"{row['what']:<22}{row['cases']:>8}{row['wall_ms']:>10.1f}{row['cpu_ms']:>11.1f}"
            f"{float(row['wall_ms']) / SEGMENTS:>13.2f}{row['setup_s']:>11.2f}"
        )
    print("\n" + json.dumps({"machine": machine(), "segments": SEGMENTS, "rows": rows}))


if __name__ == "__main__":
    main()
