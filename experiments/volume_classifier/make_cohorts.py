"""Divide a cohort with label maps: some cases for a segmentation, some to classify as small or large, some held out.

No case is in two of the parts. A case is large where what its label map marks takes more than the median volume of the
cases that are for the classifier's training; the held-out cases have no part in that median. Several choices of few
cases are drawn from those for training.

All scans get one size, that of the largest along each axis, with the old scan in the middle and as the roi. A
classifier averages features over the whole scan: with the scans' own sizes it could know shares, and no volumes.

Usage: python make_cohorts.py cohort.csv
"""

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.case import Case, Cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import read_grid, read_volume, write_volume
from dmx.errors import CohortError, DmxError
from dmx.geometry import Triple, triple

SEEDS = (0, 1, 2)
CLASSES = ("small", "large")


def map_of(case: Case) -> Path:
    """Return the label map of a case.

    Raises:
        CohortError: It has none.
    """
    if case.label_map is None:
        raise CohortError(f"Case '{case.name}' has no label map, so its volume is unknown.")
    return case.label_map


def volume_ml(path: Path) -> float:
    """Return the volume of all classes but the background in a label map, in milliliters."""
    volume = read_volume(path)
    i, j, k = volume.spacing
    return float((volume.array > 0).sum()) * i * j * k / 1000


def widened(array: NDArray[Any], shape: Triple) -> NDArray[Any]:
    """Return an array in the middle of zeros."""
    before = [(wanted - length) // 2 for wanted, length in zip(shape, array.shape, strict=True)]
    sides = [(b, w - n - b) for b, w, n in zip(before, shape, array.shape, strict=True)]
    return np.pad(array, sides)


def same_size(case: Case, shape: Triple, folder: Path) -> Case:
    """Write the files of a case in one size, and where the old scan lies in it as the roi."""
    whole = read_volume(map_of(case))
    affine = whole.affine.copy()
    # The first voxel moves, so that the others stay where they are in the world.
    affine[:3, 3] -= affine[:3, :3] @ [(w - n) // 2 for w, n in zip(shape, whole.array.shape, strict=True)]
    grid = NiftiGrid.from_affine(shape, affine)
    channels: dict[str, Path | None] = {}
    for name, path in case.channels.items():
        if path is not None:
            channels[name] = folder / f"{case.name}_{name}.nii.gz"
            write_volume(
                folder / f"{case.name}_{name}.nii.gz", widened(read_volume(path).array, shape), grid, dtype=np.float32
            )
    label_map, roi = (folder / f"{case.name}_{what}.nii.gz" for what in ("label_map", "roi"))
    write_volume(label_map, widened(whole.array, shape), grid, dtype=np.uint8)
    write_volume(roi, widened(np.ones_like(whole.array), shape), grid, dtype=np.uint8)
    return replace(case, channels=channels, label_map=label_map, roi=roi)


def some_of_each(cases: Sequence[Case], count: int, *, large: Mapping[str, bool], seed: int) -> list[Case]:
    """Draw cases, half of them large."""
    draw = random.Random(seed)
    small = draw.sample([case for case in cases if not large[case.name]], count // 2)
    return small + draw.sample([case for case in cases if large[case.name]], count - count // 2)


def labeled(cohort: Cohort, training: Sequence[Case], held_out: Sequence[Case], large: Mapping[str, bool]) -> Cohort:
    """Return a cohort of small and large cases, without their label maps."""
    cases = [replace(case, split="training") for case in training]
    cases += [replace(case, split="evaluation") for case in held_out]
    cases = [replace(case, label=int(large[case.name]), label_map=None) for case in cases]
    ordered = tuple(sorted(cases, key=lambda case: case.name))
    return replace(cohort, name="hippocampus-size", classes=(), label_classes=CLASSES, cases=ordered)


def divide(manifest: Path, *, segmentation: int, training: int, few: int) -> str:
    """Write scans and manifests beside that of the whole cohort, and return what was done.

    Args:
        manifest: The whole cohort.
        segmentation: Cases whose label maps are learned.
        training: Cases for the training of a classifier.
        few: How many of them each of the small choices has.

    Raises:
        CohortError: There are too few cases.
    """
    cohort = read_manifest(manifest)
    if segmentation + training >= len(cohort.cases) or not 1 < few <= training:
        raise CohortError(
            f"{len(cohort.cases)} cases cannot be divided into {segmentation} for the segmentation, {training} for the "
            f"training (each small choice {few} of these, at least 2) and at least 1 held out. Choose other numbers."
        )
    sizes = [read_grid(map_of(case)).shape for case in cohort.cases]
    shape = triple([max(size[axis] for size in sizes) for axis in range(3)])
    folder = manifest.with_name("scans")
    cases = [same_size(case, shape, folder) for case in sorted(cohort.cases, key=lambda case: case.name)]
    random.Random(0).shuffle(cases)
    source, rest = cases[:segmentation], cases[segmentation:]
    pool, held_out = rest[:training], rest[training:]
    volumes = {case.name: volume_ml(map_of(case)) for case in rest}
    threshold = statistics.median(volumes[case.name] for case in pool)
    large = {name: volume > threshold for name, volume in volumes.items()}
    segmented = [replace(case, split="training") for case in source]
    segmented += [replace(case, split="evaluation") for case in held_out]
    write_manifest(replace(cohort, cases=tuple(segmented)), manifest.with_name("segmented.csv"))
    write_manifest(labeled(cohort, pool, held_out, large), manifest.with_name("all.csv"))
    for seed in SEEDS:
        chosen = some_of_each(pool, few, large=large, seed=seed)
        write_manifest(labeled(cohort, chosen, held_out, large), manifest.with_name(f"few_{seed}.csv"))
    count = sum(large[case.name] for case in held_out)
    return (
        f"All scans have {shape} voxels. Large is what has more than {threshold:.3f} ml. segmented.csv: {segmentation} "
        f"cases for the segmentation; all.csv: {training} for the classifier; few_0.csv to few_{SEEDS[-1]}.csv: {few} "
        f"of these each. {len(held_out)} cases, of which {count} are large, are held out in all of them."
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--segmentation", type=int, default=50, help="cases whose label maps are learned")
    parser.add_argument("--training", type=int, default=80, help="cases for the classifier")
    parser.add_argument("--few", type=int, default=20, help="cases of each small choice")
    options = parser.parse_args()
    try:
        done = divide(options.manifest, segmentation=options.segmentation, training=options.training, few=options.few)
    except DmxError as error:
        parser.error(str(error))
    print(done)


if __name__ == "__main__":
    main()
