import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dmx.cohort import image as image_module
from dmx.cohort.image import read_image, resize_image, write_image
from dmx.errors import CohortError

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = COLOR[..., 0]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save an image with Pillow, not with the code under test."""

    def save(image: Image.Image, name: str = "a.png", **options: Any) -> Path:
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def gray(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


def test_color_is_read_as_it_is(save: Callable[..., Path]) -> None:
    array = read_image(save(Image.fromarray(COLOR)))
    assert array.dtype == np.uint8
    assert np.array_equal(array, COLOR)


def test_gray_palette_and_one_bit_become_color(save: Callable[..., Path]) -> None:
    assert np.array_equal(read_image(save(Image.fromarray(GRAY))), gray(GRAY))
    palette = Image.fromarray(COLOR).quantize(256)
    assert np.array_equal(read_image(save(palette)), np.array(palette.convert("RGB")))
    bits = Image.fromarray(GRAY > 99)
    assert np.array_equal(read_image(save(bits)), gray(np.where(GRAY > 99, 255, 0)))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_become_eight_between_black_and_white(save: Callable[..., Path], name: str) -> None:
    values = np.array([[0, 128, 129, 32768, 65406, 65535]], np.uint16)
    assert read_image(save(Image.fromarray(values), name))[0, :, 0].tolist() == [0, 0, 1, 128, 254, 255]


def test_thirty_two_bits_have_no_black_and_white(save: Callable[..., Path]) -> None:
    for values in (GRAY.astype(np.float32), GRAY.astype(np.int32)):
        with pytest.raises(CohortError, match=r"a\.tif' has 32 bits per pixel, .*: save it with 8 or 16"):
            read_image(save(Image.fromarray(values), "a.tif"))


def test_transparent_pixels_lie_on_white(save: Callable[..., Path]) -> None:
    alpha = np.zeros((5, 7, 1), np.uint8)
    alpha[:2] = 255
    array = read_image(save(Image.fromarray(np.concatenate([COLOR, alpha], axis=2))))
    assert np.array_equal(array[:2], COLOR[:2])
    assert (array[2:] == 255).all()
    both = Image.fromarray(np.stack([GRAY, alpha[..., 0]], axis=2), "LA")
    assert np.array_equal(read_image(save(both))[0], gray(GRAY)[0])
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    assert read_image(save(indexed, transparency=0))[0, 0].tolist() == [255, 255, 255]


def test_cmyk_is_converted(save: Callable[..., Path]) -> None:
    plain = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = read_image(save(plain, "a.jpg"))[4, 4].astype(int)
    assert red[0] > 240
    assert red[1] < 15 > red[2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_turn_of_the_camera_is_made(save: Callable[..., Path], orientation: int) -> None:
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    array = {
        1: COLOR, 2: COLOR[:, ::-1], 3: COLOR[::-1, ::-1], 4: COLOR[::-1], 5: COLOR.swapaxes(0, 1),
        6: np.rot90(COLOR), 7: COLOR[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(COLOR, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(np.ascontiguousarray(array)), exif=exif)
    assert back[orientation]
    assert np.array_equal(read_image(path), COLOR)


def test_a_camera_file_of_two_pictures_gives_its_first(save: Callable[..., Path]) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    path = save(first, "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_image(path)[4, 4, 0] > 240


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_a_film_is_refused(save: Callable[..., Path], name: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    path = save(frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.raises(CohortError, match=r"must be one picture, got 3: save the one that is meant"):
        read_image(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.gif", "a.webp", "a.bmp"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_a_sentence(save: Callable[..., Path], name: str, share: float) -> None:
    path = save(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CohortError, match=rf"Image '.*{name}' is damaged"):
        read_image(path)


def test_what_is_no_image_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="there is no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(CohortError, match="it is not a file"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(CohortError, match="it is not a file"):
        read_image(tmp_path / "pipe.png")
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(CohortError, match="of a kind that is not read"):
        read_image(tmp_path / "a.png")


def test_an_image_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Image.fromarray(COLOR))
    monkeypatch.setattr(image_module, "_MAX_PIXELS", 34)
    with pytest.raises(CohortError, match="is too large: at most 34 pixels"):
        read_image(path)
    monkeypatch.setattr(image_module, "_MAX_PIXELS", 35)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 18)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(path), COLOR)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(CohortError, match="is too large"):
        read_image(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]))
def test_damaged_bytes_give_an_image_or_a_sentence(tmp_path: Path, data: st.DataObject, name: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(COLOR).save(stream, name)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a").write_bytes(content)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            outcome: object = read_image(tmp_path / "a").shape[2]
        except CohortError as error:
            outcome = str(tmp_path / "a") in str(error)
    assert outcome in (3, True)
    assert seen == []


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "deep/a.png", COLOR)
    assert np.array_equal(read_image(tmp_path / "deep/a.png"), COLOR)
    write_image(tmp_path / "b.png", GRAY)
    assert np.array_equal(read_image(tmp_path / "b.png"), gray(GRAY))
    with pytest.raises(CohortError, match="must be written from uint8"):
        write_image(tmp_path / "c.png", COLOR.astype(np.float32))
    with pytest.raises(CohortError, match="cannot be written"):
        write_image(tmp_path / "b.png/c.png", COLOR)


def test_scaling_down_averages_what_a_pixel_covers() -> None:
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resize_image(stripes, (2, 8))
    assert small.shape == (2, 8, 3)
    assert np.abs(small.astype(int) - 100).max() <= 4
    assert resize_image(GRAY, (10, 14), interpolation="bicubic").shape == (10, 14)
    assert not np.array_equal(resize_image(COLOR, (10, 14), interpolation="bicubic"), resize_image(COLOR, (10, 14)))
