import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from dmx import seeding
from dmx.errors import ModelError
from dmx.geometry import PatchPlan, SegmentPlan
from dmx.sampling.patches import cut_labels, cut_patch, cut_patches, first_voxels, mean_blocks

VOLUME = seeding.normal(3, (2, 11, 9, 13))
STARTS = st.tuples(*[st.integers(-30, 30)] * 3)
COUNTS = st.tuples(*[st.integers(1, 6)] * 3)
FACTORS = st.tuples(*[st.integers(1, 5)] * 3)


def clamped(start, size):
    i, j, k = (
        torch.arange(s, s + n).clamp(0, length - 1) for s, n, length in zip(start, size, VOLUME.shape[1:], strict=True)
    )
    return VOLUME[:, i][:, :, j][:, :, :, k]


@settings(max_examples=60, deadline=None)
@given(STARTS, COUNTS, FACTORS)
def test_a_subsampled_patch_is_the_mean_of_the_edge_repeated_volume(start, count, factor):
    covered = clamped(start, [n * f for n, f in zip(count, factor, strict=True)])
    torch.testing.assert_close(mean_blocks(VOLUME, start, count, factor), functional.avg_pool3d(covered, factor))
    i, j, k = factor
    assert torch.equal(first_voxels(VOLUME, start, count, factor), covered[:, ::i, ::j, ::k])


def test_the_normal_patch_is_the_volume_itself(make_plan):
    patches = cut_patches(VOLUME, (1, 0, 2), make_plan(9))
    assert torch.equal(patches[0], VOLUME[:, 1:10, 0:9, 2:11])
    assert [tuple(p.shape) for p in patches] == [(2, 9, 9, 9), (2, 7, 7, 7)]
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in patches)


@pytest.mark.parametrize("border", ["edge", "deepmedic"])
def test_a_patch_of_the_whole_volume_is_a_copy(border):
    volume = torch.zeros(1, 4, 4, 4)
    reduction = "mean" if border == "edge" else "stride"
    cut_patch(volume, (0, 0, 0), PatchPlan("n", (4, 4, 4), (1, 1, 1), (0, 0, 0), reduction, border)).add_(1)
    assert volume.eq(0).all()


def test_the_offset_says_where_patch_voxel_0_begins():
    patch = PatchPlan("s", (1, 1, 1), (2, 2, 2), (3, 1, -1))
    value = cut_patch(VOLUME, (1, 1, 1), patch)
    torch.testing.assert_close(value[:, 0, 0, 0], VOLUME[:, 4:6, 2:4, 0:2].mean(dim=(1, 2, 3)))
    moved = cut_patch(VOLUME, (1, 1, 1), replace(patch, offset=(3, 1, 0)))
    assert not torch.allclose(value, moved)


def test_a_segment_outside_of_the_volume_repeats_its_corner():
    patch = cut_patch(VOLUME, (50, 50, 50), PatchPlan("s", (2, 2, 2), (3, 3, 3), (0, 0, 0)))
    torch.testing.assert_close(patch, VOLUME[:, -1:, -1:, -1:].expand(2, 2, 2, 2))


def test_labels_outside_of_the_volume_are_ignored():
    labels = torch.ones(4, 4, 4, dtype=torch.uint8)
    block = cut_labels(labels, (-1, 2, 0), (3, 4, 4))
    assert block.dtype == torch.int64
    assert block[0].eq(-1).all()
    assert block[:, 2:].eq(-1).all()
    assert block[1:, :2].eq(1).all()
    assert cut_labels(labels, (9, 0, 0), (2, 2, 2)).eq(-1).all()
    assert cut_labels(labels, (-5, 0, 0), (2, 2, 2)).eq(-1).all()


def test_float16_and_integer_channels_give_float32(make_plan):
    for dtype in (torch.float16, torch.int16):
        patches = cut_patches((VOLUME * 4).to(dtype), (-2, 0, 0), make_plan(9))
        assert {p.dtype for p in patches} == {torch.float32}


def test_the_deepmedic_border_needs_the_deepmedic_reduction():
    patch = PatchPlan("s", (2, 2, 2), (3, 3, 3), (0, 0, 0), "mean", "deepmedic")
    with pytest.raises(ModelError, match="reduction 'stride'"):
        cut_patch(VOLUME, (0, 0, 0), patch)


def test_the_deepmedic_border_is_the_mean_of_the_corners():
    patch = PatchPlan("s", (2, 2, 2), (3, 3, 3), (0, 0, 0), "stride", "deepmedic")
    corners = VOLUME[:, ::10, ::8, ::12].mean(dim=(1, 2, 3))
    for start in ((-40, 0, 0), (0, 90, 0)):
        torch.testing.assert_close(cut_patch(VOLUME, start, patch)[:, 1, 1, 1], corners)
    edge = cut_patch(VOLUME, (-40, 0, 0), replace(patch, border="edge"))
    assert torch.equal(edge[:, 0, 0, 0], VOLUME[:, 0, 0, 0])


def deepmedic_offset(rf: int, factor: int) -> int:
    if factor % 2:
        return factor // 2 - (factor - 1) // 2 * rf
    return factor // 2 - 1 - (factor - 2) // 2 * rf - rf // 2


@pytest.mark.parametrize("number", range(90))
def test_subsampled_patches_are_cut_as_deepmedic_does(golden, number):
    arguments = json.loads(str(golden[f"lr{number}/args"]))
    i, j, k = map(deepmedic_offset, arguments["rf"], arguments["factor"])
    patch = PatchPlan("s", tuple(arguments["lr_dims"]), tuple(arguments["factor"]), (i, j, k), "stride", "deepmedic")
    plan = SegmentPlan(tuple(arguments["seg"]), (1, 1, 1), (0, 0, 0), (0, 0, 0), (patch,))
    image = torch.from_numpy(golden["img"])
    (cut,) = cut_patches(image, tuple(arguments["low"]), plan)
    expected = torch.from_numpy(golden[f"lr{number}/out"]).float()
    torch.testing.assert_close(cut, expected, rtol=0, atol=1e-6)
    shifted = replace(plan, patches=(replace(patch, offset=(i - patch.factor[0], j, k)),))
    assert not torch.allclose(cut_patches(image, tuple(arguments["low"]), shifted)[0], expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(STARTS, COUNTS, FACTORS)
def test_with_border_zero_a_patch_voxel_without_any_of_the_volume_is_zero(start, count, factor):
    plan = PatchPlan("normal", count, factor, (0, 0, 0))
    edge, zero = (cut_patch(VOLUME, start, replace(plan, border=border)) for border in ("edge", "zero"))
    covers = [
        torch.tensor([max(s + n * f, 0) < min(s + (n + 1) * f, length) for n in range(size)])
        for s, size, f, length in zip(start, count, factor, VOLUME.shape[1:], strict=True)
    ]
    inside = covers[0][:, None, None] & covers[1][:, None] & covers[2]
    assert torch.equal(zero, torch.where(inside, edge, torch.zeros(())))


def test_border_zero_leaves_the_volume_as_it_is():
    volume = torch.ones(1, 3, 3, 3)
    cut = cut_patch(volume, (1, 0, 0), PatchPlan("normal", (3, 3, 3), (1, 1, 1), (0, 0, 0), border="zero"))
    assert cut.sum() == 18
    assert volume.sum() == 27
