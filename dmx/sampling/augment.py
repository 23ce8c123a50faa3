"""Draw the changes of a segment and cut it with them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dmx import seeding
from dmx.config.augmentation import AffineSection, AugmentationSection
from dmx.geometry import SegmentPlan, Triple, triple
from dmx.sampling.deepmedic import DeepMedicSet, check_turns, turn
from dmx.sampling.fields import draw_field
from dmx.sampling.intensity import change_intensities, happens
from dmx.sampling.orientation import Orientation
from dmx.sampling.patches import cut_labels, cut_patches
from dmx.sampling.spatial import AffineMap, SpatialMap, sample_labels, sample_patch


class Augmenter:
    """Cuts segments with the changes that a section asks for.

    Args:
        section: Settings.
        plan: Segment and patches.

    Raises:
        ConfigError: A change that the segment's shape does not allow, or a setting of DeepMedic's set that is not met.
    """

    def __init__(self, section: AugmentationSection, plan: SegmentPlan) -> None:
        check_turns(section.rotate90, plan, "augmentation.rotate90")
        self.deepmedic = DeepMedicSet(section.deepmedic, plan)
        self._section = section
        self._plan = plan

    def cut(
        self, channels_CIJK: Tensor, labels_IJK: Tensor, center: Triple, *, key: int, image: AffineMap | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the patches of the segment about a center and the labels of its output block, changed at random.

        Args:
            channels_CIJK: Channels of the volume.
            labels_IJK: Label map of the volume.
            center: Center of the segment in the (changed) image.
            key: Key of the segment's draws.
            image: Map of the whole image, drawn per case and epoch.
        """
        orientation = draw_orientation(self._section, key)
        plan = self._plan if orientation.upright else orientation.upright_plan(self._plan)
        # The output block keeps its place about the center however the segment lies.
        start = triple([c - (n - 1) // 2 for c, n in zip(center, plan.shape, strict=True)])
        spatial = draw_spatial(self._section, plan, key, start=start, image=image, order=self.deepmedic.order)
        first = triple([s + m for s, m in zip(start, plan.margin_before, strict=True)])
        if spatial is None:
            patches = cut_patches(channels_CIJK, start, plan)
            target = cut_labels(labels_IJK, first, plan.output_shape)
        else:
            patches = [sample_patch(channels_CIJK, start, patch, spatial) for patch in plan.patches]
            target = sample_labels(labels_IJK, first, plan.output_shape, spatial)
        patches = change_intensities(patches, plan, self._section, key)
        if not orientation.upright:
            patches, target = [orientation.lay(patch) for patch in patches], orientation.lay(target)
        return self.deepmedic.change(patches, target, key)


def draw_orientation(section: AugmentationSection, key: int) -> Orientation:
    """Draw how the axes of a segment lie in the volume: reflected, then turned by quarters."""
    orientation = Orientation()
    for axis, probability in enumerate(section.reflect.probability):
        if happens(probability, seeding.derive(key, "reflect"), str(axis)):
            orientation = orientation.reflected(axis)
    return turn(orientation, section.rotate90, seeding.derive(key, "rotate90"))


def draw_spatial(
    section: AugmentationSection,
    plan: SegmentPlan,
    key: int,
    *,
    start: Triple = (0, 0, 0),
    image: AffineMap | None = None,
    order: int = 1,
) -> SpatialMap | None:
    """Draw where a segment is read from; None: from where it lies.

    Args:
        section: Settings.
        plan: Segment and patches as they are read.
        key: Key of the segment's draws.
        start: First voxel of the segment.
        image: Map of the whole image, drawn per case and epoch.
        order: Order in which channels are interpolated where there is such a map.
    """
    segment, elastic = None, None
    if happens(section.affine.probability, key, "affine"):
        middle = [s + (n - 1) / 2 for s, n in zip(start, plan.shape, strict=True)]
        segment = draw_affine(section.affine, seeding.derive(key, "affine"), middle)
    if happens(section.elastic.probability, key, "elastic"):
        setting = section.elastic
        field_key = seeding.derive(key, "elastic")
        elastic = draw_field(field_key, plan, channels=3, spacing=setting.spacing, std=setting.displacement)
    if segment is None and elastic is None and image is None:
        return None
    return SpatialMap(segment=segment, elastic=elastic, start=start, image=image, order=1 if image is None else order)


def draw_affine(section: AffineSection, key: int, middle: Sequence[float]) -> AffineMap:
    """Draw the map about a point of where a segment is read from: the matrix of :func:`draw_matrix`, and the shift.

    What is shown moves by an even draw between ± shift along each axis, in voxels.
    """
    affine = AffineMap.about(draw_matrix(section, key).tolist(), middle)
    limits = _three(section.shift)
    if not any(limits):
        return affine
    draws = (seeding.uniform(seeding.derive(key, "shift"), (3,)).to(torch.float64) * 2 - 1).tolist()
    # The shift comes before the turn, so that it follows the axes of what is shown.
    return AffineMap.along_axes((1, 1, 1), [-u * limit for u, limit in zip(draws, limits, strict=True)]).then(affine)


def draw_matrix(section: AffineSection, key: int) -> Tensor:
    """Draw the matrix ``rotation · shear · 1/scale`` of where a segment is read from, float64 ``[3, 3]``.

    Angles are even between ± rotation about each axis; sizes between 1 - scale and 1 + scale, where above 1 the
    segment shows things larger; the three entries of the shear between ± shear.
    """
    draws = (seeding.uniform(key, (9,)).to(torch.float64) * 2 - 1).tolist()
    angles = [u * limit for u, limit in zip(draws, _three(section.rotation), strict=False)]
    relative = draws[3:4] * 3 if section.isotropic else draws[3:6]
    sizes = [1 + u * limit for u, limit in zip(relative, _three(section.scale), strict=True)]
    upper = [u * section.shear for u in draws[6:]]
    matrix = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(angles):
        matrix = matrix @ _rotation(axis, math.radians(angle))
    shear = torch.tensor([[1, upper[0], upper[1]], [0, 1, upper[2]], [0, 0, 1]], dtype=torch.float64)
    return matrix @ shear @ torch.diag(1 / torch.tensor(sizes, dtype=torch.float64))


def _rotation(axis: int, angle: float) -> Tensor:
    matrix = torch.eye(3, dtype=torch.float64)
    a, b = [other for other in range(3) if other != axis]
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix


def _three(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(value)
