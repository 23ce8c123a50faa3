"""DeepMedic's augmentation under its own names: one affine change per case and epoch, then changes per segment."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmx import seeding
from dmx.config.augmentation import DeepMedicAffine, DeepMedicHistDist, DeepMedicSection, Rotate90Section
from dmx.errors import ConfigError
from dmx.geometry import SegmentPlan, Triple
from dmx.sampling.intensity import happens, shift_scale
from dmx.sampling.orientation import PLANES, Orientation, require_square
from dmx.sampling.spatial import AffineMap


@dataclass(frozen=True)
class DeepMedicSet:
    """DeepMedic v0.8.4's augmentation of images (affine) and of segments (hist_dist, reflect, rotate90).

    Args:
        section: Settings.
        plan: Segment, to refuse turns that do not fit it.

    Raises:
        ConfigError: A setting that cannot be met.
    """

    section: DeepMedicSection
    plan: SegmentPlan

    def __post_init__(self) -> None:
        if self.section.affine is not None:
            check_affine(self.section.affine)
        if self.section.rotate90 is not None:
            check_turns(self.section.rotate90, self.plan, "augmentation.deepmedic.rotate90")

    def image_map(self, shape: Triple, key: int) -> AffineMap | None:
        """Draw the map of a whole image, about its center ``shape / 2``; None: it stays as it is.

        Args:
            shape: Size of the image.
            key: Key of the case in the epoch: all its segments share the draw.
        """
        affine = self.section.affine
        if affine is None or not happens(affine.prob, key, "deepmedic_affine"):
            return None
        draws = seeding.uniform(seeding.derive(key, "deepmedic_affine"), (4,)).tolist()
        angles = [(2 * u - 1) * limit for u, limit in zip(draws, affine.max_rot_xyz, strict=False)]
        scale = 1 + (2 * draws[3] - 1) * affine.max_scaling
        return image_affine(angles, scale, shape)

    @property
    def order(self) -> int:
        """Order in which channels are interpolated."""
        return 1 if self.section.affine is None else self.section.affine.interp_order_imgs

    def change(self, patches: Sequence[Tensor], target: Tensor, key: int) -> tuple[list[Tensor], Tensor]:
        """Return a segment's patches and labels changed by hist_dist, reflect and rotate90, in this order."""
        changed = list(patches)
        if self.section.hist_dist is not None:
            changed = _hist_dist(changed, self.section.hist_dist, seeding.derive(key, "hist_dist"))
        orientation = Orientation()
        for axis, probability in enumerate(self.section.reflect or ()):
            if happens(probability, seeding.derive(key, "deepmedic_reflect"), str(axis)):
                orientation = orientation.reflected(axis)
        if self.section.rotate90 is not None:
            orientation = turn(orientation, self.section.rotate90, seeding.derive(key, "deepmedic_rotate90"))
        return [orientation.lay(patch) for patch in changed], orientation.lay(target)


def image_affine(angles: Sequence[float], scale: float, shape: Triple) -> AffineMap:
    """Return DeepMedic's map of an image.

    ``M = scale · rot_z · rot_x · rot_y`` with rot_x in the x-y plane, rot_y in x-z, rot_z in y-z; the image at x is
    read from ``Mᵀ (x - c) + c`` with ``c = shape / 2``.

    Args:
        angles: Degrees about "x", "y" and "z".
        scale: Isotropic factor.
        shape: Size of the image.
    """
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in angles)
    rot_x = torch.tensor([[cx, -sx, 0.0], [sx, cx, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    rot_y = torch.tensor([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]], dtype=torch.float64)
    rot_z = torch.tensor([[1.0, 0.0, 0.0], [0.0, cz, -sz], [0.0, sz, cz]], dtype=torch.float64)
    matrix = scale * rot_z @ rot_x @ rot_y
    return AffineMap.about(matrix.T.tolist(), [n / 2 for n in shape])


def check_affine(affine: DeepMedicAffine) -> None:
    """Refuse what the map of images cannot do.

    Raises:
        ConfigError: Another interpolation order or boundary mode than those that are implemented.
    """
    # Rois and weight maps are not resampled: the centers drawn from them are mapped, which the defaults describe.
    allowed: list[tuple[str, object, tuple[object, ...]]] = [
        ("interp_order_imgs", affine.interp_order_imgs, (0, 1)),
        ("interp_order_lbls", affine.interp_order_lbls, (0,)),
        ("interp_order_roi", affine.interp_order_roi, (0,)),
        ("interp_order_wmaps", affine.interp_order_wmaps, (1,)),
        ("boundary_mode", affine.boundary_mode, ("nearest",)),
    ]
    for name, given, values in allowed:
        if given not in values:
            raise ConfigError(
                f"augmentation.deepmedic.affine.{name} must be {' or '.join(map(str, values))}, got {given}. "
                "Leave it out to get DeepMedic's default."
            )


def check_turns(section: Rotate90Section, plan: SegmentPlan, setting: str) -> None:
    """Refuse turns that a plan's sides do not allow, and probabilities that cannot be normalized.

    Raises:
        ConfigError: Unequal sides in a plane that turns, or bad probabilities.
    """
    check_chances(section, setting)
    for plane in PLANES:
        chances = getattr(section, plane)
        if chances[1] > 0 or chances[3] > 0:
            require_square(plan, plane, setting)


def check_chances(section: Rotate90Section, setting: str) -> None:
    """Refuse probabilities that cannot be normalized.

    Raises:
        ConfigError: One is negative, or all are 0.
    """
    for plane in PLANES:
        chances = getattr(section, plane)
        if min(chances) < 0 or sum(chances) <= 0:
            raise ConfigError(f"{setting}.{plane} must hold numbers of at least 0, not all 0; got {list(chances)}.")


def turn(orientation: Orientation, section: Rotate90Section, key: int) -> Orientation:
    """Turn an orientation in the planes xy, yz and xz by 0 to 3 quarters, as probable as the section says."""
    for plane, axes in PLANES.items():
        chances = getattr(section, plane)
        rest = seeding.scalar(seeding.derive(key, plane)) * sum(chances)
        quarters = 0
        while quarters < 3 and rest >= chances[quarters]:
            rest -= chances[quarters]
            quarters += 1
        orientation = orientation.turned(axes, quarters)
    return orientation


def _hist_dist(patches: Sequence[Tensor], section: DeepMedicHistDist, key: int) -> list[Tensor]:
    return shift_scale(patches, section.shift or (0.0, 0.0), section.scale or (1.0, 0.0), key)
