"""Which voxels each pathway reads."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection
from dmx.errors import ModelError
from dmx.geometry import SegmentPlan
from dmx.model.build import build_network
from dmx.model.network import Network


def network_of(section: ModelSection, compatibility: str = "none") -> Network:
    return build_network(section, num_channels=1, num_classes=2, compatibility=compatibility)


@pytest.mark.parametrize(("segment", "output", "coarse"), [(37, 21, (23, 21)), (45, 29, (26, 22)), (17, 1, (17, 17))])
@pytest.mark.parametrize("compatibility", ["none", "deepmedic"])
def test_the_full_model_has_deepmedics_shapes(
    full: ModelSection, compatibility: str, segment: int, output: int, coarse: tuple[int, int]
) -> None:
    plan = network_of(full, compatibility).segment_plan((segment,) * 3)
    assert plan.output_shape == (output,) * 3
    assert [patch.shape[0] for patch in plan.patches] == [segment, *coarse]
    assert plan.margin_before == plan.margin_after == (8, 8, 8)


def test_a_segment_below_the_receptive_field_names_the_smallest_size(full: ModelSection) -> None:
    network = network_of(full)
    network.segment_plan((17, 17, 17))
    with pytest.raises(ModelError, match=r"17x16x17.*at least 17x17x17"):
        network.segment_plan((17, 16, 17))


@pytest.mark.parametrize(("factor", "offset"), [(3, -16), (5, -32), (2, -8), (4, 1 - 17 - 8), (1, 0)])
def test_deepmedics_patches_start_off_center(factor: int, offset: int, full: ModelSection) -> None:
    section = replace(full, subsampled=(SubsampledSection(factor=factor),))
    patch = network_of(section, "deepmedic").segment_plan((25, 25, 25)).patches[1]
    assert patch.offset == (offset,) * 3
    assert (patch.reduction, patch.border) == ("stride", "deepmedic")


def covered(plan: SegmentPlan, index: int, lost: int, axis: int, m: int) -> range:
    """Voxels, relative to the segment, that the center of coarse output voxel ``m`` stands for."""
    patch = plan.patches[index]
    first = patch.offset[axis] + (m + lost // 2) * patch.factor[axis]
    return range(first, first + patch.factor[axis])


@settings(max_examples=25, deadline=None)
@given(
    factor=st.tuples(*[st.integers(1, 6)] * 3),
    layers=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5]),
    extra=st.integers(0, 7),
    upsampling=st.sampled_from(["nearest", "linear"]),
)
def test_a_coarse_voxel_covers_exactly_the_output_voxels_it_becomes(
    factor: tuple[int, int, int], layers: int, kernel: int, extra: int, upsampling: str
) -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(1, 1), kernels=3),
        subsampled=(SubsampledSection(factor=factor, widths=(1,) * layers, kernels=kernel),),
        fc=FCSection(widths=()),
        normalization=NormalizationSection(name="none"),
        upsampling=upsampling,
    )
    plan = network_of(section).segment_plan((5 + extra,) * 3)
    beyond = 1 if upsampling == "linear" else 0
    lost = layers * (kernel - 1)
    for axis in range(3):
        margin, size = plan.margin_before[axis], plan.output_shape[axis]
        coarse = plan.patches[1].shape[axis] - lost
        assert coarse == -(-size // factor[axis]) + 2 * beyond
        for m in range(coarse - 2 * beyond):
            wanted = margin + m * factor[axis]
            assert covered(plan, 1, lost, axis, m + beyond) == range(wanted, wanted + factor[axis])


@pytest.mark.parametrize("upsampling", ["nearest", "linear"])
@pytest.mark.parametrize("padding", ["valid", "zero", "mirror"])
def test_pathways_of_different_depth_kernels_and_padding_join(padding: str, upsampling: str) -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(2, 2, 2), kernels=((3, 3, 1), 3, 2), padding=padding),
        subsampled=(
            SubsampledSection(factor=(2, 3, 1), widths=(3,), kernels=5),
            SubsampledSection(factor=4, widths=(1, 2), kernels=(3, 3), padding="valid"),
        ),
        fc=FCSection(widths=(4,), kernels=(3, 1)),
        normalization=NormalizationSection(name="group"),
        upsampling=upsampling,
    )
    network = network_of(section)
    for segment in ((12, 13, 14), (9, 8, 7)):
        plan = network.segment_plan(segment)
        logits = network([torch.rand(1, 1, *patch.shape) for patch in plan.patches])
        assert tuple(logits.shape) == (1, 2, *plan.output_shape)
        for axis in range(3):
            whole = plan.margin_before[axis] + plan.output_shape[axis] + plan.margin_after[axis]
            assert whole == segment[axis] == plan.shape[axis]


def test_the_output_moves_with_the_input() -> None:
    """An output voxel depends on the voxels around its own place, the same number on both sides."""
    section = ModelSection(
        normal=PathwaySection(widths=(2, 2), kernels=3),
        subsampled=(SubsampledSection(factor=3),),
        fc=FCSection(widths=()),
        activation="linear",
        normalization=NormalizationSection(name="none"),
    )
    network = network_of(section).eval()
    plan = network.segment_plan((11, 11, 11))
    patches = [torch.rand(1, 1, *patch.shape, requires_grad=True) for patch in plan.patches]
    # The middle one of the three voxels that become of a coarse voxel.
    center = 4
    network(patches)[0, 1, center, center, center].backward()
    for patch, given_plan in zip(patches, plan.patches, strict=True):
        assert patch.grad is not None
        touched = patch.grad[0, 0].abs().sum((1, 2)).nonzero().flatten().tolist()
        first = given_plan.offset[0] + touched[0] * given_plan.factor[0]
        last = given_plan.offset[0] + (touched[-1] + 1) * given_plan.factor[0] - 1
        assert (first + last) / 2 == plan.margin_before[0] + center
