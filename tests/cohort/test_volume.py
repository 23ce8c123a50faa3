import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmx.cohort import volume as volume_module
from dmx.cohort.digest import file_sha256
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.volume import read_grid, read_header, read_series, read_volume, write_volume
from dmx.errors import CohortError

GEOMETRY = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y")
GEOMETRY += ("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")


def rotated() -> np.ndarray:
    affine = np.eye(4)
    angle = 0.3
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= (-0.9, 1.1, 2.5)
    affine[:3, 3] = (10, -20, 30)
    return affine


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "i8", "f4", "f8"])
def test_values_and_grid_are_those_that_nibabel_reads(
    write_scan: Callable[..., Path], kind: Any, name: str, dtype: str
) -> None:
    path = write_scan(name, np.arange(60).reshape(3, 4, 5).astype(dtype), rotated(), kind=kind)
    volume, expected = read_volume(path), nib.load(path)
    assert volume.array.dtype == np.dtype("f4" if dtype[0] == "f" else dtype)
    np.testing.assert_array_equal(volume.array, np.asarray(expected.dataobj))
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert volume.orientation == "".join(nib.aff2axcodes(expected.affine)) == "LAS"
    np.testing.assert_allclose(volume.spacing, (0.9, 1.1, 2.5))
    assert volume.spatial_shape == volume.header.shape == (3, 4, 5)


def test_a_file_of_the_other_byte_order_reads_the_same(tmp_path: Path) -> None:
    array = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.Nifti1Image(array, np.eye(4), header).to_filename(tmp_path / "big.nii")
    volume = read_volume(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == struct.pack(">i", 348)
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.dtype("=i2")


def test_scaling_is_applied_and_no_scaling_leaves_integers(write_scan: Callable[..., Path]) -> None:
    path = write_scan("scaled.nii")
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", 0.5, -1.0)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_volume(path).array.ravel(), np.arange(60) * 0.5 - 1)
    content[112:120] = struct.pack("<ff", 0.0, 7.0)
    path.write_bytes(content)
    assert read_volume(path).array.dtype == np.int16
    assert read_volume(path).array.max() == 59


def test_trailing_axes_of_length_one_go_and_longer_ones_are_refused(write_scan: Callable[..., Path]) -> None:
    assert read_volume(write_scan("one.nii", np.zeros((3, 4, 5, 1, 1), np.uint8))).array.shape == (3, 4, 5)
    four = write_scan("four.nii.gz", np.arange(120, dtype=np.int16).reshape(3, 4, 5, 2))
    with pytest.raises(CohortError, match=r"four.nii.gz' must be 3D, got 4 dimensions \(3, 4, 5, 2\)"):
        read_volume(four)
    array, grid = read_series(four)
    np.testing.assert_array_equal(array, np.arange(120).reshape(3, 4, 5, 2))
    assert grid.shape == (3, 4, 5)
    with pytest.raises(CohortError, match="must be 3D, got 2 dimensions"):
        read_grid(write_scan("two.nii", np.zeros((3, 4), np.uint8)))
    with pytest.raises(CohortError, match="must have 3 or 4 dimensions"):
        read_series(write_scan("five.nii", np.zeros((3, 4, 5, 2, 2), np.uint8)))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (3, 0), (0, 0)])
def test_what_was_read_is_written_back_with_the_same_geometry(
    tmp_path: Path, kind: Any, codes: tuple[int, int]
) -> None:
    image = kind(np.zeros((4, 5, 6), np.int16), rotated())
    image.set_qform(rotated(), code=codes[0])
    image.header.set_sform(rotated(), code=codes[1])
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    write_volume(tmp_path / "new" / "out.nii.gz", volume.array + 1, volume.header, dtype=np.uint8)
    before, after = nib.load(tmp_path / "in.nii"), nib.load(tmp_path / "new" / "out.nii.gz")
    assert type(after) is kind
    np.testing.assert_array_equal(before.affine, after.affine)
    for field in GEOMETRY:
        if field.startswith("srow") and not codes[1]:
            continue
        kept = slice(4) if field == "pixdim" else slice(None)
        np.testing.assert_array_equal(
            np.atleast_1d(before.header[field])[kept], np.atleast_1d(after.header[field])[kept]
        )
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(after.dataobj), 1)


