"""What the benchmarks share: the network, simulated cases, costs of a process, tables."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPE = (240, 240, 155)
"""Voxels of a scan, as in BRATS."""
SEGMENT = 37
SEGMENTS = 10
"""Segments of a training step of DeepMedic."""
KINDS = ("compatibility", "default")


def full_configuration(kind: str):
    """Return DeepMedic's shipped network, exactly or with the default borders and without padding."""
    from dmx.config.model import (
        FCSection,
        ModelSection,
        NormalizationSection,
        PathwaySection,
        SubsampledSection,
    )

    exact = kind == "compatibility"
    return ModelSection(
        normal=PathwaySection(residual=(4, 6, 8)),
        subsampled=(SubsampledSection(factor=3), SubsampledSection(factor=5)),
        fc=FCSection(
            widths=(250, 250),
            kernels=((3, 3, 3), (1, 1, 1), (1, 1, 1)),
            residual=(2,),
            padding=("mirror", "valid", "valid") if exact else "valid",
        ),
        normalization=NormalizationSection(name="batch_rolling" if exact else "batch"),
    )


def full_network(kind: str):
    """Return the network of :func:`full_configuration` for two channels and five classes."""
    from dmx.model.build import build_network

    return build_network(full_configuration(kind), num_channels=2, num_classes=5, compatibility=compatibility(kind))


def compatibility(kind: str) -> str:
    return "deepmedic" if kind == "compatibility" else "none"


def usual_augmentation(probability: float | None = None):
    """Return every kind of change with a usual probability, or all with the same one."""
    from dmx.config import augmentation as sections

    def chance(usual: float) -> float:
        return usual if probability is None else probability

    return sections.AugmentationSection(
        affine=sections.AffineSection(probability=chance(0.5)),
        elastic=sections.ElasticSection(probability=chance(0.2)),
        reflect=sections.ReflectSection(probability=(chance(0.5), probability or 0.0, probability or 0.0)),
        intensity=sections.IntensitySection(probability=chance(0.5)),
        gamma=sections.GammaSection(probability=chance(0.3)),
        noise=sections.NoiseSection(probability=chance(0.2)),
        bias_field=sections.BiasFieldSection(probability=chance(0.2)),
        blur=sections.BlurSection(probability=chance(0.2)),
    )


def write_case(folder: Path, shape: Sequence[int] = SHAPE) -> Callable[[], Any]:
    """Write the arrays of a case and return what opens them as memory maps."""
    import torch

    from dmx import seeding
    from dmx.sampling.source import CaseData

    channels = seeding.normal(0, (2, *shape))
    labels = torch.zeros(tuple(shape), dtype=torch.uint8)
    labels[tuple(slice(n * 3 // 8, n * 5 // 8) for n in shape)] = 1
    arrays = {
        "channels": channels,
        "labels": labels,
        "foreground": labels.flatten().nonzero()[:, 0].int(),
        "background": (labels.flatten() == 0).nonzero()[:, 0].int(),
    }

    def opened(name: str, *, shared: bool = False) -> torch.Tensor:
        array = meta[name]
        file = torch.from_file(str(folder / name), shared=shared, size=array.numel(), dtype=array.dtype)
        return file.view(array.shape)

    # Only shapes stay: what is measured reads the files.
    meta = {name: array.to("meta") for name, array in arrays.items()}
    for name, array in arrays.items():
        # Shared: what is written into the map becomes the file.
        opened(name, shared=True).copy_(array)

    def load() -> CaseData:
        centers = {category: opened(category) for category in ("foreground", "background")}
        return CaseData("simulated", opened("channels"), opened("labels"), None, centers)

    return load


@dataclass
class Clock:
    """Time since it was made."""

    def __post_init__(self) -> None:
        self._wall, self._busy = time.perf_counter(), time.process_time()

    @property
    def wall(self) -> float:
        """Seconds by the clock."""
        return time.perf_counter() - self._wall

    @property
    def busy(self) -> float:
        """Seconds of the processor, all threads together."""
        return time.process_time() - self._busy


def peak_bytes(device: str = "cpu") -> int:
    """Return the largest number of bytes so far: of the process, or of an accelerator's tensors."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine(device: str = "cpu") -> str:
    """Name the processor or accelerator that numbers belong to."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    matrix = ", bf16 matrix unit" if any("amx_bf16" in line for line in lines) else ""
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores()} cores{matrix}"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_own_process(script: str, words: Sequence[object]) -> dict[str, Any]:
    """Run a benchmark's script in a process of its own, so that its peak memory is its own; return what it found."""
    command = [sys.executable, script, "--one", *map(str, words)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def print_table(title: str, rows: Sequence[Mapping[str, object]], note: str = "") -> None:
    """Print rows as a Markdown table; the keys of the first one are the columns."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(columns))]
    # Numbers to the right, words to the left.
    sides = [str.ljust if isinstance(rows[-1][column], str) else str.rjust for column in columns]
    print(f"## {title}\n")
    for number, line in enumerate(cells):
        print(
            "| " + " | ".join(side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)) + " |"
        )
        if number == 0:
            rules = [
                "-" * width if side is str.ljust else "-" * (width - 1) + ":"
                for side, width in zip(sides, widths, strict=True)
            ]
            print("| " + " | ".join(rules) + " |")
    print(f"\n{note}\n" if note else "", flush=True)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
