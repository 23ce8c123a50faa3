"""Batches of segments as a pure function of (seed, epoch, step, part)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dmx import seeding
from dmx.config.augmentation import AugmentationSection
from dmx.config.sections import SamplingSection
from dmx.errors import CohortError
from dmx.geometry import SegmentPlan, Triple
from dmx.sampling.augment import Augmenter
from dmx.sampling.batch import Batch
from dmx.sampling.centers import Roster, categories, draw_center
from dmx.sampling.source import CaseData, CaseSource
from dmx.sampling.spatial import AffineMap


@dataclass(frozen=True)
class _Place:
    """Where a segment is taken from."""

    case: CaseData
    center: Triple
    image: AffineMap | None


class SegmentSampler:
    """Draws segments of a cohort and cuts them with their changes, on the device where the source has its cases.

    Every case, center and change is a function of (seed, purpose, epoch, step, index in the step): a batch is the same
    in any thread or process, in any order, before and after a resume.

    Args:
        source: Cases.
        plan: The network's segment.
        section: Categories, proportions, weight maps, cases per epoch.
        augmentation: Changes; the default section changes nothing.
        batch_size: Segments per batch.
        accumulate: Batches per step.
        steps_per_epoch: Steps per epoch, over which proportions and cases are balanced.
        num_classes: Number of classes, background included.
        seed: Seed of the experiment.
        device: Where batches go; a source on this device makes them there.
        purpose: What the segments are for; another purpose draws other segments.
        compatibility: ``deepmedic`` takes only centers whose whole segment lies in the (padded) volume.

    Raises:
        ConfigError: Settings that do not fit each other or the segment.
        CohortError: No case has anything to sample from.
    """

    def __init__(  # noqa: PLR0913  # keyword-only settings that three sections of the experiment hold
        self,
        source: CaseSource,
        plan: SegmentPlan,
        section: SamplingSection,
        augmentation: AugmentationSection,
        *,
        batch_size: int,
        accumulate: int = 1,
        steps_per_epoch: int,
        num_classes: int,
        seed: int,
        device: torch.device | str,
        purpose: str = "training",
        compatibility: Literal["none", "deepmedic"] = "none",
    ) -> None:
        self._source = source
        self._batch_size = batch_size
        self._accumulate = accumulate
        self._steps = steps_per_epoch
        self._device = torch.device(device)
        self._key = seeding.derive(seed, purpose)
        self._whole = plan.shape if compatibility == "deepmedic" else None
        self._augmenter = Augmenter(augmentation, plan)
        self._roster = Roster(
            source,
            categories(section, num_classes),
            cases_per_epoch=section.cases_per_epoch,
            key=seeding.derive(self._key, "roster"),
        )

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the categories that no case has; their share goes to the others."""
        return self._roster.missing

    def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
        """Return one batch.

        Args:
            epoch: Epoch, from 0.
            step: Step in the epoch, from 0.
            part: Batch in the step, from 0, below ``accumulate``.

        Raises:
            CohortError: A case without a label map, or no case with a center whose segment fits.
            ValueError: A step or part that the epoch does not have.
        """
        if not (0 <= step < self._steps and 0 <= part < self._accumulate):
            raise ValueError(
                f"step and part must be below {self._steps} and {self._accumulate} (from 0), got {step} and {part}"
            )
        segments = [self._segment(epoch, step, part * self._batch_size + n) for n in range(self._batch_size)]
        inputs = tuple(
            torch.stack(patches).to(self._device)
            for patches in zip(*(patches for patches, _, _ in segments), strict=True)
        )
        target = torch.stack([target for _, target, _ in segments]).to(self._device)
        return Batch(inputs, target, tuple(name for _, _, name in segments))

    def following(self, key: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return which (epoch, step, part) comes after one, for whoever prepares batches ahead."""
        epoch, step, part = key
        if part + 1 < self._accumulate:
            return (epoch, step, part + 1)
        return (epoch, step + 1, 0) if step + 1 < self._steps else (epoch + 1, 0, 0)

    def _segment(self, epoch: int, step: int, index: int) -> tuple[list[Tensor], Tensor, str]:
        key = seeding.derive(self._key, "segment", epoch, step, index)
        place = self._place(epoch, step, index, key)
        case = place.case
        if case.labels_IJK is None:
            raise CohortError(f"Case '{case.name}' has no label map, so its segments cannot train or validate.")
        patches, target = self._augmenter.cut(
            case.channels_CIJK, case.labels_IJK, place.center, key=key, image=place.image
        )
        return patches, target, case.name

    def _place(self, epoch: int, step: int, index: int, key: int) -> _Place:
        per_step = self._batch_size * self._accumulate
        cases, category = self._roster.pick(epoch, step * per_step + index, self._steps * per_step)
        for number in cases:
            case = self._source[number]
            image = self._augmenter.deepmedic.image_map(
                case.spatial_shape, seeding.derive(self._key, "case", epoch, number)
            )
            moved = None if image is None else image.inverse()
            center = draw_center(case, category, seeding.derive(key, "center"), segment=self._whole, image=moved)
            if center is not None:
                return _Place(case, center, image)
        raise CohortError(
            f"No case has a center of '{category}' whose whole segment of {self._whole} voxels lies in the volume. "
            "Choose a smaller sampling.segment, or compatibility 'none', which lets segments leave the volume."
        )
