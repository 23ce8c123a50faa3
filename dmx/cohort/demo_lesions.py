"""Lesions of the demonstration cohort: where they lie, and what shape they grow to."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmx.cohort.demo_anatomy import Array, Generator, Grid, Tissue, largest_component, random_field

Region = NDArray[np.bool_]
Labels = NDArray[np.uint8]
_ROUNDS = 6


def pick_center(rng: Generator, weights: Array) -> NDArray[np.int64]:
    """Draw one voxel with a probability proportional to its weight, [3]."""
    total = np.cumsum(weights, axis=None, dtype=np.float64)
    flat = int(np.searchsorted(total, rng.uniform(0, total[-1]), side="right"))
    return np.array(np.unravel_index(min(flat, total.size - 1), weights.shape))


def grow(
    rng: Generator, grid: Grid, *, center: NDArray[np.int64], volume_ml: float, inside: Region, prior: Array
) -> Region:
    """Return a connected region of a volume around a center.

    Voxels are taken in the order of -stretched radius + smooth random field + tissue prior; the largest connected part
    of the first ones that reaches the volume, cut down to it.

    Args:
        rng: Draws stretch and field.
        grid: Voxels.
        center: Voxel indices.
        volume_ml: Volume in milliliters; at least one voxel.
        inside: Where it may grow.
        prior: Preference for a tissue, about 0 to 1.
    """
    wanted = max(1, round(volume_ml * 1000 / grid.spacing**3))
    radius = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    axes = [(np.arange(n) - c) * grid.spacing for n, c in zip(grid.shape, center, strict=True)]
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0] * rng.uniform(0.75, 1.35, 3)
    offset = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    stretched = np.sqrt((np.tensordot(turn.T.astype(np.float32), offset, axes=1) ** 2).sum(axis=0))
    wobble = random_field(rng, grid, max(0.45 * radius, grid.spacing))
    fine = random_field(rng, grid, max(0.15 * radius, grid.spacing))
    score = -stretched / max(radius, grid.spacing) + 0.22 * wobble + 0.07 * fine + 0.5 * prior
    return _best_connected(score, inside, wanted)


def _best_connected(score: Array, inside: Region, wanted: int) -> Region:
    """Return about ``wanted`` connected voxels of the highest score."""
    values = score[inside]
    number = min(wanted, values.size)
    for _ in range(_ROUNDS):
        limit = np.partition(values, values.size - number)[values.size - number]
        part = largest_component(inside & (score >= limit))
        size = int(part.sum())
        if size >= wanted or number == values.size:
            break
        number = min(values.size, int(number * max(wanted / size, 1.02)))
    if size > wanted:
        kept = score[part]
        part = largest_component(part & (score >= np.partition(kept, size - wanted)[size - wanted]))
    return part


def stroke_labels(rng: Generator, grid: Grid, tissue: Tissue, warp: Array) -> Labels:
    """Return 0 background, 1 lesion: one to three lesions of one hemisphere, together 0.6 to 80 ml."""
    total = float(np.clip(rng.lognormal(1.9, 1.0), 0.6, 80.0))
    shares = np.sort(rng.dirichlet([2.0] * int(rng.integers(1, 4))))[::-1]
    # The template's left and right: an artery feeds one of them.
    side = tissue.brain & (warp[0] * rng.choice([-1.0, 1.0]) > 0)
    prior = tissue.gray + tissue.white - 0.8 * tissue.csf
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for share in shares:
        free = side & (labels == 0)
        center = pick_center(rng, (tissue.white + 0.6 * tissue.gray) * free)
        labels[grow(rng, grid, center=center, volume_ml=total * float(share), inside=free, prior=prior)] = 1
    return labels


def tumor_center(rng: Generator, tissue: Tissue) -> NDArray[np.int64]:
    """Draw the middle of a tumor: white matter away from the surface."""
    deep = tissue.white**2 * (tissue.csf < 0.2)
    edge = [slice(round(0.2 * n), n - round(0.2 * n)) for n in deep.shape]
    weights = np.zeros_like(deep)
    weights[tuple(edge)] = deep[tuple(edge)]
    return pick_center(rng, weights)


def tumor_labels(rng: Generator, grid: Grid, tissue: Tissue, center: NDArray[np.int64]) -> Labels:
    """Return 0 background, 1 edema, 2 core, 3 enhancing rim of 3 to 7 mm.

    The whole has 12 to 140 ml and follows white matter; core and rim are 15 to 40 % of it.
    """
    total = float(np.clip(rng.lognormal(3.9, 0.5), 12.0, 140.0))
    inside = rng.uniform(0.15, 0.40) * total
    prior = tissue.white + 0.3 * tissue.gray - tissue.csf
    core = grow(rng, grid, center=center, volume_ml=inside, inside=tissue.brain, prior=0.3 * prior)
    around = grow(rng, grid, center=center, volume_ml=total, inside=tissue.brain, prior=prior)
    depth = ndimage.distance_transform_edt(core, sampling=grid.spacing)
    uneven = 1 + 0.25 * random_field(rng, grid, 10.0)
    # A rim is at least one voxel thick and leaves a middle.
    thickness = float(np.clip(rng.uniform(3.0, 7.0), grid.spacing, max(0.65 * depth.max(), grid.spacing)))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[around] = 1
    labels[core] = 2
    labels[core & (depth <= np.maximum(thickness * uneven, grid.spacing))] = 3
    return labels


def mass_effect(rng: Generator, warp: Array, grid: Grid, center: NDArray[np.int64]) -> Array:
    """Push the tissue around a tumor outwards by at most 1 to 5 mm."""
    points = grid.points()
    away = points - points[(slice(None), *center)].reshape(3, 1, 1, 1)
    reach = rng.uniform(20.0, 35.0)
    largest = rng.uniform(1.0, 5.0)
    ratio = np.sqrt((away**2).sum(axis=0)) / reach
    # r·exp(½ - r²/2) has its maximum, 1, at r = 1.
    push = largest * np.exp(0.5 - ratio**2 / 2) / reach
    moved: Array = (warp - away * push).astype(np.float32)
    return moved
