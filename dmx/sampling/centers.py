"""Which case and which voxel each segment is centered on, as pure functions of keys."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dmx import seeding
from dmx.config.sections import SamplingSection
from dmx.errors import CohortError, ConfigError
from dmx.geometry import Triple, segment_start, triple
from dmx.sampling.source import WEIGHTS, WHOLE_IMAGE, CaseData, CaseSource
from dmx.sampling.spatial import AffineMap

_ATTEMPTS = (range(4), range(4, 128))
"""Draws, in two rounds, before the centers that fit are listed; few segments need the list if 2 % of centers fit."""


@dataclass(frozen=True)
class Category:
    """What centers are drawn from.

    Attributes:
        name: A key of the cases' centers, ``image``, or ``weight_<map>``.
        share: Share of the segments.
    """

    name: str
    share: float


def categories(section: SamplingSection, num_classes: int) -> tuple[Category, ...]:
    """Return the categories of a section with shares that sum to 1.

    Raises:
        ConfigError: The number of proportions or weight maps is not that of the categories.
    """
    names: tuple[str, ...] = {
        "foreground_background": ("foreground", "background"),
        "uniform": ("roi",),
        "per_class": tuple(f"class_{k}" for k in range(num_classes)),
        "whole_image": (WHOLE_IMAGE,),
    }[section.categories]
    for setting, given in (("proportions", section.proportions), ("weight_maps", section.weight_maps or None)):
        if given is not None and len(given) != len(names):
            raise ConfigError(
                f"sampling.{setting} has {len(given)} entries; categories '{section.categories}' has {len(names)}: "
                f"{', '.join(names)}. Give one entry per category."
            )
    if section.weight_maps:
        names = tuple(WEIGHTS + name for name in section.weight_maps)
    shares = section.proportions or (1.0,) * len(names)
    return tuple(Category(name, share / sum(shares)) for name, share in zip(names, shares, strict=True))


def permuted(index: int, length: int, key: int) -> int:
    """Return where a random permutation of ``range(length)`` puts an index, without listing the permutation.

    A Feistel network over the next power of four, walked until it hits the range (Black and Rogaway 2002).
    """
    if length < 2:
        return index
    half = ((length - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(6):
            left, right = right, left ^ (seeding.derive(key, turn, right) & mask)
        index = (left << half) | right
        if index < length:
            return index


class Roster:
    """The cases that each category can be drawn from, and who is next.

    Within an epoch each category gets its exact share of the segments and goes through its cases in random order, all
    before any comes again. A case that lacks a category is left out there and nowhere else.

    Args:
        source: The cohort.
        wanted: Categories and shares.
        cases_per_epoch: Draw from that many cases in an epoch; None: from all.
        key: Key of the draws.

    Attributes:
        missing: Categories that no case has; their share goes to the others.

    Raises:
        CohortError: No case has any of the categories.
    """

    def __init__(
        self, source: CaseSource, wanted: Sequence[Category], *, cases_per_epoch: int | None, key: int
    ) -> None:
        self._key = key
        self._num_cases = len(source)
        self._cases_per_epoch = min(cases_per_epoch or self._num_cases, self._num_cases)
        self._wanted = tuple(category for category in wanted if category.share > 0)
        # Case by case, so that each is opened once.
        has = [[source.has(i, category.name) for category in self._wanted] for i in range(len(source))]
        self._cases = [[i for i, row in enumerate(has) if row[n]] for n in range(len(self._wanted))]
        self._epoch: tuple[int, list[list[int]]] | None = None
        missing = [c.name for c, cases in zip(self._wanted, self._cases, strict=True) if not cases]
        if len(missing) == len(self._wanted):
            raise CohortError(
                f"None of the {len(source)} cases has a voxel of {', '.join(missing)} to sample from. "
                "Check the label maps, rois and weight maps, or choose other sampling.categories."
            )
        self.missing = tuple(missing)

    def pick(self, epoch: int, position: int, count: int) -> tuple[Iterator[int], str]:
        """Return the cases for the segment at a position of the ``count`` segments of an epoch, and the category.

        The first case is the one to use; the others follow for the event that none of its voxels can be used.
        """
        key = seeding.derive(self._key, epoch)
        cases = self._in_epoch(epoch)
        shares = [c.share if members else 0.0 for c, members in zip(self._wanted, cases, strict=True)]
        bounds = [bound / sum(shares) for bound in accumulate(shares, initial=0.0)]
        slot = permuted(position, count, seeding.derive(key, "slot"))
        # The same random part of a slot for all: shares are met exactly over many epochs, however few the segments.
        part = seeding.scalar(seeding.derive(key, "part"))
        within = (slot + part) / count
        chosen = max(n for n, share in enumerate(shares) if share > 0 and bounds[n] <= within)
        members = cases[chosen]
        if len(members) == max(map(len, cases)):
            # One order for all categories that every case has, so that cases are even over the epoch as a whole.
            return _from(members, slot, seeding.derive(key, "order")), self._wanted[chosen].name
        begin = max(math.ceil(bounds[chosen] * count - part), 0)
        return _from(members, max(slot - begin, 0), seeding.derive(key, "order", chosen)), self._wanted[chosen].name

    def _in_epoch(self, epoch: int) -> list[list[int]]:
        if self._cases_per_epoch == self._num_cases:
            return self._cases
        known = self._epoch
        if known is None or known[0] != epoch:
            key = seeding.derive(self._key, "cases", epoch)
            chosen = {permuted(i, self._num_cases, key) for i in range(self._cases_per_epoch)}
            cases = [[i for i in members if i in chosen] for members in self._cases]
            # An epoch whose cases have nothing to draw from falls back on the whole cohort.
            known = (epoch, cases if any(cases) else self._cases)
            self._epoch = known
        return known[1]


def _from(cases: list[int], rank: int, key: int) -> Iterator[int]:
    lap, place = divmod(rank, len(cases))
    first = permuted(place, len(cases), seeding.derive(key, lap))
    return (cases[(first + n) % len(cases)] for n in range(len(cases)))


def flat_draw(count: int, u: float) -> int:
    """Return floor(u · count), exact for any count below 2⁵³."""
    return min(int(u * count), count - 1)


def weighted_draw(cumulative: Tensor, u: float) -> int:
    """Return the voxel whose part of the cumulative weights holds u · total; never one of weight 0."""
    total = float(cumulative[-1])
    value = torch.tensor(min(u * total, math.nextafter(total, 0.0)), dtype=cumulative.dtype)
    return min(int(torch.searchsorted(cumulative, value, right=True)), len(cumulative) - 1)


def draw_center(
    case: CaseData, category: str, key: int, *, segment: Triple | None = None, image: AffineMap | None = None
) -> Triple | None:
    """Draw a voxel of a category of a case, all equally likely or as its weights say.

    Args:
        case: The case.
        category: A category that the case has.
        key: Key of the draw.
        segment: Size of a segment that must lie in the volume; None: it may leave it.
        image: Where a voxel of the volume lies in the changed image; None: the image is not changed.

    Returns:
        The center in the image, or None where no center fits.
    """
    if segment is not None and any(n > length for n, length in zip(segment, case.spatial_shape, strict=True)):
        return None
    for attempts in (range(1),) if segment is None else _ATTEMPTS:
        flat = torch.tensor([_draw(case, category, seeding.scalar(seeding.derive(key, n))) for n in attempts])
        centers, accepted = _centers(flat, case.spatial_shape, segment=segment, image=image)
        if accepted.any():
            return triple(centers[int(accepted.int().argmax())].tolist())
    # Hardly any center fits: list all that do. The draws that failed do not change how likely each of those is.
    flat, weights = _members(case, category)
    centers, accepted = _centers(flat, case.spatial_shape, segment=segment, image=image)
    cumulative = torch.where(accepted, weights, 0.0).cumsum(0)
    if float(cumulative[-1]) <= 0:
        return None
    chosen = weighted_draw(cumulative, seeding.scalar(seeding.derive(key, "listed")))
    return triple(centers[chosen].tolist())


def _draw(case: CaseData, category: str, u: float) -> int:
    if category == WHOLE_IMAGE and category not in case.centers:
        return flat_draw(math.prod(case.spatial_shape), u)
    if category.startswith(WEIGHTS):
        return weighted_draw(case.weight_cumsums[category.removeprefix(WEIGHTS)].reshape(-1), u)
    centers = case.centers[category]
    return int(centers[flat_draw(len(centers), u)])


def _members(case: CaseData, category: str) -> tuple[Tensor, Tensor]:
    """Return all flat indices of a category with their weights."""
    if category.startswith(WEIGHTS):
        cumulative = case.weight_cumsums[category.removeprefix(WEIGHTS)].reshape(-1).to(torch.float64)
        return torch.arange(len(cumulative)), cumulative.diff(prepend=cumulative.new_zeros(1))
    known = case.centers.get(category)
    flat = torch.arange(math.prod(case.spatial_shape)) if known is None else known
    return flat, torch.ones(len(flat), dtype=torch.float64)


def _centers(flat: Tensor, shape: Triple, *, segment: Triple | None, image: AffineMap | None) -> tuple[Tensor, Tensor]:
    """Return the centers ``[n, 3]`` of flat indices and which of them are allowed."""
    points = (flat // (shape[1] * shape[2]), flat // shape[2] % shape[1], flat % shape[2])
    if image is not None:
        x, y, z = (p.to(torch.float64) for p in points)
        i, j, k = ((p + 0.5).floor().long() for p in image((x, y, z)))
        points = (i, j, k)
    centers = torch.stack(points, dim=1)
    if segment is None:
        return centers, torch.ones(len(flat), dtype=torch.bool)
    return centers, fits(centers, segment, shape)


def fits(centers: Tensor, segment: Triple, shape: Triple) -> Tensor:
    """Tell for centers ``[n, 3]`` whether the whole segment around them lies in the volume.

    >>> fits(torch.tensor([[2, 2, 2], [1, 2, 2]]), (5, 5, 5), (5, 5, 5)).tolist()
    [True, False]
    """
    starts = centers + torch.tensor(segment_start((0, 0, 0), segment))
    return ((starts >= 0) & (starts + torch.tensor(segment) <= torch.tensor(shape))).all(dim=1)
