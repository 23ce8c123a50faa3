"""What a scan is known by when its file was saved anew, flipped, cropped or resampled."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dmx.cohort.fingerprint import landmarks, likeness, pixels_hash, voxels_hash

ONE_MM = (1.0, 1.0, 1.0)


def scan(seed: int) -> NDArray[np.float32]:
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(48, 52, 56)), 1.5)
    return np.rint(1000 * texture).astype(np.float32)


def resampled(array: NDArray[np.float32], mm: float) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    smaller = ndimage.zoom(array, 1 / mm, order=1)
    return smaller, tuple(a / b for a, b in zip(array.shape, smaller.shape, strict=True))


def test_voxels_are_the_same_in_another_type_scale_and_direction() -> None:
    array = scan(0)
    known = voxels_hash(array)
    assert known
    for same in (array.astype(np.int16), array.astype(np.float64) * 0.3 - 9, array[::-1, :, ::-1].transpose(1, 2, 0)):
        assert voxels_hash(same) == known
    changed = array.copy()
    changed[5, 6, 7] += 500
    assert voxels_hash(changed) != known
    assert voxels_hash(np.arange(15).reshape(3, 5, 1)) == "", "too few values to tell people apart"


def test_pixels_are_the_same_flipped_and_turned_by_a_quarter() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    assert pixels_hash(image) == pixels_hash(image[:, ::-1]) == pixels_hash(np.rot90(image))
    assert pixels_hash(image) != pixels_hash(image[..., ::-1])
    assert pixels_hash(np.zeros_like(image)) != pixels_hash(np.ones_like(image))


@pytest.mark.parametrize(
    "change",
    [
        lambda array: (array[::-1].transpose(2, 0, 1), ONE_MM),
        lambda array: (array[3:, 5:-2, 4:-4], ONE_MM),
        lambda array: resampled(array, 1.3),
        lambda array: resampled(array[::-1, 3:], 0.8),
        lambda array: (np.clip(np.rint((array + 700) / 6), 0, 255).astype(np.uint8), ONE_MM),
    ],
    ids=["turned", "cropped", "coarser", "finer, flipped and cropped", "eight bits"],
)
def test_a_changed_scan_is_recognized(
    change: Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], tuple[float, ...]]],
) -> None:
    known = landmarks(scan(0), ONE_MM)
    changed, spacing = change(scan(0))
    assert likeness([("other", landmarks(scan(1), ONE_MM)), ("same", landmarks(changed, spacing))], [known]) == {
        "same": "likely"
    }


def test_a_scan_without_landmarks_is_like_no_other() -> None:
    blank = np.zeros((40, 40, 40))
    assert landmarks(blank, ONE_MM) == landmarks(scan(0)[:4], ONE_MM) == landmarks(scan(0), (100.0,) * 3) == ""
    assert landmarks(np.where(blank == 0, np.nan, 0), ONE_MM) == ""
    assert likeness([("one", landmarks(scan(0), ONE_MM))], []) == {}
