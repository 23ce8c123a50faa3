"""Predict a whole scan of 240 x 240 x 155 voxels with the full DeepMedic configuration; time and peak memory.

Run ``python benchmarks/prediction.py``, or with ``--scan FOLDER`` on a real roi (``brainmask.nii.gz``). Each setting
runs in a process of its own, so that its peak memory is its own. DeepMedic v0.8.4 takes 411 CPU-seconds and 2.9 GB on
two cores for such a scan with its roi, in tiles of 45 voxels.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

SHAPE = (240, 240, 155)
KINDS = ("compatibility", "default")


@dataclass(frozen=True)
class Measured:
    """One setting's cost."""

    kind: str
    precision: str
    tile: str
    seconds: float
    cpu_seconds: float
    peak_gb: float
    peak_above_start_gb: float
    tiles: int
    roi_voxels: int


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


def make_roi(scan: Path | None, share: float):
    """Return the scan's roi, or an ellipsoid of a brain's size; ``share`` shrinks it along each axis."""
    import torch

    if scan is not None:
        from dmx.cohort.volume import read_volume

        return torch.from_numpy((read_volume(scan / "brainmask.nii.gz").array > 0).astype("uint8"))
    axes = [torch.linspace(-n / 2, n / 2, n) / (radius * share) for n, radius in zip(SHAPE, (68, 86, 66), strict=True)]
    distance = sum(axis.reshape([-1 if a == b else 1 for b in range(3)]) ** 2 for a, axis in enumerate(axes))
    return (distance <= 1).to(torch.uint8)


def measure(options: argparse.Namespace) -> Measured:
    import torch

    from dmx.config.sections import PredictionSection
    from dmx.evaluation.tiling import Predictor
    from dmx.model.build import build_network

    torch.set_num_threads(options.threads)
    network = build_network(
        full_configuration(options.kind), num_channels=2, num_classes=5, compatibility=compatibility(options.kind)
    )
    roi = make_roi(options.scan, options.share)
    channels = torch.randn((2, *roi.shape), generator=torch.Generator().manual_seed(0))
    device = torch.device(options.device)
    tile = options.tile if options.tile == "auto" else int(options.tile)
    section = PredictionSection(tile=tile, precision=options.precision)
    predictor = Predictor(network=network.to(device), section=section, device=device)
    tiles = []
    start, cpu, memory = time.perf_counter(), time.process_time(), peak_memory(device)
    predictor.probabilities(channels, roi=roi, progress=lambda _done, total: tiles.append(total))
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds, peak = time.perf_counter() - start, time.process_time() - cpu, peak_memory(device)
    return Measured(
        kind=options.kind,
        precision=options.precision,
        tile=str(tile),
        seconds=round(seconds, 1),
        cpu_seconds=round(cpu_seconds, 1),
        peak_gb=round(peak / 1e9, 2),
        peak_above_start_gb=round((peak - memory) / 1e9, 2),
        tiles=tiles[-1],
        roi_voxels=int(roi.sum()),
    )


def compatibility(kind: str) -> str:
    return "deepmedic" if kind == "compatibility" else "none"


def peak_memory(device) -> int:
    """Return the largest number of bytes so far: of the process, or of an accelerator's tensors."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine(device: str) -> str:
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="default", help="network: DeepMedic's exactly, or the default")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--tile", nargs="+", default=["auto"], help="segment size of a tile, or auto")
    parser.add_argument("--share", type=float, default=1.0, help="shrink the ellipsoid along each axis")
    parser.add_argument("--scan", type=Path, help="folder with brainmask.nii.gz")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_each(options: argparse.Namespace) -> list[Measured]:
    shared = ["--one", "--kind", options.kind, "--share", str(options.share), "--device", options.device]
    shared += ["--threads", str(options.threads), *(["--scan", str(options.scan)] if options.scan else [])]
    results = []
    for precision in options.precision:
        for tile in options.tile:
            command = [sys.executable, __file__, *shared, "--precision", precision, "--tile", tile]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results.append(Measured(**json.loads(output.splitlines()[-1])))
            print(as_line(results[-1]), flush=True)
    return results


def as_line(result: Measured) -> str:
    cost = f"{result.seconds:7.1f} s  {result.cpu_seconds:7.1f} CPU-s  {result.peak_gb:5.2f} GB"
    above = f"({result.peak_above_start_gb:.2f} GB above the start)"
    return f"{result.kind:13} {result.precision}  tile {result.tile:>4}  {cost} {above}  {result.tiles} tiles"


def main() -> None:
    options = parse()
    if options.one:
        options.precision, options.tile = options.precision[0], options.tile[0]
        print(json.dumps(asdict(measure(options))))
        return
    print(f"Full DeepMedic configuration, {' x '.join(map(str, SHAPE))} voxels, {machine(options.device)}")
    print("DeepMedic v0.8.4 on two cores: 411 CPU-seconds, 2.9 GB")
    results = run_each(options)
    print(f"roi: {results[0].roi_voxels} voxels")
    if options.json:
        content = {"machine": machine(options.device), "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
