"""Where the voxels of a NIfTI file lie, and what is needed to write another file on the same grid."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmx.geometry import Triple, triple

Affine = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NiftiGrid:
    """Geometry fields of a NIfTI header, as they are in the file.

    Attributes:
        shape: Voxels per axis.
        affine: 4x4, voxel to world (RAS+), in the file's units, usually mm.
        zooms: ``pixdim[1:4]``.
        qform_code: 0 where the quaternion says nothing.
        sform_code: 0 where the affine is not stored as such.
        quaternion: ``pixdim[0]``, ``quatern_b``, ``c``, ``d``, ``qoffset_x``, ``y``, ``z``.
        xyzt_units: Code of the units of space and time; 2 is mm, 10 is mm and s.
        version: 1 or 2 (NIfTI-1 or NIfTI-2).
    """

    shape: Triple
    affine: Affine
    zooms: tuple[float, float, float]
    qform_code: int = 0
    sform_code: int = 2
    quaternion: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    xyzt_units: int = 2
    version: int = 1

    @classmethod
    def from_affine(cls, shape: Triple, affine: Affine) -> "NiftiGrid":
        """Return the grid of a new file in mm whose sform is the affine."""
        matrix = np.asarray(affine, dtype=np.float64)
        return cls(shape=shape, affine=matrix, zooms=voxel_sizes(matrix))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along each axis, from the affine."""
        return voxel_sizes(self.affine)

    @property
    def affine_of(self) -> Literal["sform", "qform", ""]:
        """Which field of the header the affine comes from; empty where both codes are 0."""
        return "sform" if self.sform_code > 0 else "qform" if self.qform_code > 0 else ""

    @property
    def qform(self) -> Affine | None:
        """Affine of the quaternion (NIfTI-1 standard, method 2); None where it says nothing."""
        if self.qform_code <= 0:
            return None
        side, b, c, d, *offset = self.quaternion
        a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        affine = np.eye(4)
        affine[:3, :3] = turn * np.array([1.0, 1.0, -1.0 if side < 0 else 1.0]) * np.array(self.zooms)
        affine[:3, 3] = offset
        return affine

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "zooms": list(self.zooms),
            "quaternion": list(self.quaternion),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NiftiGrid":
        """Return the grid that :meth:`as_dict` described."""
        x, y, z = values["zooms"]
        return cls(
            **{
                **values,
                "shape": triple(values["shape"]),
                "affine": np.array(values["affine"], dtype=np.float64),
                "zooms": (float(x), float(y), float(z)),
                "quaternion": tuple(values["quaternion"]),
            }
        )


def voxel_sizes(affine: Affine) -> tuple[float, float, float]:
    """Return the length of each voxel axis: the norms of the affine's columns.

    >>> voxel_sizes(np.diag([2.0, 1.0, 0.5, 1.0]))
    (2.0, 1.0, 0.5)
    """
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return (x, y, z)