def test_the_same_values_are_the_same_bytes_and_no_other_file_is_left(tmp_path: Path) -> None:
    grid = NiftiGrid.from_affine((2, 3, 4), rotated())
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, np.ones((2, 3, 4)), grid, dtype=np.float32)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    write_volume(tmp_path / "a.nii.gz", np.zeros((2, 3, 4)), grid, dtype=np.float32)
    assert (tmp_path / "a.nii.gz").read_bytes() != (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = NiftiGrid.from_affine((2, 3, 4), np.eye(4))
    write_volume(tmp_path / "a.nii", np.ones((2, 3, 4)), grid, dtype=np.uint8)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmx.cohort.files.os.fsync", full)
    with pytest.raises(CohortError, match=r"a.nii' cannot be written: No space left"):
        write_volume(tmp_path / "a.nii", np.zeros((2, 3, 4)), grid, dtype=np.uint8)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii"]
    assert read_volume(tmp_path / "a.nii").array.min() == 1


@pytest.mark.parametrize(
    ("array", "dtype", "problem"),
    [
        (np.full((2, 2, 2), 300), np.uint8, "must hold uint8 values, got others between 300 and 300"),
        (np.full((2, 2, 2), -1), np.uint8, "must hold uint8"),
        (np.full((2, 2, 2), 0.5), np.int16, "must hold int16"),
        (np.full((2, 2, 2), np.nan), np.int16, "must hold int16"),
        (np.full((2, 2, 2), 1e300), np.float32, "must hold float32 values, got one that is too large"),
        (np.zeros((2, 2, 3)), np.int16, "must have the shape of its grid"),
        (np.zeros((2, 2, 2)), np.complex64, "must be written as integers or floats"),
        (np.zeros((2, 2, 2)), np.float16, "must be written as integers or floats"),
    ],
)
def test_values_that_the_type_or_grid_cannot_hold_are_refused(
    tmp_path: Path, array: np.ndarray, dtype: Any, problem: str
) -> None:
    with pytest.raises(CohortError, match=problem):
        write_volume(tmp_path / "a.nii", array, NiftiGrid.from_affine((2, 2, 2), np.eye(4)), dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_grid_survives_json() -> None:
    grid = NiftiGrid.from_affine((2, 3, 4), rotated())
    again = NiftiGrid.from_dict(grid.as_dict())
    assert again.as_dict() == grid.as_dict()
    np.testing.assert_allclose(again.spacing, (0.9, 1.1, 2.5))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({40: struct.pack("<8h", 3, -3, 4, 5, 1, 1, 1, 1)}, "its sizes are"),
        ({40: struct.pack("<8h", 3, 0, 4, 5, 1, 1, 1, 1)}, "its sizes are"),
        ({40: struct.pack("<8h", 9, 3, 4, 5, 1, 1, 1, 1)}, "its sizes are"),
        ({40: struct.pack("<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1)}, "cut off"),
        ({70: struct.pack("<h", 32)}, "must hold integers or floats"),
        ({70: struct.pack("<h", 9999)}, "damaged NIfTI header"),
        ({108: struct.pack("<f", float("nan"))}, "its data would start at byte nan"),
        ({108: struct.pack("<f", -8.0)}, "its data would start at byte -8"),
        ({108: struct.pack("<f", 1e6)}, "cut off"),
        ({280: struct.pack("<4f", float("nan"), 0, 0, 0)}, "cannot be inverted"),
        ({280: struct.pack("<4f", 0, 0, 0, 0)}, "cannot be inverted"),
        ({252: struct.pack("<2h", 0, 0), 80: struct.pack("<f", 0.0)}, "voxel sizes above 0"),
        ({252: struct.pack("<2h", 1, 0), 256: struct.pack("<3f", 9, 9, 9)}, "damaged NIfTI header"),
        ({344: b"ni1\0"}, "not a single NIfTI file"),
        ({0: struct.pack("<i", 77)}, "not a NIfTI file"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_hostile_header_is_one_sentence_that_names_the_file(
    write_scan: Callable[..., Path], *, fields: dict[int, bytes], problem: str, packed: bool
) -> None:
    path = write_scan("scan.nii")
    content = bytearray(path.read_bytes())
    for offset, value in fields.items():
        content[offset : offset + len(value)] = value
    path = path.with_name("scan.nii.gz") if packed else path
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(CohortError, match=problem) as caught:
        read_volume(path)
    assert path.name in str(caught.value)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = nib.Nifti2Header()
    header.set_data_shape((2**13, 2**13, 2**13))
    header.set_data_dtype(np.uint8)
    header["magic"] = b"n+2\0\r\n\x1a\n"
    header["sform_code"], header["vox_offset"] = 2, 544
    for axis, field in enumerate(("srow_x", "srow_y", "srow_z")):
        header[field] = np.eye(4)[axis]
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=9) as file:
        file.write(header.binaryblock + b"\0" * 2**20)
    monkeypatch.setattr(volume_module, "_read_data", lambda *_: pytest.fail("data was read"))
    with pytest.raises(CohortError, match="cannot hold them"):
        read_volume(tmp_path / "bomb.nii.gz")
    monkeypatch.setattr("dmx.cohort.header._MAX_DEFLATE_RATIO", 2**40)
    with pytest.raises(CohortError, match="must have at most"):
        read_header(tmp_path / "bomb.nii.gz")


def test_damaged_files_are_named(tmp_path: Path, write_scan: Callable[..., Path]) -> None:
    content = write_scan("scan.nii.gz", np.random.default_rng(0).normal(size=(9, 9, 9))).read_bytes()
    flipped = bytearray(content)
    flipped[-6] ^= 255
    for name, damaged, problem in (
        ("cut.nii.gz", content[:-200], "cannot be read"),
        ("short.nii.gz", content[:20], "cannot be read"),
        ("sum.nii.gz", flipped, "cannot be read"),
        ("text.nii.gz", b"hello", "cannot be read"),
        ("empty.nii", b"", "not a NIfTI file"),
        ("cut.nii", gzip.decompress(content)[:-1], "cut off"),
        ("early.nii.gz", gzip.compress(gzip.decompress(content)[:-9]), "cut off"),
        ("scan.mha", content, "must be a NIfTI file"),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(CohortError, match=f"{name}' .*{problem}"):
            read_volume(tmp_path / name)
    with pytest.raises(CohortError, match="there is no such file"):
        read_volume(tmp_path / "absent.nii")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(CohortError, match="cannot be read: it is not a file"):
        read_grid(tmp_path / "folder.nii")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_damage_to_a_header_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)).to_bytes())
    for offset, value in changes:
        content[offset] = value
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    try:
        array = read_volume(path).array
    except CohortError as error:
        assert "scan.nii" in str(error)  # noqa: PT017 - the other outcome is right as well
    else:
        assert array.ndim == 3


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "zero.nii").symlink_to("/dev/zero")
    for name in ("pipe.nii", "zero.nii"):
        for function in (read_volume, file_sha256):
            with pytest.raises(CohortError, match=f"{name}' cannot be read: it is not a file"):
                function(tmp_path / name)
