import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dmx.evaluation.surface import surface_distances, surface_points

SPACING = (1.0, 0.5, 3.0)


def brute_surface(region):
    """Voxels with a neighbor outside, found one by one."""
    found = []
    for voxel in np.argwhere(region):
        for axis in range(3):
            for step in (-1, 1):
                neighbor = voxel.copy()
                neighbor[axis] += step
                inside = all(0 <= n < size for n, size in zip(neighbor, region.shape, strict=True))
                if not inside or not region[tuple(neighbor)]:
                    found.append(tuple(voxel))
    return sorted(set(found))


def brute_distances(truth, prediction):
    here = np.array(brute_surface(truth)) * SPACING
    there = np.array(brute_surface(prediction)) * SPACING
    table = np.sqrt(((here[:, None] - there[None]) ** 2).sum(axis=2))
    return table.min(axis=1), table.min(axis=0)


regions = hnp.arrays(bool, (5, 6, 4)).filter(lambda region: region.any())


@settings(max_examples=30, deadline=None)
@given(regions, regions, st.floats(0, 4))
def test_distances_are_those_of_a_search_over_all_pairs(truth, prediction, tolerance):
    of_truth, of_prediction = brute_distances(truth, prediction)

    found = surface_distances(truth, prediction, SPACING)

    np.testing.assert_allclose(np.sort(found.of_truth), np.sort(of_truth))
    np.testing.assert_allclose(np.sort(found.of_prediction), np.sort(of_prediction))
    assert found.hausdorff() == pytest.approx(max(np.percentile(of_truth, 95), np.percentile(of_prediction, 95)))
    close = (of_truth <= tolerance).sum() + (of_prediction <= tolerance).sum()
    assert found.within(tolerance) == pytest.approx(close / (of_truth.size + of_prediction.size))


def test_one_voxel_moved_along_an_axis_is_as_far_as_its_spacing():
    truth, prediction = np.zeros((2, 5, 5, 5), dtype=bool)
    truth[1, 2, 1] = prediction[1, 2, 3] = True

    found = surface_distances(truth, prediction, SPACING)

    assert found.hausdorff() == 6.0
    assert found.within(5.9) == 0.0
    assert found.within(6.0) == 1.0


def test_the_inside_of_a_region_is_no_surface_and_the_border_of_the_volume_is():
    assert len(surface_points(np.ones((3, 3, 3), dtype=bool), SPACING)) == 26
    assert len(surface_points(np.zeros((3, 3, 3), dtype=bool), SPACING)) == 0


def test_an_empty_region_has_no_distance():
    full = np.ones((2, 2, 2), dtype=bool)
    with pytest.raises(ValueError, match="one of them is empty"):
        surface_distances(full, ~full, SPACING)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_monai_finds_the_same_distances():
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    generator = np.random.default_rng(3)
    truth, prediction = generator.random((2, 9, 8, 7)) < 0.4
    one_hot = [torch.from_numpy(np.stack([~region, region])[None]) for region in (prediction, truth)]

    found = surface_distances(truth, prediction, SPACING)

    hd95 = compute_hausdorff_distance(*one_hot, include_background=False, percentile=95, spacing=SPACING)
    shared = compute_surface_dice(*one_hot, class_thresholds=[1.0], include_background=False, spacing=SPACING)
    assert found.hausdorff() == pytest.approx(hd95.item(), rel=1e-5)
    assert found.within(1.0) == pytest.approx(shared.item(), rel=1e-5)
