"""Prepared images on disk: one file for a whole set, found by the content of its images and the contract."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.digest import files_sha256
from dmx.cohort.stimuli import Stimulus
from dmx.errors import CohortError
from dmx.preprocess.cache import Progress
from dmx.preprocess.entry import ARRAYS, FORMAT, INDEX, flush_file, open_array, read_index
from dmx.preprocess.folder import make_entry, ready_folder, require_index
from dmx.preprocess.image_contract import ImageContract
from dmx.preprocess.image_pipeline import preprocess_image

# Another way of preparing images does not meet the old one's entries.
_VERSION = 1
# Images that wait for the disk, per thread.
_AHEAD = 8


@dataclass(frozen=True, eq=False)
class CachedImages:
    """Prepared images of a set; holding it costs no memory, the images are memory-mapped when they are asked for.

    Attributes:
        stimuli: The stimuli, in the order in which they were given; the same image may come several times.
        hashes: SHA-256 of each stimulus's file.
        folder: Where the images are.
        index: Content of the entry's small file.
    """

    stimuli: tuple[Stimulus, ...]
    hashes: tuple[str, ...]
    folder: Path
    index: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.stimuli)

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        """Return a stimulus's image, uint8 [3, H, W]; red, green, blue."""
        offset, (height, width) = self._places[self.hashes[position]]
        return self.packed[offset : offset + 3 * height * width].reshape(3, height, width)

    @property
    def packed(self) -> NDArray[np.uint8]:
        """All distinct images one after the other, uint8 [num_bytes]; changes never reach the disk."""
        return open_array(self.folder, self.index["packed"])

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where in ``packed`` the image of each stimulus begins."""
        return tuple(self._places[key][0] for key in self.hashes)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the image of each stimulus."""
        return tuple(self._places[key][1] for key in self.hashes)

    @cached_property
    def _places(self) -> dict[str, tuple[int, tuple[int, int]]]:
        sizes = [(int(height), int(width)) for height, width in self.index["sizes"]]
        ends = list(itertools.accumulate(3 * height * width for height, width in sizes))
        return dict(zip(self.index["hashes"], zip([0, *ends[:-1]], sizes, strict=True), strict=True))


class ImageCache:
    """A folder of prepared images that several processes may share.

    An entry's name is a hash of what the images of a set hold, and of how they are scaled: an image that changes, or
    another size, makes another entry; crop, normalization, labels and the order of the stimuli do not.

    Args:
        folder: Made when it is first used; it may be that of the prepared cases.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def prepare(
        self,
        stimuli: Sequence[Stimulus],
        contract: ImageContract,
        *,
        progress: Progress | None = None,
        threads: int = 4,
        cache_dir: Path | None = None,
    ) -> CachedImages:
        """Prepare the images that are not there yet and return all in their order.

        Args:
            stimuli: Stimuli; those without a label too.
            contract: What the network sees.
            progress: Called with (done, total, id of the stimulus) whenever an image is ready.
            threads: Threads that decode.
            cache_dir: Where the hashes of files are remembered; ``None``: where those of scans are.

        Raises:
            CohortError: An image cannot be used; the message names file and row.
            DmxError: The folder cannot be written.
        """
        if not stimuli:
            raise CohortError("There are no images to prepare.")
        ready_folder(self.folder)
        content = _hashes(stimuli, cache_dir)
        distinct: dict[str, Stimulus] = {}
        for stimulus in stimuli:
            distinct.setdefault(content[stimulus.path], stimulus)
        hashes = sorted(distinct)
        text = json.dumps(["images", _VERSION, FORMAT, contract.pixels_key(), hashes])
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        index = read_index(self.folder / key)
        if index is None:
            images = _decoded([distinct[name] for name in hashes], contract, threads, progress)
            make_entry(self.folder, key, lambda beside: _write(beside, hashes, images))
            index = require_index(self.folder / key)
        elif progress is not None:
            progress(len(hashes), len(hashes), stimuli[-1].id)
        return CachedImages(tuple(stimuli), tuple(content[s.path] for s in stimuli), self.folder / key, index)


def _hashes(stimuli: Sequence[Stimulus], cache_dir: Path | None) -> dict[Path, str]:
    try:
        return files_sha256((stimulus.path for stimulus in stimuli), cache_dir=cache_dir)
    except CohortError as error:
        for stimulus in stimuli:
            # The image vanished after the file that names it was read.
            if stimulus.place and f"'{stimulus.path.absolute()}'" in str(error):
                raise CohortError(f"{stimulus.place}: {error}") from error
        raise


def _decoded(
    stimuli: Sequence[Stimulus], contract: ImageContract, threads: int, progress: Progress | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images in order; a few are decoded ahead."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        done = 0
        window = max(1, threads) * _AHEAD
        for start in range(0, len(stimuli), window):
            some = stimuli[start : start + window]
            for stimulus, image in zip(some, pool.map(lambda s: _prepare(s, contract), some), strict=True):
                yield image
                done += 1
                if progress is not None:
                    progress(done, len(stimuli), stimulus.id)


def _prepare(stimulus: Stimulus, contract: ImageContract) -> NDArray[np.uint8]:
    try:
        return preprocess_image(stimulus.path, contract)
    except CohortError as error:
        raise CohortError(f"{stimulus.place}: {error}" if stimulus.place else str(error)) from error


def _write(folder: Path, hashes: Sequence[str], images: Iterator[NDArray[np.uint8]]) -> None:
    sizes = []
    with (folder / ARRAYS).open("xb") as file:
        for image in images:
            sizes.append(image.shape[1:])
            file.write(image.data)
        num_bytes = file.tell()
        flush_file(file)
    index = {
        "format": FORMAT,
        "packed": {"dtype": "|u1", "shape": [num_bytes], "offset": 0},
        "hashes": list(hashes),
        "sizes": sizes,
        "num_bytes": num_bytes,
    }
    with (folder / INDEX).open("xb") as file:
        file.write(json.dumps(index).encode())
        flush_file(file)
