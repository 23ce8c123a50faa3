from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dmx.cohort.volume import read_volume
from dmx.errors import ConfigError
from dmx.evaluation.metrics import score_case
from dmx.evaluation.surface import SurfaceDefinition, surface_distances, surface_of

SPACING = (1.0, 0.5, 3.0)
NOISY = 1.0000000139547986
HIPPOCAMPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "hippocampus" / "labelsTr"


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
def test_distances_between_voxels_are_those_of_a_search_over_all_pairs(truth, prediction, tolerance):
    of_truth, of_prediction = brute_distances(truth, prediction)

    found = surface_distances(truth, prediction, SPACING, kind="voxels")

    np.testing.assert_allclose(np.sort(found.of_truth), np.sort(of_truth))
    np.testing.assert_allclose(np.sort(found.of_prediction), np.sort(of_prediction))
    assert found.hausdorff() == pytest.approx(max(np.percentile(of_truth, 95), np.percentile(of_prediction, 95)))
    limit = tolerance * (1 + 1e-5)
    close = (of_truth <= limit).sum() + (of_prediction <= limit).sum()
    assert found.within(tolerance) == pytest.approx(close / (of_truth.size + of_prediction.size))


@pytest.mark.parametrize("kind", ["elements", "voxels"])
def test_one_voxel_moved_along_an_axis_is_as_far_as_its_spacing(kind):
    truth, prediction = np.zeros((2, 5, 5, 5), dtype=bool)
    truth[1, 2, 1] = prediction[1, 2, 3] = True

    found = surface_distances(truth, prediction, SPACING, kind=kind)

    # The corners of the two voxels that face each other are one voxel nearer than their centers.
    near = 3.0 if kind == "elements" else 6.0
    assert found.hausdorff() == 6.0
    assert found.average() == pytest.approx((near + 6.0) / 2)
    assert found.within(near - 0.1) == 0.0
    assert found.within(6.0) == 1.0


def test_the_inside_of_a_region_is_no_surface_and_the_border_of_the_volume_is():
    full = np.ones((3, 3, 3), dtype=bool)
    assert len(surface_of(full, SPACING, kind="voxels").points) == 26
    assert len(surface_of(full, SPACING).points) == 4**3 - 2**3
    for kind in ("elements", "voxels"):
        assert len(surface_of(~full, SPACING, kind=kind).points) == 0


def test_elements_have_the_area_of_the_surface():
    box = np.zeros((40, 30, 50), dtype=bool)
    box[5:35, 5:25, 5:45] = True
    sides = np.array((30, 20, 40)) * SPACING
    faces = 2 * (sides[0] * sides[1] + sides[0] * sides[2] + sides[1] * sides[2])
    assert surface_of(box, SPACING).areas.sum() == pytest.approx(faces, rel=0.05)


@pytest.mark.parametrize("kind", ["elements", "voxels"])
def test_an_empty_region_has_no_distance(kind):
    full = np.ones((2, 2, 2), dtype=bool)
    with pytest.raises(ValueError, match="one of them is empty"):
        surface_distances(full, ~full, SPACING, kind=kind)


def shifted_cube(shift):
    truth, prediction = np.zeros((2, 16, 16, 16), dtype=bool)
    truth[3:10, 3:10, 3:10] = True
    prediction[3 + shift : 10 + shift, 3:10, 3:10] = True
    return truth, prediction


@pytest.mark.parametrize("kind", ["elements", "voxels"])
@pytest.mark.parametrize(("voxel", "tolerance", "shift"), [(1.0, 1.0, 1), (0.8, 0.8, 1), (0.8, 1.6, 2), (0.1, 0.3, 3)])
def test_the_rounding_of_a_header_moves_no_surface_out_of_the_tolerance(kind, voxel, tolerance, shift):
    truth, prediction = shifted_cube(shift)
    for factor in (1.0, NOISY, 2 - NOISY):
        found = surface_distances(truth, prediction, (voxel * factor,) * 3, kind=kind)
        assert found.within(tolerance) == 1.0
        assert found.within(tolerance * 0.999) < 0.95
        assert found.hausdorff() == pytest.approx(tolerance, rel=1e-6)


