import math
from dataclasses import replace

import pytest
import torch

from dmx.config.augmentation import AffineSection
from dmx.geometry import PatchPlan
from dmx.sampling import spatial as spatial_module
from dmx.sampling.augment import draw_matrix
from dmx.sampling.fields import SmoothField, draw_field, patch_axes
from dmx.sampling.patches import cut_labels, cut_patch, cut_patches
from dmx.sampling.spatial import AffineMap, SpatialMap, interpolate, sample_labels, sample_patch

IDENTITY = AffineMap.along_axes((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
TURN = [[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]


def ramp(shape=(40, 36, 32)):
    """A volume whose channels are the voxels' coordinates: linear interpolation is exact on it."""
    return torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))


@pytest.mark.parametrize("start", [(3, 2, 1), (-7, -6, 12), (15, 14, 10), (60, 0, 0)])
def test_the_identity_map_gives_the_patches_as_they_are_cut(make_case, make_plan, start):
    case, plan = make_case(), make_plan(9, factors=(3, 2))
    for patch, cut in zip(plan.patches, cut_patches(case.channels_CIJK, start, plan), strict=True):
        mapped = sample_patch(case.channels_CIJK, start, patch, SpatialMap(segment=IDENTITY))
        torch.testing.assert_close(mapped, cut, rtol=1e-4, atol=1e-4)
    labels = sample_labels(case.labels_IJK, start, (9, 9, 9), SpatialMap(segment=IDENTITY))
    assert torch.equal(labels, cut_labels(case.labels_IJK, start, (9, 9, 9)))


@pytest.mark.parametrize("factor", [1, 3])
def test_every_pathway_sees_the_same_map(factor):
    """Block means of a ramp are its values at the blocks' middles, so the mapped positions can be read off."""
    affine = AffineMap.about(TURN, (20, 18, 16))
    patch = PatchPlan("s", (5, 5, 5), (factor,) * 3, (-2, -2, -2))
    values = sample_patch(ramp(), (18, 16, 14), patch, SpatialMap(segment=affine))
    i, j, k = patch_axes((16, 14, 12), patch.shape, patch.factor, mean=True)
    expected = torch.stack(torch.broadcast_tensors(*affine((i[:, None, None], j[None, :, None], k[None, None, :]))))
    torch.testing.assert_close(values, expected.float(), rtol=0, atol=1e-3)


def test_elastic_displacement_is_added_before_the_affine_map():
    field = SmoothField(torch.ones(3, 8, 8, 8) * torch.tensor([1.0, -2.0, 0.5])[:, None, None, None], (-9.0,) * 3, 9.0)
    patch = PatchPlan("s", (4, 4, 4), (1, 1, 1), (0, 0, 0))
    affine = AffineMap.about(TURN, (20, 18, 16))
    moved = AffineMap.along_axes((1.0, 1.0, 1.0), (1.0, -2.0, 0.5)).then(affine)
    start = (19, 17, 15)
    both = sample_patch(ramp(), start, patch, SpatialMap(segment=affine, elastic=field, start=start))
    torch.testing.assert_close(both, sample_patch(ramp(), start, patch, SpatialMap(segment=moved)), rtol=0, atol=1e-4)
    assert not torch.allclose(both, sample_patch(ramp(), start, patch, SpatialMap(segment=affine)), atol=0.1)


def test_labels_follow_the_channels_and_are_ignored_outside():
    labels = ramp()[0].long() % 7
    spatial = SpatialMap(segment=AffineMap.about(TURN, (20, 18, 16)))
    block = sample_labels(labels, (16, 14, 12), (8, 8, 8), spatial)
    patch = sample_patch(ramp(), (16, 14, 12), PatchPlan("n", (8, 8, 8), (1, 1, 1), (0, 0, 0)), spatial)
    assert (block == (patch[0] + 0.5).floor().long() % 7).float().mean() > 0.99
    outside = sample_labels(labels, (36, 14, 12), (8, 8, 8), SpatialMap(segment=IDENTITY))
    assert outside[4:].eq(-1).all()
    assert outside[:4].ne(-1).all()


def test_a_map_of_the_image_repeats_its_edge_and_keeps_its_extent():
    labels = torch.ones(40, 36, 32, dtype=torch.int64)
    moved = AffineMap.along_axes((1.0, 1.0, 1.0), (30.0, 0.0, 0.0))
    assert sample_labels(labels, (0, 0, 0), (40, 36, 32), SpatialMap(image=moved)).eq(1).all()
    assert sample_labels(labels, (0, 0, 0), (40, 36, 32), SpatialMap(segment=moved))[10:].eq(-1).all()


def test_maps_invert_and_follow_each_other():
    affine = AffineMap.about([[1.1, -0.6, 0.1], [0.6, 0.8, 0.0], [0.0, 0.2, 0.9]], (3, 4, 5))
    back = affine.then(affine.inverse())
    torch.testing.assert_close(torch.tensor(back.matrix), torch.eye(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(back.offset), torch.zeros(3), rtol=0, atol=1e-5)
    assert affine.then(None) is affine


def test_a_box_is_bounded_exactly():
    box = AffineMap.about(TURN, (0, 0, 0)).bounds([(0.0, 1.0), (0.0, 1.0), (2.0, 3.0)])
    assert box == [pytest.approx((-0.6, 0.8)), pytest.approx((0.0, 1.4)), pytest.approx((2.0, 3.0))]


def test_only_the_box_that_is_needed_is_read(monkeypatch, make_case):
    sizes = []

    def watched(volume, first, count, factor):
        sizes.append([n * f for n, f in zip(count, factor, strict=True)])
        return original(volume, first, count, factor)

    original = spatial_module.mean_blocks
    monkeypatch.setattr(spatial_module, "mean_blocks", watched)
    patch = PatchPlan("s", (4, 4, 4), (3, 3, 3), (0, 0, 0))
    volume = ramp((200, 200, 200))
    sample_patch(volume, (100, 100, 100), patch, SpatialMap(segment=AffineMap.about(TURN, (106, 106, 106))))
    assert max(sizes[0]) <= 27
    sample_patch(volume, (500, 100, 100), patch, SpatialMap(segment=IDENTITY))
    assert max(sizes[1]) <= 18


@pytest.mark.parametrize("order", [0, 1])
def test_images_are_mapped_as_deepmedic_does(golden, order):
    image = torch.from_numpy(golden["aff/img"])[None]
    shape = tuple(image.shape[1:])
    affine = AffineMap.about(golden["aff/M"].T.tolist(), [n / 2 for n in shape])
    mapped = interpolate(image, patch_axes((0, 0, 0), shape, (1, 1, 1), mean=False), affine, order=order)[0]
    expected = torch.from_numpy(golden[f"aff/out{order}"])
    torch.testing.assert_close(mapped, expected, rtol=0, atol=1e-9)
    assert not torch.allclose(mapped, torch.from_numpy(golden["aff/out2"]), atol=1e-3)


def test_label_maps_are_mapped_as_deepmedic_does(golden):
    labels = torch.from_numpy(golden["aff/lab"])
    shape = tuple(labels.shape)
    affine = AffineMap.about(golden["aff/M"].T.tolist(), [n / 2 for n in shape])
    mapped = sample_labels(labels, (0, 0, 0), shape, SpatialMap(image=affine))
    assert torch.equal(mapped, torch.from_numpy(golden["aff/outlab"]).long())
    assert not torch.equal(mapped, labels.long())


def test_deepmedic_patches_of_a_mapped_image_are_cut_from_the_mapped_image(make_case):
    case = make_case()
    shape = case.spatial_shape
    affine = AffineMap.about(TURN, [n / 2 for n in shape])
    whole = interpolate(case.channels_CIJK, patch_axes((0, 0, 0), shape, (1, 1, 1), mean=False), affine)
    patch = PatchPlan("s", (7, 7, 7), (3, 3, 3), (-6, -6, -6), "stride", "deepmedic")
    for start in ((4, 4, 4), (0, 1, 2), (12, 9, 9)):
        for order in (0, 1):
            mapped = sample_patch(case.channels_CIJK, start, patch, SpatialMap(image=affine, order=order))
            if order:
                torch.testing.assert_close(mapped, cut_patch(whole, start, patch), rtol=0, atol=1e-4)
            else:
                assert not torch.allclose(mapped, cut_patch(whole, start, patch), atol=1e-4)


def test_a_strided_patch_with_a_segment_map_reads_single_voxels():
    patch = PatchPlan("s", (3, 3, 3), (3, 3, 3), (0, 0, 0), "stride", "deepmedic")
    values = sample_patch(ramp(), (10, 10, 10), patch, SpatialMap(segment=IDENTITY))
    torch.testing.assert_close(values[0, :, 0, 0], torch.tensor([10.0, 13.0, 16.0]), rtol=0, atol=1e-4)
    averaged = sample_patch(
        ramp(), (10, 10, 10), replace(patch, reduction="mean", border="edge"), SpatialMap(segment=IDENTITY)
    )
    torch.testing.assert_close(averaged[0, :, 0, 0], torch.tensor([11.0, 14.0, 17.0]), rtol=0, atol=1e-4)


def test_a_smooth_field_passes_through_its_control_points(make_plan):
    field = draw_field(4, make_plan(9), channels=2, spacing=4.0, std=1.0)
    at = tuple(torch.arange(1, 3, dtype=torch.float64) * 4.0 + origin for origin in field.origin)
    torch.testing.assert_close(field.at(at), field.controls[:, 1:3, 1:3, 1:3])
    between = tuple(a + 2.0 for a in at)
    assert not torch.allclose(field.at(between), field.controls[:, 1:3, 1:3, 1:3])


def test_matrices_stay_within_the_settings():
    for key in range(20):
        pure = draw_matrix(AffineSection(rotation=(30.0, 0.0, 0.0), scale=0.0), key)
        torch.testing.assert_close(pure @ pure.T, torch.eye(3, dtype=torch.float64))
        assert pure[0, 0] == 1
        assert abs(math.degrees(math.asin(pure[2, 1]))) <= 30
        sizes = 1 / draw_matrix(AffineSection(rotation=0.0, scale=(0.2, 0.1, 0.0)), key).diagonal()
        assert ((sizes - 1).abs() <= torch.tensor([0.2, 0.1, 0.0]) + 1e-9).all()
        same = draw_matrix(AffineSection(rotation=0.0, scale=0.2, isotropic=True), key).diagonal()
        assert same.unique().numel() == 1
        sheared = draw_matrix(AffineSection(rotation=0.0, scale=0.0, shear=0.1), key)
        assert 0 < (sheared - torch.eye(3)).abs().max() <= 0.1
    assert not torch.equal(draw_matrix(AffineSection(), 1), draw_matrix(AffineSection(), 2))


def test_a_volume_of_two_voxels_is_interpolated_between_them():
    volume = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    axes = (torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64), torch.zeros(1).double(), torch.zeros(1).double())
    found = interpolate(volume, axes, AffineMap.along_axes((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    assert found.flatten().tolist() == [1.0, 1.5, 3.0]
