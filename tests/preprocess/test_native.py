from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmx.cohort.grid import NiftiGrid
from dmx.cohort.volume import orientation, read_grid, read_volume, write_volume
from dmx.preprocess.native import (
    Geometry,
    cropped,
    forward,
    plan_geometry,
    restore_labels,
    restore_maps,
    restore_most_probable,
    restore_one,
    restore_probabilities,
)
from dmx.preprocess.orient import axes_and_flips

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def tilted(axes: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Affine whose voxel axis ``a`` points along world axis ``axes[a]``, tilted by some degrees."""
    angle = 0.15
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ (np.eye(3)[:, list(axes)] * np.array(signs) * np.array(spacing))
    affine[:3, 3] = (5.0, -3.0, 40.0)
    return affine


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_every_orientation_becomes_ras_and_returns(axes: tuple[int, ...], signs: tuple[int, ...]) -> None:
    grid = NiftiGrid.from_affine((3, 4, 5), tilted(axes, signs))
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    geometry = cropped(plan_geometry(grid, "RAS", None), (0, 1, 0), (2, 2, 3))
    geometry = replace(geometry, pad_before=(1, 1, 0), pad_after=(0, 1, 2))
    turned = forward(array, plan_geometry(grid, "RAS", None), kind="labels")
    # Neighbors along each axis lie further right, anterior, superior.
    for axis in range(3):
        first, second = np.take(turned, 0, axis).flat[0], np.take(turned, 1, axis).flat[0]
        step = grid.affine[:3, :3] @ (np.argwhere(array == second)[0] - np.argwhere(array == first)[0])
        assert np.argmax(np.abs(step)) == axis
        assert step[axis] > 0
    prepared = forward(array, geometry, kind="labels")
    assert prepared.shape == geometry.shape
    restored, back = restore_labels(prepared, geometry)
    assert back is grid
    inside = np.isin(array, turned[0:2, 1:3, 0:3])
    np.testing.assert_array_equal(restored, np.where(inside, array, 0))
    assert restored.dtype == array.dtype


def test_the_48_orientations_are_48() -> None:
    codes = {orientation(tilted(*one)) for one in ORIENTATIONS}
    assert len(codes) == 48
    assert len({axes_and_flips(code, "RAS") for code in codes}) == 48
    assert {axes_and_flips(code, "native") for code in codes} == {((0, 1, 2), (False, False, False))}


@pytest.mark.parametrize("target", ["LIA", "PSR", "SAL"])
def test_axes_point_where_they_shall(target: str) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    for axes, signs in ORIENTATIONS:
        grid = NiftiGrid.from_affine((3, 4, 5), tilted(axes, signs))
        geometry = plan_geometry(grid, target, None)
        turned = forward(array, geometry, kind="labels")
        places = [np.argwhere(array == turned[corner])[0] for corner in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
        steps = grid.affine[:3, :3] @ np.array([place - places[0] for place in places[1:]]).T
        assert orientation(np.block([[steps, np.zeros((3, 1))], [np.array([0, 0, 0, 1])]])) == target
        np.testing.assert_array_equal(restore_labels(turned, geometry)[0], array)
    assert axes_and_flips(target, target) == ((0, 1, 2), (False, False, False))


@settings(max_examples=30, deadline=None)
@given(
    orientation_=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(*[st.sampled_from([0.7, 1.0, 1.9])] * 3),
    target=st.sampled_from([0.9, 1.3]),
)
def test_resampled_maps_return_to_where_they_were(orientation_, spacing, target) -> None:
    grid = NiftiGrid.from_affine((12, 11, 10), tilted(*orientation_, spacing=spacing))
    geometry = plan_geometry(grid, "RAS", (target,) * 3)
    # A linear ramp along a voxel axis is reproduced by any interpolation, except at the ends.
    for axis in range(3):
        ramp = np.broadcast_to(
            np.arange(grid.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)]), grid.shape
        )
        prepared = forward(ramp, geometry, kind="linear")
        (restored,), _ = restore_maps(prepared[None], geometry)
        inner = (slice(3, -3),) * 3
        np.testing.assert_allclose(restored[inner], ramp[inner], atol=1e-3)


def test_probabilities_return_with_background_outside_of_the_crop() -> None:
    grid = NiftiGrid.from_affine((6, 6, 6), np.diag([-1.0, 1.0, 1.0, 1.0]))
    geometry = cropped(plan_geometry(grid, "RAS", None), (1, 1, 1), (3, 4, 4))
    maps = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], (3, 4, 4)).transpose(3, 0, 1, 2)
    restored, _ = restore_probabilities(maps, geometry)
    np.testing.assert_allclose(restored.sum(0), 1.0, atol=1e-6)
    assert (restored[0] == 1).sum() == 6**3 - 3 * 4 * 4
    np.testing.assert_array_equal(restored[:, ::-1][:, 1:4, 1:5, 1:5], maps.astype(np.float32))
    zeros, _ = restore_maps(maps, geometry)
    assert zeros[0, 0, 0, 0] == 0


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (2.0, 0.7, 3.0)])
def test_the_most_probable_class_is_the_arg_max_of_all_maps(spacing) -> None:
    grid = NiftiGrid.from_affine((10, 9, 8), np.diag([-1.5, 1.0, 2.0, 1.0]))
    geometry = plan_geometry(grid, "RAS", spacing)
    geometry = cropped(geometry, (1, 1, 1), tuple(n - 2 for n in geometry.full_shape))
    maps = np.random.default_rng(0).dirichlet([1.0] * 5, geometry.shape).transpose(3, 0, 1, 2).astype(np.float32)
    maps[1, :2] = maps[3, :2]
    native, _ = restore_probabilities(maps, geometry)
    labels, back = restore_most_probable(maps, geometry)
    assert back is grid
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, native.argmax(0))
    for index, one in enumerate(native):
        np.testing.assert_array_equal(restore_one(maps[index], geometry, outside=float(index == 0)), one)


def test_labels_and_probabilities_agree_after_resampling() -> None:
    grid = NiftiGrid.from_affine((10, 9, 8), np.diag([1.5, 1.0, 2.0, 1.0]))
    geometry = plan_geometry(grid, "RAS", (1.0, 1.0, 1.0))
    labels = np.zeros(geometry.shape, dtype=np.uint8)
    labels[4:9, 3:6, 5:11] = 1
    labels[9:12, 3:6, 5:11] = 2
    restored, _ = restore_labels(labels, geometry)
    maps, _ = restore_probabilities(np.stack([labels == k for k in range(3)]), geometry)
    assert restored.shape == grid.shape
    # Labels alone say less than probabilities: at the border they may differ, the volume is kept.
    assert (restored == maps.argmax(0)).mean() > 0.95
    assert [int((restored == k).sum() * 3) for k in (1, 2)] == pytest.approx([90, 54], abs=18)


def test_a_geometry_survives_json_and_refuses_another_shape() -> None:
    grid = NiftiGrid.from_affine((6, 5, 4), tilted((2, 0, 1), (1, -1, 1)))
    geometry = replace(cropped(plan_geometry(grid, "RAS", (2.0, 1.0, 1.0)), (0, 1, 0), (2, 3, 3)), pad_after=(1, 0, 0))
    again = Geometry.from_dict(geometry.as_dict())
    assert again.as_dict() == geometry.as_dict()
    assert again.shape == geometry.shape == (3, 3, 3)
    with pytest.raises(ValueError, match="prepared shape"):
        restore_labels(np.zeros((2, 3, 3)), geometry)


@pytest.mark.skipif(not SHARED.exists(), reason="the real scans lie beside the repository, not in it")
@pytest.mark.parametrize(
    "name",
    [
        "hippocampus/labelsTr/hippocampus_001.nii.gz",
        "brats2015/train/brats_2013_pat0005_1/OTMultiClass.nii.gz",
        "meshnet/t1_crop.nii.gz",
    ],
)
def test_a_real_label_map_returns_exactly_with_its_header(tmp_path: Path, name: str) -> None:
    native = read_volume(SHARED / name)
    geometry = cropped(
        plan_geometry(native.header, "RAS", None), (0, 0, 0), plan_geometry(native.header, "RAS", None).shape
    )
    prepared = forward(native.array, replace(geometry, pad_before=(3, 2, 1), pad_after=(0, 1, 2)), kind="labels")
    restored, grid = restore_labels(prepared, replace(geometry, pad_before=(3, 2, 1), pad_after=(0, 1, 2)))
    np.testing.assert_array_equal(restored, native.array)
    write_volume(tmp_path / "back.nii", restored, grid, dtype=native.array.dtype)
    assert read_grid(tmp_path / "back.nii").as_dict() == native.header.as_dict()
