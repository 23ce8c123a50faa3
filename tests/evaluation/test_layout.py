import numpy as np
import pytest

from dmx.errors import ModelError
from dmx.evaluation.layout import Plans, fitted_tiles, grid_tiles, occupied


def covered(tiles, shape):
    counts = np.zeros(shape, dtype=int)
    for tile in tiles:
        counts[tuple(slice(s, s + n) for s, n in zip(tile.start, tile.plan.output_shape, strict=True))] += 1
    return counts


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_fitted_tiles_cover_the_roi_on_multiples_of_the_factors(two_scales, overlap):
    roi = np.zeros((30, 20, 10), dtype=bool)
    roi[4:17, 8:9, 2:8] = roi[25, 19, 9] = True
    tiles = list(fitted_tiles(roi.shape, Plans(two_scales), (9, 9, 9), roi=roi, overlap=overlap))
    counts = covered(tiles, roi.shape)
    assert counts[roi].min() >= 1
    assert all(start % 3 == 0 for tile in tiles for start in tile.start)
    assert (counts.max() == 1) == (overlap == 0)
    assert (counts > 0).mean() < 0.3


def test_grid_tiles_cover_the_roi_and_stay_inside(same_size):
    roi = np.zeros((30, 20, 10), dtype=bool)
    roi[4:17, 8:9, 2:8] = roi[25, 19, 9] = True
    plan = same_size.segment_plan((8, 8, 8))
    tiles = list(grid_tiles(roi.shape, Plans(same_size), plan, roi=roi))
    assert covered(tiles, roi.shape)[roi].min() >= 1
    for tile in tiles:
        assert all(0 <= s <= n - 8 for s, n in zip(tile.start, roi.shape, strict=True))
        assert roi[tuple(slice(s, s + 8) for s in tile.start)].any()


def test_an_empty_roi_has_no_tiles(two_scales, same_size):
    roi = np.zeros((9, 9, 9), dtype=bool)
    assert occupied(roi, (0, 0, 0), roi.shape) is None
    assert not list(fitted_tiles(roi.shape, Plans(two_scales), (9, 9, 9), roi=roi))
    assert not list(grid_tiles(roi.shape, Plans(same_size), same_size.segment_plan((8, 8, 8)), roi=roi))


def test_plans_find_a_size_that_the_network_takes(same_size):
    assert Plans(same_size).covering((5, 8, 9)).shape == (8, 8, 12)
    allowed = same_size.segment_plan

    def large_only(segment):
        if min(segment) < 48:
            raise ModelError("too small")
        return allowed(segment)

    same_size.segment_plan = large_only
    assert Plans(same_size).covering((50, 50, 50)).shape == (52, 52, 52)
    plans = Plans(same_size)
    assert plans.covering((5, 5, 1)).shape == (64, 64, 64)

    def none(_segment):
        raise ModelError("never")

    same_size.segment_plan = none
    with pytest.raises(ModelError, match="never"):
        plans.covering((5, 5, 1))
    with pytest.raises(ModelError, match="never"):
        Plans(same_size)
