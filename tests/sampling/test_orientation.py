from dataclasses import replace
from itertools import product

import pytest
import torch

from dmx import seeding
from dmx.errors import ConfigError
from dmx.geometry import PatchPlan, SegmentPlan
from dmx.sampling.orientation import Orientation, require_square
from dmx.sampling.patches import cut_patches

PLAN = SegmentPlan(
    (6, 6, 6),
    (2, 2, 2),
    (1, 1, 1),
    (3, 3, 3),
    (PatchPlan("normal", (6, 6, 6), (1, 1, 1), (0, 0, 0)), PatchPlan("s", (4, 4, 4), (2, 2, 2), (-2, -2, -2))),
)


@pytest.mark.parametrize("plane", [(0, 1), (1, 2), (0, 2)])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turns_and_reflections_are_those_of_arrays(plane, quarters):
    array = torch.arange(2 * 27).reshape(2, 3, 3, 3)
    turned = Orientation().reflected(1).turned(plane, quarters)
    expected = torch.rot90(array.flip(2), quarters, [axis + 1 for axis in plane])
    assert torch.equal(turned.lay(array), expected)
    assert Orientation().turned(plane, quarters).upright == (quarters == 0)


@pytest.mark.parametrize(
    "orientation",
    [Orientation().reflected(0), Orientation().turned((0, 2), 1), Orientation().reflected(2).turned((1, 2), 3)],
)
def test_a_turned_segment_is_the_segment_of_the_turned_volume(orientation):
    """Off-center patches and margins too: each pathway keeps its place relative to the others."""
    volume = seeding.normal(1, (2, 14, 14, 14))
    plan = orientation.upright_plan(PLAN)
    laid = [orientation.lay(patch) for patch in cut_patches(volume, (4, 4, 4), plan)]
    # The volume is as long before the segment as behind it, so the turned segment starts at the same voxel.
    expected = cut_patches(orientation.lay(volume), (4, 4, 4), PLAN)
    for patch, other in zip(laid, expected, strict=True):
        torch.testing.assert_close(patch, other)
    assert not torch.allclose(laid[1], cut_patches(volume, (4, 4, 4), PLAN)[1])


def test_the_output_block_keeps_its_voxels():
    for flips in product((False, True), repeat=3):
        plan = Orientation(flips=flips).upright_plan(PLAN)
        assert plan.margin_before == tuple(3 if flip else 1 for flip in flips)
        assert plan.margin_after == tuple(1 if flip else 3 for flip in flips)


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (replace(PLAN, shape=(6, 8, 6)), "segment"),
        (replace(PLAN, output_shape=(2, 4, 2)), "output"),
        (replace(PLAN, patches=(replace(PLAN.patches[1], shape=(4, 2, 4)),)), "patch 's'"),
        (replace(PLAN, patches=(replace(PLAN.patches[1], factor=(2, 1, 2)),)), "factor of patch 's'"),
    ],
)
def test_turns_need_equal_sides(plan, what):
    require_square(plan, "xz", "rotate90")
    with pytest.raises(ConfigError, match=what):
        require_square(plan, "xy", "rotate90")
