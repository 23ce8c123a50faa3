"""Make labeled sets of real images that need no download.

    python experiments/image_transfer/make_images.py digits images/digits
    python experiments/image_transfer/make_images.py hippocampus images/slices --scans HIPPOCAMPUS

``digits`` are the 1797 handwritten digits that scikit-learn carries, enlarged; it does not say who wrote which, so they
are split by image. ``hippocampus`` cuts coronal slices out of scans of the Medical Segmentation Decathlon, task 04
(``HIPPOCAMPUS`` holds its ``imagesTr`` and ``labelsTr``): slices through the anterior part against slices through the
posterior part, split by case.

Each set is a folder ``<split>/<class>/…`` of PNG files and one ``<split>.stim.csv`` per split.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.image import resize_image, write_image
from dmx.cohort.image_folder import read_image_folder
from dmx.cohort.splits import split_by_subject
from dmx.cohort.stim_csv import SUFFIX, one_split, write_stim_csv
from dmx.cohort.stimuli import Stimulus, StimulusSet
from dmx.cohort.volume import read_volume
from dmx.errors import CohortError
from dmx.preprocess.orient import axes_and_flips, orient

Picture = NDArray[np.uint8]
FRACTIONS = {"training": 0.7, "validation": 0.1, "evaluation": 0.2}
PARTS = {1: "anterior", 2: "posterior"}


def digits(size: int, *, count: int | None = None) -> Iterator[tuple[str, str, str, Picture]]:
    """Yield group, class, name and gray image [size, size] of each digit."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    for index, (image, label) in enumerate(zip(bunch.images[:count], bunch.target[:count], strict=True)):
        pixels = np.round(image * (255 / 16)).astype(np.uint8)
        yield (
            f"{index:04d}",
            str(label),
            f"{index:04d}.png",
            resize_image(pixels, (size, size), interpolation="bicubic"),
        )


def slices(scans: Path, size: int, *, per_part: int) -> Iterator[tuple[str, str, str, Picture]]:
    """Yield case, part, name and gray coronal slice, up is superior, of each labeled case in a folder of scans."""
    files = sorted((scans / "labelsTr").glob("[!.]*.nii*"))
    if not files:
        raise CohortError(f"There are no label maps in '{scans / 'labelsTr'}'.")
    for file in files:
        case = file.name.split(".")[0]
        image, labels = _upright(scans / "imagesTr" / file.name), _upright(file)
        low, high = np.percentile(image, [1, 99])
        gray = np.round(np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
        for value, part in PARTS.items():
            for y in _through(labels == value, per_part):
                picture = np.rot90(gray[:, y, :])
                scale = size / min(picture.shape)
                shape = (round(picture.shape[0] * scale), round(picture.shape[1] * scale))
                yield case, part, f"{case}/{y:03d}.png", resize_image(np.ascontiguousarray(picture), shape)


def write_set(
    root: Path,
    pictures: Callable[[], Iterator[tuple[str, str, str, Picture]]],
    *,
    fractions: Mapping[str, float],
    seed: int,
) -> StimulusSet:
    """Write the images of a set, split by group, and the files that list them; return what was written."""
    groups = dict.fromkeys(group for group, _, _, _ in pictures())
    planned = StimulusSet(root.name, tuple(Stimulus(id=group, path=root, group=group) for group in groups))
    split_of = {s.group: s.split for s in split_by_subject(planned, fractions=fractions, seed=seed).stimuli}
    for group, label, name, picture in pictures():
        write_image(root / split_of[group] / label / name, picture)
    written = read_image_folder(root)
    for split in fractions:
        write_stim_csv(one_split(written, split), root.parent / f"{root.name}_{split}{SUFFIX}")
    return written


def _upright(file: Path) -> NDArray[Any]:
    """Return the voxels of a scan with axes that point to right, anterior, superior."""
    volume = read_volume(file)
    return orient(volume.array, *axes_and_flips(volume.orientation, "RAS"))


def _through(part: NDArray[np.bool_], count: int) -> list[int]:
    """Return coronal slices, evenly spread over those where a part is at least half as large as at its largest."""
    area = part.sum(axis=(0, 2))
    large = np.flatnonzero(area >= max(area.max() / 2, 1))
    if not large.size:
        return []
    places = np.round(np.linspace(0, large.size - 1, count + 2)[1:-1]).astype(int)
    return sorted({int(large[place]) for place in places})


def main() -> None:
    """Read the command line and write one set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["digits", "hippocampus"])
    parser.add_argument("folder", type=Path, help="new folder for the images")
    parser.add_argument("--scans", type=Path, help="folder with imagesTr and labelsTr")
    parser.add_argument("--size", type=int, default=128, help="pixels of the shorter side")
    parser.add_argument("--count", type=int, help="the first so many digits (default: all 1797)")
    parser.add_argument("--slices", type=int, default=3, help="slices per part of each case")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    options = parser.parse_args()
    if options.folder.exists():
        parser.error(f"{options.folder} exists already")
    if options.kind == "hippocampus" and options.scans is None:
        parser.error("hippocampus needs --scans")
    pictures: Callable[[], Iterator[tuple[str, str, str, Picture]]] = (
        (lambda: digits(options.size, count=options.count))
        if options.kind == "digits"
        else (lambda: slices(options.scans, options.size, per_part=options.slices))
    )
    try:
        written = write_set(options.folder.absolute(), pictures, fractions=FRACTIONS, seed=options.seed)
    except CohortError as error:
        parser.error(str(error))
    for split in FRACTIONS:
        print(f"{split}: {len(written.in_split(split))} images of {', '.join(written.classes)}")


if __name__ == "__main__":
    main()
