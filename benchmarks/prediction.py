"""Predict a whole scan of 240 x 240 x 155 voxels with the full DeepMedic configuration; time and peak memory.

Run ``python benchmarks/prediction.py``, or with ``--scan FOLDER`` on a real roi (``brainmask.nii.gz``). Each setting
runs in a process of its own, so that its peak memory is its own. DeepMedic v0.8.4 takes 411 CPU-seconds and 2.9 GB on
two cores for such a scan with its roi, in tiles of 45 voxels.
"""

import argparse
import json
from pathlib import Path

from common import KINDS, SHAPE, Clock, cores, full_network, in_own_process, peak_bytes, print_table

DEFAULT = (("compatibility", "fp32"), ("default", "fp32"), ("default", "bf16"))


def make_roi(scan: Path | None, share: float):
    """Return the scan's roi, or an ellipsoid of a brain's size; ``share`` shrinks it along each axis."""
    import torch

    if scan is not None:
        from dmx.cohort.volume import read_volume

        return torch.from_numpy((read_volume(scan / "brainmask.nii.gz").array > 0).astype("uint8"))
    axes = [torch.linspace(-n / 2, n / 2, n) / (radius * share) for n, radius in zip(SHAPE, (68, 86, 66), strict=True)]
    distance = sum(axis.reshape([-1 if a == b else 1 for b in range(3)]) ** 2 for a, axis in enumerate(axes))
    return (distance <= 1).to(torch.uint8)


def measure(options: argparse.Namespace) -> dict[str, object]:
    import torch

    from dmx.config.sections import PredictionSection
    from dmx.evaluation.tiling import Predictor

    torch.set_num_threads(options.threads)
    roi = make_roi(options.scan, options.share)
    channels = torch.randn((2, *roi.shape), generator=torch.Generator().manual_seed(0))
    tile = options.tile if options.tile == "auto" else int(options.tile)
    predictor = Predictor(
        network=full_network(options.kind).to(options.device),
        section=PredictionSection(tile=tile, precision=options.precision),
        device=torch.device(options.device),
    )
    tiles: list[int] = []
    clock, before = Clock(), peak_bytes(options.device)
    predictor.probabilities(channels, roi=roi, progress=lambda _done, total: tiles.append(total))
    if options.device != "cpu":
        torch.cuda.synchronize()
    wall, busy, peak = clock.wall, clock.busy, peak_bytes(options.device)
    return {
        "network": f"full, {options.kind}",
        "precision": options.precision,
        "tile": options.tile,
        "tiles": tiles[-1],
        "seconds": wall,
        "CPU-s": busy,
        "peak GB": peak / 1e9,
        "above the start, GB": (peak - before) / 1e9,
        "roi_voxels": int(roi.sum()),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="network: DeepMedic's exactly, or the default; both if left out")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="fp32, and bf16 too, if left out")
    parser.add_argument("--tile", default="auto", help="segment size of a tile, or auto")
    parser.add_argument("--share", type=float, default=1.0, help="shrink the ellipsoid along each axis")
    parser.add_argument("--scan", type=Path, help="folder with brainmask.nii.gz")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.one:
        print(json.dumps(measure(options)))
        return
    shared = ["--tile", options.tile, "--share", options.share, "--device", options.device]
    shared += ["--threads", options.threads, *(["--scan", options.scan] if options.scan else [])]
    found = []
    for kind, precision in DEFAULT:
        if options.kind in (None, kind) and options.precision in (None, precision):
            found.append(in_own_process(__file__, ["--kind", kind, "--precision", precision, *shared]))
    if not found:
        found = [in_own_process(__file__, ["--kind", options.kind, "--precision", options.precision, *shared])]
    voxels = [one.pop("roi_voxels") for one in found]
    known = {"network": "DeepMedic v0.8.4", "precision": "fp32", "tile": "45", "CPU-s": 411.0, "peak GB": 2.9}
    rows = [{key: known.get(key) for key in found[0]}, *found]
    size = " x ".join(map(str, SHAPE))
    print_table("Prediction", rows, f"One scan of {size} voxels, roi of {voxels[0]} voxels, {options.threads} threads.")


if __name__ == "__main__":
    main()
