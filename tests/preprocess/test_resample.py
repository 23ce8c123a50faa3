import numpy as np
import pytest
from scipy import ndimage

from dmx.preprocess import resample


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(("source", "target", "step"), [(12, 6, 2.0), (7, 15, 0.5), (10, 7, 1.37), (5, 1, 6.0)])
def test_one_matrix_per_axis_is_the_spline_interpolation_of_the_volume(
    rng: np.random.Generator, order: resample.Order, source: int, target: int, step: float
) -> None:
    volume = rng.normal(size=(source, 6, 5))
    per_axis = resample.matrices((source, 6, 5), (target, 9, 5), (step, 0.6, 1.0), order=order)
    axes = [
        (np.arange(m) - (m - 1) / 2) * s + (n - 1) / 2
        for n, m, s in zip(volume.shape, (target, 9, 5), (step, 0.6, 1.0), strict=True)
    ]
    expected = ndimage.map_coordinates(volume, np.meshgrid(*axes, indexing="ij"), order=order, mode="nearest")
    np.testing.assert_allclose(resample.apply(volume, per_axis), expected, atol=1e-5)


def test_volumes_cover_each_other_not_voxel_centers() -> None:
    # Four voxels of 1 mm become two of 2 mm: their centers lie between voxels 0 and 1, and 2 and 3.
    ramp = np.arange(4.0).reshape(4, 1, 1)
    per_axis = resample.matrices((4, 1, 1), (2, 1, 1), (2.0, 1.0, 1.0), order=1)
    np.testing.assert_allclose(resample.apply(ramp, per_axis).ravel(), [0.5, 2.5], atol=1e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_a_constant_stays_constant_up_to_the_border(order: resample.Order) -> None:
    per_axis = resample.matrices((5, 6, 7), (11, 4, 7), (0.45, 1.6, 1.0), order=order)
    np.testing.assert_allclose(resample.apply(np.full((5, 6, 7), 3.0), per_axis), 3.0, rtol=1e-5)


def test_sizes_round_half_up_and_are_at_least_1() -> None:
    assert resample.resampled_shape((5, 7, 1), (1.0, 1.0, 1.0), (2.0, 2.0, 9.0)) == (3, 4, 1)
    assert resample.same_spacing((1.0, 1.0, 1.0), (1.00001, 1.0, 1.0))
    assert not resample.same_spacing((1.0, 1.0, 1.0), (1.001, 1.0, 1.0))
