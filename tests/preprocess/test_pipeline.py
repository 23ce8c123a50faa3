from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.volume import read_volume
from dmx.config.sections import NormalizeSection, PreprocessSection
from dmx.errors import CohortError
from dmx.preprocess.contract import Contract
from dmx.preprocess.native import restore_labels, restore_probabilities
from dmx.preprocess.pipeline import preprocess_case

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
GOLDEN = SHARED.parent / "golden" / "data_ops.npz"
SHAPE = (9, 8, 7)


def contract(*, normalize: NormalizeSection | None = None, **settings) -> Contract:
    fields = {name: settings.pop(name) for name in list(settings) if name in Contract.__dataclass_fields__}
    section = PreprocessSection(normalize=normalize or NormalizeSection(), **settings)
    return Contract(**{"channels": ("t1",), "classes": ("background", "a", "b"), "preprocess": section} | fields)


def test_a_case_becomes_arrays_of_one_shape(make_case) -> None:
    case = make_case()
    prepared = preprocess_case(case, contract())
    assert prepared.channels.shape == (1, *SHAPE)
    assert prepared.channels.dtype == np.float32
    assert prepared.labels.dtype == np.uint8
    np.testing.assert_array_equal(prepared.labels, read_volume(case.label_map).array)
    inside = prepared.channels[0][prepared.roi > 0]
    assert (inside.mean(), inside.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert prepared.weight_maps["hard"].max() == 0.5
    assert prepared.geometry.spacing == (1.0, 2.0, 3.0)


def test_a_new_scan_without_labels_goes_the_same_way(make_case) -> None:
    with_labels = preprocess_case(make_case("a"), contract())
    image = read_volume(make_case("a").channels["t1"]).array
    without = preprocess_case(make_case("b", t1=image, label_map=None, weights=None), contract())
    assert without.labels is None
    assert not without.weight_maps
    assert without.channels.shape == with_labels.channels.shape


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
def test_cropping_keeps_the_roi_and_labels_return(make_case, spacing) -> None:
    case = make_case(affine=np.diag([-1.0, 2.0, 3.0, 1.0]))
    prepared = preprocess_case(case, contract(crop_to_roi=True, crop_margin=1, spacing=spacing))
    whole = preprocess_case(case, contract(spacing=spacing))
    assert np.prod(prepared.roi.shape) < np.prod(whole.roi.shape)
    assert prepared.roi.sum() == whole.roi.sum()
    restored, grid = restore_labels(prepared.labels, prepared.geometry)
    native = read_volume(case.label_map).array
    assert grid.shape == native.shape
    if spacing is None:
        np.testing.assert_array_equal(restored, native)
        assert prepared.roi.shape == (7, 8, 6)
    else:
        assert prepared.geometry.full_shape == (9, 16, 21)
        # A single voxel of class 2 inside class 1 survives the finer grid and returns.
        assert (restored == native).mean() > 0.99
        maps, _ = restore_probabilities(np.stack([prepared.labels == k for k in range(3)]), prepared.geometry)
        np.testing.assert_array_equal(maps.argmax(0), restored)


def test_nonzero_voxels_are_cropped_to_and_measured_in(make_case, rng) -> None:
    image = np.zeros(SHAPE)
    # So faint beside the rest that the computed foreground of contrast leaves it out.
    image[1:8, 2:7, 1:6] = 1.0
    image[3:5, 3:5, 3:5] = rng.normal(1000, 10, (2, 2, 2))
    case = make_case(t1=image, roi=None)
    settings = {"crop_to_roi": True, "crop_margin": 0}
    normalize = NormalizeSection(region="foreground", outside="zero")
    prepared = preprocess_case(case, contract(foreground="nonzero", normalize=normalize, **settings))
    assert prepared.channels.shape == (1, 7, 5, 5)
    kept = read_volume(case.channels["t1"]).array[1:8, 2:7, 1:6]
    np.testing.assert_allclose(prepared.channels[0], (kept - kept.mean()) / kept.std(), atol=1e-5)
    assert preprocess_case(case, contract(normalize=normalize, **settings)).channels.shape == (1, 2, 2, 2)


def test_without_a_roi_the_foreground_is_cropped_to_and_measured_in(make_case, rng) -> None:
    image = np.zeros(SHAPE)
    image[4:7, 3:6, 3:5] = rng.normal(100, 5, (3, 3, 2))
    case = make_case(t1=image, roi=None)
    prepared = preprocess_case(case, contract(crop_to_roi=True, crop_margin=0))
    assert prepared.roi is None
    assert prepared.channels.shape == (1, 3, 3, 2)
    assert prepared.channels.mean() == pytest.approx(0, abs=1e-5)
    in_image = preprocess_case(case, contract(normalize=NormalizeSection(region="image")))
    assert in_image.channels.mean() == pytest.approx(0, abs=1e-5)
    reference = preprocess_case(case, contract(compatibility="deepmedic"))
    np.testing.assert_array_equal(reference.channels, in_image.channels)
    assert not np.array_equal(preprocess_case(case, contract()).channels, in_image.channels)


def test_labels_are_mapped_at_once_and_checked(make_case) -> None:
    case = make_case()
    native = read_volume(case.label_map).array
    swapped = preprocess_case(case, contract(labels={1: 2, 2: 1})).labels
    np.testing.assert_array_equal(swapped, np.array([0, 2, 1])[native.astype(int)])
    merged = preprocess_case(case, contract(labels={2: 1}, classes=("background", "a"))).labels
    np.testing.assert_array_equal(merged, native > 0)
    with pytest.raises(CohortError, match=r"case 'one'.*the label 2, allowed are 0 to 1 \(background, a\)"):
        preprocess_case(case, contract(classes=("background", "a")))


def test_a_missing_channel_is_filled_after_normalization_or_refused(make_case) -> None:
    case = make_case()
    prepared = preprocess_case(case, contract(channels=("t2", "t1"), fill={"t2": -1.5}))
    assert (prepared.channels[0] == -1.5).all()
    np.testing.assert_array_equal(prepared.channels[1], preprocess_case(case, contract()).channels[0])
    with pytest.raises(CohortError, match=r"'one' lacks the channel 't2'.*cohort\.fill"):
        preprocess_case(case, contract(channels=("t2", "t1")))
    with pytest.raises(CohortError, match="at least one of the channels"):
        preprocess_case(case, contract(channels=("t2",), fill={"t2": 0.0}))


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"roi": np.zeros(SHAPE)}, "the roi '.*' is empty"),
        ({"t1": np.full(SHAPE, np.nan)}, r"channel 't1': '.*' has 504 voxels that are NaN or infinite"),
        ({"weights": np.full(SHAPE, -1.0)}, "weight map '.*' must have values of at least 0, got -1"),
    ],
)
def test_what_cannot_be_used_is_named(make_case, parts, sentence: str) -> None:
    with pytest.raises(CohortError, match=f"case 'one'.*{sentence}"):
        preprocess_case(make_case(**parts), contract())


