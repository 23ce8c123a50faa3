from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from dmx.cohort.volume import read_volume
from dmx.preprocess.label_maps import apply_labels, label_axes, label_axis
from dmx.preprocess.resample import Spacing, resampled_shape

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ONE = (1.0, 1.0, 1.0)
Labels = NDArray[np.uint8]


def resampled(labels: Labels, target: float, spacing: Spacing = ONE) -> Labels:
    shape = resampled_shape(labels.shape, spacing, (target,) * 3)  # type: ignore[arg-type]
    return apply_labels(labels, label_axes(labels.shape, shape, [target / size for size in spacing]))


def kept(labels: Labels, target: float, spacing: Spacing = ONE) -> float:
    size = target**3 / float(np.prod(spacing))
    return float((resampled(labels, target, spacing) > 0).sum() * size / (labels > 0).sum())


def empty() -> Labels:
    return np.zeros((35, 34, 33), dtype=np.uint8)


def plate(position: int) -> Labels:
    labels = empty()
    labels[5 + position, 4:-4, 4:-4] = 1
    return labels


def vessel(position: int) -> Labels:
    labels = empty()
    labels[5 + position % 5, 5 + position // 5, 3:-3] = 1
    return labels


def speck(position: int) -> Labels:
    labels = empty()
    labels[5 + position, 7 + position, 9] = 1
    return labels


def test_labels_never_mix() -> None:
    rng = np.random.default_rng(7)
    labels = rng.choice(np.array([0, 3, 250], dtype=np.uint8), size=(8, 8, 8))
    result = apply_labels(labels, label_axes((8, 8, 8), (13, 5, 8), (0.6, 1.6, 1.0)))
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {0, 3, 250}
    assert (apply_labels(np.full((4, 4, 4), 2), label_axes((4, 4, 4), (2, 2, 2), (2.0, 2.0, 2.0))) == 2).all()


@pytest.mark.parametrize("step", [0.31, 0.5, 0.9999, 1.0, 1.5, 2.0, 2.0000001, 3.0, 7.3])
def test_weights_are_whole_numbers_that_sum_to_256(step: float) -> None:
    axis = label_axis(29, max(1, round(29 / step)), step)
    np.testing.assert_array_equal(axis.weights, np.rint(axis.weights))
    np.testing.assert_array_equal(axis.weights.sum(axis=1), 256)
    assert axis.weights.min() >= 0


def test_a_tie_goes_up_and_down_in_turn() -> None:
    labels = np.array([1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1], dtype=np.uint8).repeat(16).reshape(12, 4, 4)
    # Voxels of 2 mm: 1 1, 1 0 (the lower one), 0 1 (the upper one), 1 0, 0 1, 1 1.
    result = apply_labels(labels, label_axes((12, 4, 4), (6, 2, 2), (2.0, 2.0, 2.0)), keep=False)
    assert result[:, 0, 0].tolist() == [1, 1, 1, 1, 1, 1]
    moved = apply_labels(np.roll(labels, 2, axis=0), label_axes((12, 4, 4), (6, 2, 2), (2.0, 2.0, 2.0)), keep=False)
    assert moved[:, 0, 0].tolist() == [1, 1, 0, 0, 0, 0]
    turned = np.float64(2.0) * (1 + 1e-7)
    noisy = apply_labels(labels, label_axes((12, 4, 4), (6, 2, 2), (float(turned), 2.0, 2.0)), keep=False)
    np.testing.assert_array_equal(noisy, result)


@pytest.mark.parametrize("target", [0.7, 1.5, 2.0, 3.0])
def test_cubes_and_balls_keep_their_volume_in_the_mean(target: float) -> None:
    cubes, balls = [], []
    for position in range(12):
        for size in (7, 8, 9, 10):
            labels = empty()
            labels[tuple(slice(6 + (position + axis) % 5, 6 + (position + axis) % 5 + size) for axis in range(3))] = 1
            cubes.append(kept(labels, target))
        middle = np.array([16, 16.5, 15]) + np.array([position % 3, position % 4, position % 5]) / 3
        distance = np.linalg.norm(np.moveaxis(np.indices(empty().shape), 0, -1) - middle, axis=-1)
        balls.append(kept((distance < 8).astype(np.uint8), target))
    assert 0.97 < np.mean(cubes) < 1.03
    assert 0.98 < np.mean(balls) < 1.02


@pytest.mark.parametrize("target", [0.7, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("shape", [plate, vessel, speck])
def test_thin_structures_stay_in_one_piece_one_voxel_thick(shape: Callable[[int], Labels], target: float) -> None:
    for position in range(20):
        found = resampled(shape(position), target)
        assert ndimage.label(found, np.ones((3, 3, 3)))[1] == 1
        if target > 1 and shape is not speck:
            assert (found.sum(axis=0) <= 1).all()


def test_a_vessel_stays_within_another_class_and_a_bump_adds_nothing() -> None:
    within = vessel(7)
    within[within == 0] = 2
    found = resampled(within, 3.0)
    assert (found == 1).any(axis=(0, 1)).sum() >= 8
    block = empty()
    block[4:28, 4:28, 4:16] = 1
    bumped = block.copy()
    bumped[15, 15, 16] = 1
    assert abs(int(resampled(bumped, 2.0).sum()) - int(resampled(block, 2.0).sum())) <= 1


def test_upsampled_and_back_is_the_same() -> None:
    rng = np.random.default_rng(3)
    labels = ndimage.zoom(rng.integers(0, 3, (5, 5, 5)), 4, order=0).astype(np.uint8)
    fine = apply_labels(labels, label_axes((20, 20, 20), (40, 40, 40), (0.5, 0.5, 0.5)))
    back = apply_labels(fine, label_axes((40, 40, 40), (20, 20, 20), (2.0, 2.0, 2.0)))
    assert (back == labels).mean() > 0.97


@pytest.mark.skipif(not SHARED.exists(), reason="the real scans lie beside the repository, not in it")
@pytest.mark.parametrize("target", [1.5, 2.0, 3.0])
def test_real_label_maps_keep_their_volume(target: float) -> None:
    shares = []
    for path in sorted((SHARED / "hippocampus/labelsTr").glob("hippocampus_*.nii.gz"))[:8]:
        volume = read_volume(path)
        shares.append(kept(volume.array.astype(np.uint8), target, volume.spacing))
    assert 0.98 < np.mean(shares) < 1.02
    assert min(shares) > 0.93
