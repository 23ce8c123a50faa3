import numpy as np
import pytest

from dmx.preprocess.region import bounding_box, foreground, nonzero


def head(rng: np.random.Generator, *, air: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    inside = np.zeros((14, 13, 12), dtype=bool)
    inside[4:10, 4:9, 4:8] = True
    return np.where(inside, rng.normal(100, 5, inside.shape), air + rng.uniform(0, 2, inside.shape)), inside


@pytest.mark.parametrize("air", [0.0, -300.0, 50.0])
def test_foreground_is_what_differs_from_the_corners(rng: np.random.Generator, air: float) -> None:
    image, inside = head(rng, air=air)
    np.testing.assert_array_equal(foreground([image]), inside)


def test_holes_are_filled_and_channels_united(rng: np.random.Generator) -> None:
    image, _ = head(rng)
    image[6, 6, 6] = 0
    other = np.zeros(image.shape)
    other[1, 5, 5] = 90
    result = foreground([image, other])
    assert result[6, 6, 6]
    assert result[1, 5, 5]
    assert not foreground([image])[1, 5, 5]


def test_an_image_without_background_is_all_foreground(rng: np.random.Generator) -> None:
    assert foreground([rng.normal(100, 30, (10, 10, 10))]).all()
    assert foreground([np.full((4, 4, 4), 5.0)]).all()
    with pytest.raises(ValueError, match="at least one channel"):
        foreground([])


def test_the_box_is_widened_within_the_volume() -> None:
    region = np.zeros((10, 9, 8), dtype=bool)
    region[3:5, 0, 7] = True
    assert bounding_box(region, 0) == ((3, 0, 7), (2, 1, 1))
    assert bounding_box(region, 2) == ((1, 0, 5), (6, 3, 3))
    assert bounding_box(np.zeros((3, 3, 3), dtype=bool), 2) is None


def test_nonzero_is_every_voxel_that_is_not_zero_in_some_channel_with_holes() -> None:
    image = np.zeros((7, 7, 7))
    image[1:6, 1:6, 1:6] = -0.5
    image[3, 3, 3] = 0
    other = np.zeros(image.shape)
    other[6, 6, 6] = 1
    result = nonzero([image, other])
    assert result.sum() == 5**3 + 1
    assert result[3, 3, 3]
    assert nonzero([np.zeros((2, 2, 2))]).all()