def turned(spacing, degrees=11.0):
    """Voxel sizes as they are read from a scan that lies obliquely: through an affine of float32."""
    angles = np.deg2rad([degrees, 2 * degrees, 3 * degrees])
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (k for k in range(3) if k != axis)
        plane = np.eye(3)
        plane[i, i] = plane[j, j] = np.cos(angle)
        plane[i, j], plane[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ plane
    return np.linalg.norm((turn * spacing).astype(np.float32).astype(np.float64), axis=0)


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="needs the hippocampus scans")
@pytest.mark.parametrize("file", sorted(HIPPOCAMPUS.glob("*.nii.gz"))[:12], ids=lambda path: path.name.split(".")[0])
def test_a_real_scan_whose_header_is_turned_scores_the_same(file):
    truth = np.rint(read_volume(file).array).astype(np.int64)
    prediction = np.roll(truth, 1, axis=0)
    straight, oblique = (
        score_case(truth, prediction, spacing=spacing, classes=("background", "Anterior", "Posterior"))
        for spacing in ((1.0, 1.0, 1.0), turned((1.0, 1.0, 1.0)))
    )
    assert tuple(turned((1.0, 1.0, 1.0))) != (1.0, 1.0, 1.0)
    assert straight["surface_dice/Anterior"] > 0.5
    for key, value in straight.items():
        assert oblique[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-6)), key


@pytest.mark.parametrize(("field", "value"), [("kind", "points"), ("tolerance_mm", -1.0), ("tolerance_mm", np.nan)])
def test_a_surface_is_defined_by_what_exists(field, value):
    with pytest.raises(ConfigError, match="got"):
        SurfaceDefinition(**{field: value})


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("kind", "subvoxels"), [("elements", True), ("voxels", False)])
@pytest.mark.parametrize("spacing", [SPACING, (0.9, 0.9, 2.5)])
def test_monai_finds_the_same_scores(kind, subvoxels, spacing):
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    generator = np.random.default_rng(3)
    truth, prediction = generator.random((2, 9, 8, 7)) < 0.4
    one_hot = [torch.from_numpy(np.stack([~region, region])[None]) for region in (prediction, truth)]

    found = surface_distances(truth, prediction, spacing, kind=kind)

    for tolerance in (0.0, 0.95, 1.0, 2.5):
        shared = compute_surface_dice(
            *one_hot, class_thresholds=[tolerance], include_background=False, spacing=spacing, use_subvoxels=subvoxels
        )
        assert found.within(tolerance) == pytest.approx(shared.item(), rel=1e-5)
    if kind == "voxels":
        # MONAI measures these two between voxels alone.
        hd95 = compute_hausdorff_distance(*one_hot, include_background=False, percentile=95, spacing=spacing)
        assd = compute_average_surface_distance(*one_hot, include_background=False, symmetric=True, spacing=spacing)
        assert found.hausdorff() == pytest.approx(hd95.item(), rel=1e-5)
        assert found.average() == pytest.approx(assd.item(), rel=1e-5)


def test_a_percentile_of_elements_is_the_distance_within_which_their_area_lies():
    truth, prediction = np.zeros((2, 30, 8, 8), dtype=bool)
    truth[2:10, 2:6, 2:6] = prediction[2:10, 2:6, 2:6] = True
    prediction[20, 3, 3] = True
    found = surface_distances(truth, prediction, (1.0, 1.0, 1.0))
    areas, distances = found.prediction.areas, found.of_prediction
    for percentile in (50, 90, 95, 99):
        distance = found.hausdorff(percentile)
        assert areas[distances <= distance].sum() >= (percentile / 100 - 1e-5) * areas.sum()
        assert areas[distances < distance].sum() < percentile / 100 * areas.sum()
    assert found.hausdorff(100) == distances.max() == pytest.approx(11)
    # The far voxel is so much of the prediction's surface, and half as much of both together.
    share = areas[distances > 0].sum() / areas.sum()
    assert found.hausdorff(100 - 75 * share) >= 10
