"""Anatomy of the demonstration cohort: the MNI152 template, deformed at random."""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dmx.cohort.volume import read_volume
from dmx.errors import CohortError
from dmx.geometry import Triple, triple

Array = NDArray[np.float32]
Generator = np.random.Generator

# Box in mm that holds a brain of any size and position drawn here, and its middle in template coordinates.
FIELD_OF_VIEW_MM = (188.0, 232.0, 196.0)
_MIDDLE_MM = (0.0, -17.0, 5.0)
_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True, eq=False)
class Tissue:
    """Shares of tissue per voxel, each [I, J, K] from 0 to 1.

    Attributes:
        brain: Boolean, inside of the brain.
        csf: Cerebrospinal fluid.
        gray: Gray matter.
        white: White matter.
        texture: What the template's intensities show beyond the three, in units of their contrast.
    """

    brain: NDArray[np.bool_]
    csf: Array
    gray: Array
    white: Array
    texture: Array


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a scan.

    Attributes:
        shape: Voxels per axis.
        spacing: Voxel size in mm, the same on each axis.
    """

    shape: Triple
    spacing: float

    @classmethod
    def of_head(cls, spacing: float) -> "Grid":
        """Return the grid that holds a head at a voxel size."""
        return cls(triple([round(length / spacing) for length in FIELD_OF_VIEW_MM]), spacing)

    def points(self) -> Array:
        """Return the voxel centers in mm from the middle, [3, I, J, K]."""
        axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * self.spacing for n in self.shape]
        return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)

    def affine(self) -> NDArray[np.float64]:
        """Return voxel to mm, the middle of the template's brain in the middle of the box."""
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:3, 3] = [c - (n - 1) / 2 * self.spacing for c, n in zip(_MIDDLE_MM, self.shape, strict=True)]
        return affine


def template_file(name: str) -> Path:
    """Return the template file that nilearn ships: ``t1``, ``gm`` or ``wm``.

    Raises:
        CohortError: nilearn is not installed, or ships other files.
    """
    found = importlib.util.find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        raise CohortError("The demonstration cohort needs the template of nilearn: pip install 'dmx-transfer[demo]'.")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / _FILE.format(name)
    if not path.is_file():
        raise CohortError(f"This version of nilearn has no '{path.name}': pip install 'nilearn>=0.11,<0.15'.")
    return path


@lru_cache(maxsize=1)
def _template(spacing: float) -> tuple[NDArray[np.float64], Array]:
    """Return world to voxel of the template, and [brain, gray, white, texture], smoothed for a voxel size."""
    volume = read_volume(template_file("t1"))
    t1 = volume.array.astype(np.float32) / 255
    gray, white = (read_volume(template_file(name)).array.astype(np.float32) / 255 for name in ("gm", "wm"))
    brain = ndimage.binary_fill_holes(t1 > 0)
    shares = np.stack([np.clip(1 - gray - white, 0, 1)[brain], gray[brain], white[brain]], axis=1)
    means = np.linalg.lstsq(shares, t1[brain], rcond=None)[0]
    texture = np.zeros_like(t1)
    texture[brain] = (t1[brain] - shares @ means) / (means.max() - means.min())
    # A coarser voxel averages what the template shows in it.
    sigma = 0.35 * max(spacing**2 - 1, 0.0) ** 0.5
    smooth: list[Array] = [
        ndimage.gaussian_filter(one, sigma) for one in (brain.astype(np.float32), gray, white, texture)
    ]
    to_voxel = np.asarray(np.linalg.inv(volume.affine), dtype=np.float64)
    return to_voxel, np.stack(smooth)


def random_field(rng: Generator, grid: Grid, sigma_mm: float) -> Array:
    """Return a smooth random field of mean 0 and standard deviation 1, [I, J, K]."""
    step = max(grid.spacing, sigma_mm * 0.6)
    # One more lattice point on each side keeps the borders as lively as the middle.
    coarse = [int(np.ceil(n * grid.spacing / step)) + 3 for n in grid.shape]
    lattice = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma_mm / step, mode="wrap")
    field = lattice
    for axis, n in enumerate(grid.shape):
        field = _stretch(field, axis, n, grid.spacing / step)
    field -= field.mean()
    field /= max(float(field.std()), 1e-6)
    return field


def _stretch(field: Array, axis: int, length: int, step: float) -> Array:
    """Interpolate linearly along one axis, from lattice position 1 on."""
    position = 1 + np.arange(length) * step
    low = np.minimum(position.astype(np.int64), field.shape[axis] - 2)
    shape = [1, 1, 1]
    shape[axis] = length
    share = (position - low).astype(np.float32).reshape(shape)
    result: Array = np.take(field, low, axis) * (1 - share) + np.take(field, low + 1, axis) * share
    return result


def random_warp(rng: Generator, grid: Grid) -> Array:
    """Return where in the template, in mm from its middle, each voxel of a new head lies, [3, I, J, K].

    Rotation up to 8.6°, scale 0.9 to 1.1, shear 0.04, shift 6 mm, left and right exchanged in every second head, smooth
    displacement of 3.5 mm at 16 mm and 0.7 mm at 6 mm.
    """
    a, b, c = rng.uniform(-0.15, 0.15, 3)
    turn_i = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_j = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn_k = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    shear = np.eye(3) + np.triu(rng.uniform(-0.04, 0.04, (3, 3)), 1)
    matrix = turn_i @ turn_j @ turn_k @ shear @ np.diag(rng.uniform(0.9, 1.1, 3))
    matrix[0] *= rng.choice([-1.0, 1.0])
    shift = rng.uniform(-6, 6, 3)
    warp = np.tensordot(matrix.astype(np.float32), grid.points(), axes=1)
    for axis in range(3):
        warp[axis] += np.float32(shift[axis])
        warp[axis] += 3.5 * random_field(rng, grid, 16.0)
        warp[axis] += 0.7 * random_field(rng, grid, 6.0)
    return warp.astype(np.float32)


def sample_tissue(warp: Array, grid: Grid) -> Tissue:
    """Return the template's tissue at warped places."""
    inverse, maps = _template(grid.spacing)
    world = warp.reshape(3, -1).astype(np.float64) + np.array(_MIDDLE_MM)[:, None]
    index = inverse[:3, :3] @ world + inverse[:3, 3:]
    brain, gray, white, texture = (
        ndimage.map_coordinates(one, index, order=1, mode="constant").reshape(warp.shape[1:]).astype(np.float32)
        for one in maps
    )
    inside = largest_component(brain > 0.5)
    gray, white = gray * inside, white * inside
    return Tissue(inside, np.clip(1 - gray - white, 0, 1) * inside, gray, white, texture * inside)


def largest_component(region: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the largest connected part (by faces) of a region."""
    parts, count = ndimage.label(region)
    if count <= 1:
        return region.astype(np.bool_)
    sizes = np.bincount(parts.ravel())[1:]
    largest: NDArray[np.bool_] = parts == 1 + int(np.argmax(sizes))
    return largest
