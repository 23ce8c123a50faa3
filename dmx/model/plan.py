"""What each pathway of the multi-scale network reads of a segment."""

from typing import Literal

from dmx.errors import ModelError
from dmx.geometry import PatchPlan, SegmentPlan, Triple, triple
from dmx.model.norms import Compatibility
from dmx.model.spec import NetworkSpec, PathwaySpec, size_text
from dmx.model.upsampling import LINEAR_EXTRA


def _deepmedic_offset(factor: int, receptive_field: int) -> int:
    """Return where DeepMedic's subsampled patch starts, relative to the segment, on one axis."""
    if factor % 2:
        return factor // 2 - (factor - 1) // 2 * receptive_field
    return factor // 2 - 1 - (factor - 2) // 2 * receptive_field - receptive_field // 2


def _subsampled_patch(
    spec: NetworkSpec, pathway: PathwaySpec, joined: Triple, *, extra: int, deepmedic: bool
) -> PatchPlan:
    """Return the patch whose output, upsampled, covers the joined block.

    By default coarse output voxel ``m`` covers exactly the ``factor`` voxels that it is upsampled to.

    Args:
        spec: The network.
        pathway: The subsampled pathway.
        joined: Size of the block in which the pathways join, in voxels of the volume.
        extra: Coarse voxels more at each end, for the interpolation.
        deepmedic: Start where DeepMedic starts.
    """
    shape, offset = [], []
    for axis in range(3):
        factor, lost = pathway.factor[axis], pathway.shrinkage[axis]
        shape.append(-(-joined[axis] // factor) + lost + 2 * extra)
        if deepmedic:
            offset.append(_deepmedic_offset(factor, spec.normal.receptive_field[axis]))
        else:
            offset.append(spec.normal.shrinkage[axis] // 2 - factor * (lost // 2 + extra))
    reduction: Literal["mean", "stride"] = "stride" if deepmedic else "mean"
    border: Literal["edge", "deepmedic"] = "deepmedic" if deepmedic else "edge"
    return PatchPlan(pathway.name, triple(shape), pathway.factor, triple(offset), reduction, border)


def plan_segment(
    spec: NetworkSpec, segment: Triple, *, upsampling: Literal["nearest", "linear"], compatibility: Compatibility
) -> SegmentPlan:
    """Return the patches of a segment and the block that the output covers.

    Raises:
        ModelError: The segment is smaller than what one output voxel needs.
    """
    lost = triple([normal + fc for normal, fc in zip(spec.normal.shrinkage, spec.fc.shrinkage, strict=True)])
    if any(size <= shrink for size, shrink in zip(segment, lost, strict=True)):
        smallest = triple([shrink + 1 for shrink in lost])
        raise ModelError(
            f"A segment of {size_text(segment)} voxels is too small for this network, "
            f"which needs at least {size_text(smallest)}. Use a larger segment or fewer layers."
        )
    joined = triple([size - shrink for size, shrink in zip(segment, spec.normal.shrinkage, strict=True)])
    extra = LINEAR_EXTRA if upsampling == "linear" else 0
    deepmedic = compatibility == "deepmedic"
    normal = PatchPlan("normal", segment, (1, 1, 1), (0, 0, 0))
    subsampled = [
        _subsampled_patch(spec, pathway, joined, extra=extra, deepmedic=deepmedic) for pathway in spec.subsampled
    ]
    return SegmentPlan(
        shape=segment,
        output_shape=triple([size - shrink for size, shrink in zip(segment, lost, strict=True)]),
        margin_before=triple([shrink // 2 for shrink in lost]),
        margin_after=triple([shrink - shrink // 2 for shrink in lost]),
        patches=(normal, *subsampled),
    )
