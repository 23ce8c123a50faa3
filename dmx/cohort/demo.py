"""The demonstration cohort: heads that never lived, with lesions whose outline is known exactly.

A: like strokes, FLAIR and DWI, two classes. B: like tumors, T1, T1c, T2 and FLAIR, four classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dmx.children import workers
from dmx.cohort.case import Case, Cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import write_volume
from dmx.errors import CohortError

Kind = Literal["A", "B"]
Progress = Callable[[int, int, str], None]

MANIFEST = "manifest.csv"
# Two thirds train; every multiple of six cases has the same shares, and three cases have one of each.
_SPLITS = ("training", "validation", "evaluation", "training", "training", "training")


@dataclass(frozen=True)
class _Recipe:
    name: str
    classes: tuple[str, ...]
    channels: tuple[str, ...]


_RECIPES: Mapping[str, _Recipe] = {
    "A": _Recipe("demo-stroke", ("background", "lesion"), ("FLAIR", "DWI")),
    "B": _Recipe("demo-tumor", ("background", "edema", "core", "enhancing"), ("T1", "T1c", "T2", "FLAIR")),
}


# Each argument is a choice of the user's; an object for them would only rename them.
def make_demo_cohort(  # noqa: PLR0913
    folder: str | Path,
    kind: Kind,
    *,
    cases: int,
    spacing_mm: float,
    seed: int,
    processes: int = 1,
    progress: Progress | None = None,
) -> Cohort:
    """Write a demonstration cohort: scans, label maps, rois and, last, the manifest ``manifest.csv``.

    A case depends on kind, seed, voxel size and its number alone, not on how many cases or processes there are. Another
    seed makes other people, so it is another cohort of another name (``demo-stroke-7``).

    Args:
        folder: Where it goes; a demonstration cohort that is there is replaced.
        kind: ``A`` or ``B``.
        cases: Number of cases, one per subject.
        spacing_mm: Voxel size, 1 to 8 mm.
        seed: From 0 on.
        processes: Processes that make cases.
        progress: Called with (done, cases, name) after each case.

    Raises:
        CohortError: nilearn is missing, a number is not allowed, or the folder holds another manifest.
    """
    from dmx.cohort.demo_anatomy import template_file

    _check(kind, cases, spacing_mm, seed)
    template_file("t1")
    folder = Path(folder).absolute()
    manifest = folder / MANIFEST
    recipe = _RECIPES[kind]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CohortError(f"The folder '{folder}' cannot be made: {error.strerror or error}.") from error
    _remove_old(manifest)
    names = _make_all(folder, kind, range(cases), spacing_mm, seed, processes)
    for done, name in enumerate(names, start=1):
        if progress is not None:
            progress(done, cases, name)
    made = tuple(_case(folder, recipe, index) for index in range(cases))
    name = f"{recipe.name}-{seed}" if seed else recipe.name
    write_manifest(Cohort(name, recipe.classes, recipe.channels, made), manifest)
    return read_manifest(manifest)


def make_demo_case(
    kind: Kind, index: int, *, spacing_mm: float, seed: int
) -> tuple[dict[str, NDArray[np.int16]], NDArray[np.uint8], NDArray[np.uint8], NiftiGrid]:
    """Return one case in memory: its channels, label map and roi [I, J, K], and their grid."""
    from dmx.cohort import demo_anatomy as anatomy
    from dmx.cohort import demo_images as images
    from dmx.cohort import demo_lesions as lesions

    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ord(kind), index)))
    grid = anatomy.Grid.of_head(spacing_mm)
    warp = anatomy.random_warp(rng, grid)
    tissue = anatomy.sample_tissue(warp, grid)
    if kind == "A":
        labels = lesions.stroke_labels(rng, grid, tissue, warp)
    else:
        center = lesions.tumor_center(rng, tissue)
        tissue = anatomy.sample_tissue(lesions.mass_effect(rng, warp, grid, center), grid)
        labels = lesions.tumor_labels(rng, grid, tissue, center)
    contrasts = images.STROKE if kind == "A" else images.TUMOR
    channels = {name: images.render(rng, grid, tissue, labels, contrast) for name, contrast in contrasts.items()}
    return channels, labels, tissue.brain.astype(np.uint8), NiftiGrid.from_affine(grid.shape, grid.affine())


def _check(kind: str, cases: int, spacing_mm: float, seed: int) -> None:
    if kind not in _RECIPES:
        raise CohortError(f"The kind of a demonstration cohort must be A or B, got '{kind}'.")
    if cases < 1:
        raise CohortError(f"A demonstration cohort must have at least 1 case, got {cases}.")
    if not 1 <= spacing_mm <= 8:
        raise CohortError(f"The voxel size of a demonstration cohort must be 1 to 8 mm, got {spacing_mm}.")
    if seed < 0:
        raise CohortError(f"The seed of a demonstration cohort must be at least 0, got {seed}.")


def _remove_old(manifest: Path) -> None:
    """Remove the manifest of an older demonstration cohort, so that none stands beside half-made cases."""
    if not manifest.exists():
        return
    if not read_manifest(manifest).name.startswith(tuple(recipe.name for recipe in _RECIPES.values())):
        raise CohortError(f"'{manifest}' belongs to another cohort. Name another folder.")
    manifest.unlink()


def _make_all(folder: Path, kind: Kind, indices: range, spacing_mm: float, seed: int, processes: int) -> Iterator[str]:
    if processes <= 1 or len(indices) <= 1:
        for index in indices:
            yield _write_case(folder, kind, index, spacing_mm, seed)
        return
    with workers(min(processes, len(indices))) as pool:
        jobs = [pool.submit(_write_case, folder, kind, index, spacing_mm, seed) for index in indices]
        try:
            for job in jobs:
                yield job.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _case(folder: Path, recipe: _Recipe, index: int) -> Case:
    word = recipe.name.removeprefix("demo-")
    name = f"{word}_{index:04d}"
    place = folder / "cases" / name
    return Case(
        name=name,
        subject=f"{word}_subject_{index:04d}",
        channels={channel: place / f"{channel}.nii.gz" for channel in recipe.channels},
        label_map=place / "label_map.nii.gz",
        roi=place / "roi.nii.gz",
        split=_SPLITS[index % len(_SPLITS)],
    )


def _write_case(folder: Path, kind: Kind, index: int, spacing_mm: float, seed: int) -> str:
    case = _case(folder, _RECIPES[kind], index)
    channels, labels, roi, grid = make_demo_case(kind, index, spacing_mm=spacing_mm, seed=seed)
    for channel, path in case.channels.items():
        if path is not None:
            write_volume(path, channels[channel], grid, dtype=np.int16)
    for file, array in ((case.label_map, labels), (case.roi, roi)):
        if file is not None:
            write_volume(file, array, grid, dtype=np.uint8)
    return case.name