def test_a_file_on_another_grid_is_named(make_case, tmp_path: Path) -> None:
    from dataclasses import replace

    from dmx.cohort.grid import NiftiGrid
    from dmx.cohort.volume import write_volume

    write_volume(
        tmp_path / "small.nii", np.zeros((3, 3, 3)), NiftiGrid.from_affine((3, 3, 3), np.eye(4)), dtype=np.uint8
    )
    with pytest.raises(CohortError, match=r"roi: .*small.nii' must have the shape \(9, 8, 7\).*got \(3, 3, 3\)"):
        preprocess_case(replace(make_case(), roi=tmp_path / "small.nii"), contract())


def test_a_roi_smaller_than_a_voxel_stays_and_its_volumes_are_told(make_case) -> None:
    roi = np.zeros(SHAPE)
    roi[4, 4, 4] = 1
    found = preprocess_case(make_case(roi=roi), contract(crop_to_roi=True, spacing=(4.0, 8.0, 12.0)))
    assert found.roi is not None
    assert found.roi.sum() == 1
    assert found.volumes["roi"] == (0.006, 0.384)
    assert preprocess_case(make_case(), contract()).volumes == {}


def test_padding_reflects_everything_before_normalization(make_case) -> None:
    case = make_case()
    padding = {"pad_before": (3, 2, 1), "pad_after": (3, 1, 2)}
    pairs = [(3, 3), (2, 1), (1, 2)]
    padded, plain = preprocess_case(case, contract(**padding)), preprocess_case(case, contract())
    np.testing.assert_array_equal(padded.labels, np.pad(plain.labels, pairs, "reflect"))
    np.testing.assert_array_equal(padded.roi, np.pad(plain.roi, pairs, "reflect"))
    np.testing.assert_array_equal(padded.weight_maps["hard"], np.pad(plain.weight_maps["hard"], pairs, "reflect"))
    image = np.pad(read_volume(case.channels["t1"]).array, pairs, "reflect").astype(np.float64)
    inside = image[padded.roi > 0]
    expected = (image - inside.mean()) / inside.std()
    np.testing.assert_allclose(padded.channels[0], expected, atol=1e-5)
    assert not np.allclose(padded.channels[0], np.pad(plain.channels[0], pairs, "reflect"), atol=1e-5)
    np.testing.assert_array_equal(restore_labels(padded.labels, padded.geometry)[0], read_volume(case.label_map).array)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the reference arrays lie beside the repository, not in it")
def test_padding_equals_the_reference() -> None:
    from dataclasses import replace

    from dmx.cohort.grid import NiftiGrid
    from dmx.preprocess.native import forward, plan_geometry

    with np.load(GOLDEN) as golden:
        image, expected = golden["pad/in"], golden["pad/out"]
    geometry = plan_geometry(NiftiGrid.from_affine(image.shape, np.eye(4)), "native", None)
    # The reference pads by margins that sum to its growth; the last axis only behind.
    geometry = replace(geometry, pad_before=(8, 3, 0), pad_after=(8, 4, 5))
    np.testing.assert_array_equal(forward(image, geometry, kind="spline"), expected)


@pytest.mark.skipif(not SHARED.exists(), reason="the real scans lie beside the repository, not in it")
def test_a_real_case_returns_exactly() -> None:
    from dmx.cohort.case import Case

    folder = SHARED / "brats2015" / "train" / "brats_2013_pat0005_1"
    channels = {"flair": folder / "Flair_subtrMeanDivStd.nii.gz"}
    case = Case("p", "p", channels, folder / "OTMultiClass.nii.gz", folder / "brainmask.nii.gz")
    prepared = preprocess_case(
        case, contract(channels=("flair",), classes=("b", "n", "e", "ne", "ec"), crop_to_roi=True)
    )
    assert prepared.channels[0].size < 240 * 240 * 155 / 2
    restored, _ = restore_labels(prepared.labels, prepared.geometry)
    np.testing.assert_array_equal(restored, read_volume(case.label_map).array)
