"""Change whole volumes at random, as segments are changed: a whole volume is a segment that covers all of it."""

from torch import Tensor

from dmx.config.augmentation import AugmentationSection
from dmx.geometry import PatchPlan, SegmentPlan, Triple, triple
from dmx.sampling.augment import draw_orientation, draw_spatial
from dmx.sampling.deepmedic import check_chances
from dmx.sampling.intensity import change_intensities
from dmx.sampling.spatial import sample_patch


class VolumeAugmenter:
    """Changes whole volumes as a section asks for.

    A volume keeps its size, but for turns by a quarter, which exchange two sides.

    Args:
        section: Settings; the default section changes nothing.

    Raises:
        ConfigError: Probabilities of turns that cannot be normalized.
    """

    def __init__(self, section: AugmentationSection) -> None:
        check_chances(section.rotate90, "augmentation.rotate90")
        self._section = section

    def change(self, volume_CIJK: Tensor, key: int) -> Tensor:
        """Return a volume float32 [C, I, J, K] changed at random, on its device; the given one stays as it is.

        Args:
            volume_CIJK: Channels of the volume.
            key: Key of the draws. All that is drawn is a function of it and the size alone.
        """
        plan = _whole(triple(volume_CIJK.shape[1:]))
        spatial = draw_spatial(self._section, plan, key)
        read = volume_CIJK if spatial is None else sample_patch(volume_CIJK, (0, 0, 0), plan.patches[0], spatial)
        (changed,) = change_intensities([read], plan, self._section, key)
        return draw_orientation(self._section, key).lay(changed)


def _whole(shape: Triple) -> SegmentPlan:
    """Return the plan of a segment that covers a volume."""
    nothing = (0, 0, 0)
    patch = PatchPlan("whole", shape, (1, 1, 1), nothing)
    return SegmentPlan(shape, shape, margin_before=nothing, margin_after=nothing, patches=(patch,))
