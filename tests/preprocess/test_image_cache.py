from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.image import write_image
from dmx.cohort.stimuli import Stimulus
from dmx.errors import CohortError, DmxError
from dmx.preprocess import folder as folder_module
from dmx.preprocess import image_cache as cache_module
from dmx.preprocess.image_cache import ImageCache
from dmx.preprocess.image_contract import ImageContract
from dmx.preprocess.image_pipeline import preprocess_image

SMALL = ImageContract(resize=(12, 12), crop=(10, 10))


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache")


@pytest.fixture
def make(tmp_path: Path, rng: np.random.Generator) -> Callable[..., Stimulus]:
    def make(name: str, shape: tuple[int, int] = (20, 30)) -> Stimulus:
        path = tmp_path / f"{name}.png"
        write_image(path, rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        return Stimulus(f"{name}.png", path, place=f"Stimuli 'a.stim.csv', row {len(name)}")

    return make


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are decoded from here on."""
    names: list[str] = []

    def counted(path: Path, contract: ImageContract) -> np.ndarray:
        names.append(Path(path).name)
        return preprocess_image(path, contract)

    monkeypatch.setattr(cache_module, "preprocess_image", counted)
    return names


def test_an_image_is_scaled_and_not_cut(make: Callable[..., Stimulus]) -> None:
    image = preprocess_image(make("a").path, SMALL)
    assert (image.shape, image.dtype) == ((3, 12, 18), np.uint8)
    same = preprocess_image(make("b", (12, 15)).path, SMALL)
    assert same.shape == (3, 12, 15)
    assert preprocess_image(make("c").path, ImageContract(rule="exact", resize=(7, 9), crop=(7, 9))).shape == (3, 7, 9)


def test_a_strip_is_refused_where_its_shape_would_stay(make: Callable[..., Stimulus]) -> None:
    strip = make("a", (1, 21)).path
    with pytest.raises(CohortError, match="of 1 x 21 pixels is more than 20 times longer than wide"):
        preprocess_image(strip, SMALL)
    assert preprocess_image(strip, replace(SMALL, rule="exact")).shape == (3, 12, 12)


def test_images_come_back_in_the_order_of_the_stimuli(cache: ImageCache, make: Callable[..., Stimulus]) -> None:
    stimuli = [make("a"), make("b", (40, 20)), make("c")]
    images = cache.prepare([*stimuli, stimuli[0]], SMALL)
    assert len(images) == 4
    for position, stimulus in enumerate(images.stimuli):
        expected = preprocess_image(stimulus.path, SMALL)
        assert np.array_equal(images[position], expected)
        offset, size = images.offsets[position], images.sizes[position]
        assert np.array_equal(images.packed[offset : offset + expected.size].reshape(3, *size), expected)
    assert images.packed.size == sum(3 * h * w for h, w in images.sizes[:3]), "repeated images are kept once"


def test_each_image_is_decoded_once(cache: ImageCache, make: Callable[..., Stimulus], decoded: list[str]) -> None:
    stimuli = [make("a"), make("b")]
    first = cache.prepare(stimuli, SMALL)
    assert sorted(decoded) == ["a.png", "b.png"]
    other = replace(SMALL, crop=(5, 5), mean=(0.0, 0.0, 0.0), classes=("x", "y"))
    again = cache.prepare(stimuli[::-1], other)
    assert len(decoded) == 2
    assert again.folder == first.folder
    assert np.array_equal(again[0], first[1])
    cache.prepare(stimuli, replace(SMALL, resize=(13, 13)))
    assert len(decoded) == 4


def test_a_changed_image_is_noticed(cache: ImageCache, make: Callable[..., Stimulus]) -> None:
    stimuli = [make("a"), make("b")]
    before = np.array(cache.prepare(stimuli, SMALL)[0])
    make("a")
    after = cache.prepare(stimuli, SMALL)
    assert not np.array_equal(before, after[0])
    assert np.array_equal(after[0], preprocess_image(stimuli[0].path, SMALL))


def test_a_damaged_image_is_named_with_file_and_row(cache: ImageCache, make: Callable[..., Stimulus]) -> None:
    stimuli = [make("a"), make("bb")]
    content = stimuli[1].path.read_bytes()
    stimuli[1].path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CohortError, match=r"Stimuli 'a\.stim\.csv', row 2: Image '.*bb\.png' is damaged or cut off"):
        cache.prepare(stimuli, SMALL)
    assert list(cache.folder.iterdir()) == []
    stimuli[1].path.unlink()
    with pytest.raises(CohortError, match=r"row 2: '.*bb\.png' cannot be read: there is no such file"):
        cache.prepare(stimuli, SMALL)
    with pytest.raises(CohortError, match=r"^'.*bb\.png' cannot be read"):
        cache.prepare([replace(stimuli[1], place="")], SMALL)
    with pytest.raises(CohortError, match="There are no images to prepare"):
        cache.prepare([], SMALL)


def test_an_entry_is_complete_or_absent(
    cache: ImageCache, make: Callable[..., Stimulus], monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    stimuli = [make("a"), make("b")]

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "publish", fail)
    with pytest.raises(DmxError, match=r"cannot be written: No space left on device.*Free some space"):
        cache.prepare(stimuli, SMALL)
    assert list(cache.folder.iterdir()) == []
    monkeypatch.undo()
    images = cache.prepare(stimuli, SMALL)
    with (images.folder / "arrays.bin").open("r+b") as file:
        file.truncate(100)
    assert np.array_equal(cache.prepare(stimuli, SMALL)[0], preprocess_image(stimuli[0].path, SMALL))


def test_progress_counts_and_threads_change_nothing(cache: ImageCache, make: Callable[..., Stimulus]) -> None:
    stimuli = [make(f"image{n}") for n in range(20)]
    seen: list[tuple[int, int]] = []
    many = cache.prepare(stimuli, SMALL, threads=2, progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(n + 1, 20) for n in range(20)]
    alone = ImageCache(cache.folder.parent / "other").prepare(stimuli, SMALL, threads=1)
    assert many.folder.name == alone.folder.name
    assert np.array_equal(many.packed, alone.packed)
    cache.prepare(stimuli, SMALL, progress=lambda done, total, _: seen.append((done, total)))
    assert seen[20:] == [(20, 20)]
