"""Whole volumes: what comes when, how they are changed, and what other sizes in a batch do."""

import pytest
import torch

from dmx.config.augmentation import (
    AffineSection,
    AugmentationSection,
    BlurSection,
    ElasticSection,
    GammaSection,
    IntensitySection,
    NoiseSection,
    ReflectSection,
    Rotate90Section,
)
from dmx.errors import ConfigError
from dmx.sampling.augment import Augmenter
from dmx.sampling.order import DrawnOrder
from dmx.sampling.prefetch import Prefetcher
from dmx.sampling.source import DeviceSource, MemoryMappedSource
from dmx.sampling.volume_augment import VolumeAugmenter
from dmx.sampling.volumes import VolumeSampler, VolumesInOrder

ALL = AugmentationSection(
    affine=AffineSection(probability=0.7, shift=2.0),
    elastic=ElasticSection(probability=0.7),
    reflect=ReflectSection(probability=(0.5, 0.0, 0.5)),
    intensity=IntensitySection(probability=0.7),
    gamma=GammaSection(probability=0.7),
    noise=NoiseSection(probability=0.7),
    blur=BlurSection(probability=0.7),
)
SHAPES = ((6, 8, 7), (6, 8, 7), (7, 8, 6), (6, 9, 7), (5, 8, 7))
CPU = torch.device("cpu")


def moved(*shift: float) -> AugmentationSection:
    return AugmentationSection(affine=AffineSection(probability=1.0, rotation=0.0, scale=0.0, shift=shift))


@pytest.fixture
def source(make_case, make_source) -> MemoryMappedSource:
    return make_source([make_case(f"v{n}", shape=shape, lesion=False, seed=n) for n, shape in enumerate(SHAPES)])


def make_sampler(source, augmentation=ALL, *, batch_size: int = 2, seed: int = 3, steps: int | None = None):
    target = torch.arange(len(source)) % 2
    ids = [source[index].name for index in range(len(source))]
    order = DrawnOrder(target, ids, ("a", "b"), batch_size=batch_size, steps_per_epoch=steps, seed=seed)
    return VolumeSampler(source, target, order, augmentation=augmentation, device=CPU)


def volumes_of(sampler: VolumeSampler, epoch: int, *, count: int = 5) -> dict[str, torch.Tensor]:
    """Return what a sampler of single volumes gives in an epoch."""
    batches = [sampler.batch(epoch, step) for step in range(count)]
    return {batch.cases[0]: batch.inputs[0][0] for batch in batches}


def test_changes_depend_on_seed_and_place_alone(source) -> None:
    sampler = make_sampler(source)
    keys = [(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0)]
    wanted = [sampler.batch(*key).inputs[0] for key in keys]
    for workers in (0, 2):
        fresh = make_sampler(source)
        with Prefetcher(lambda key, s=fresh: s.batch(*key), following=fresh.following, workers=workers) as ahead:
            for key, batch in zip(keys, wanted, strict=True):
                assert torch.equal(ahead.get(key).inputs[0], batch), key
    # A training that goes on in the second epoch asks for nothing before it.
    assert torch.equal(make_sampler(source).batch(1, 0).inputs[0], wanted[3])
    # Alone or beside another one, a volume of the same place looks the same.
    alone = volumes_of(make_sampler(source, batch_size=1), 0)
    together = sampler.batch(0, 0)
    for name, volume in zip(together.cases, together.inputs[0], strict=True):
        _, i, j, k = alone[name].shape
        starts = [(n - m) // 2 for n, m in zip(volume.shape[1:], (i, j, k), strict=True)]
        a, b, c = starts
        assert torch.equal(volume[:, a : a + i, b : b + j, c : c + k], alone[name])
    other = volumes_of(make_sampler(source, batch_size=1, seed=4), 0)
    assert any(not torch.equal(alone[name], other[name]) for name in alone)


def test_each_epoch_changes_a_volume_anew_and_without_settings_nothing_changes(source) -> None:
    sampler = make_sampler(source, batch_size=1)
    first, second = volumes_of(sampler, 0), volumes_of(sampler, 1)
    plain = volumes_of(make_sampler(source, AugmentationSection(), batch_size=1), 0)
    for index in range(len(source)):
        case = source[index]
        assert not torch.equal(first[case.name], second[case.name])
        assert first[case.name].shape == case.channels_CIJK.shape
        assert torch.equal(plain[case.name], case.channels_CIJK)
    assert sum(torch.equal(first[name], plain[name]) for name in plain) < 2


def test_a_source_keeps_its_volumes_as_they_are(source) -> None:
    kept = DeviceSource(source, device="cpu", memory_gb=1.0)
    before = [kept[index].channels_CIJK.clone() for index in range(len(kept))]
    volumes_of(make_sampler(kept, batch_size=1), 0)
    assert all(torch.equal(kept[index].channels_CIJK, old) for index, old in enumerate(before))


def test_volumes_of_a_batch_get_the_size_of_the_largest(source) -> None:
    batches = list(VolumesInOrder(source, torch.arange(5), batch_size=5, device=CPU))
    assert len(batches) == 1
    (x_NCIJK,) = batches[0].inputs
    assert x_NCIJK.shape == (5, 2, 7, 9, 7)
    last = source[4].channels_CIJK
    assert torch.equal(x_NCIJK[4, :, 1:6, :8], last)
    assert torch.equal(x_NCIJK[4, :, 0, :8], last[:, 0])
    assert batches[0].target.tolist() == [0, 1, 2, 3, 4]
    assert batches[0].cases == ("v0", "v1", "v2", "v3", "v4")


def test_a_shift_moves_what_is_shown() -> None:
    point = torch.zeros(1, 11, 11, 11)
    point[0, 5, 5, 5] = 1.0
    still = VolumeAugmenter(moved(0.0, 0.0, 0.0)).change(point, 1)
    assert torch.equal(still, point)
    places = []
    for key in range(30):
        shown = VolumeAugmenter(moved(3.0, 0.0, 1.0)).change(point, key)[0]
        assert shown.sum() == pytest.approx(1.0, abs=1e-4)
        grid = torch.meshgrid(*(torch.arange(11.0) - 5 for _ in range(3)), indexing="ij")
        places.append([float((shown * axis).sum()) for axis in grid])
    i, j, k = zip(*places, strict=True)
    assert max(map(abs, j)) < 1e-4
    assert max(map(abs, k)) <= 1.0 + 1e-4
    assert 2.0 < max(i) <= 3.0
    assert -3.0 <= min(i) < -2.0


def test_mirrors_and_turns_move_voxels_and_invent_none() -> None:
    volume = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    mirrored = VolumeAugmenter(AugmentationSection(reflect=ReflectSection(probability=(0.0, 1.0, 0.0))))
    assert torch.equal(mirrored.change(volume, 1), volume.flip(2))
    # Two sides that differ may turn: a whole volume has no size that must be kept.
    turned = VolumeAugmenter(AugmentationSection(rotate90=Rotate90Section(xy=(0.0, 1.0, 0.0, 0.0))))
    assert torch.equal(turned.change(volume, 1), torch.rot90(volume, 1, (1, 2)))
    with pytest.raises(ConfigError, match=r"augmentation\.rotate90\.xz must hold numbers of at least 0"):
        VolumeAugmenter(AugmentationSection(rotate90=Rotate90Section(xz=(0.0, -1.0, 0.0, 0.0))))


def test_sections_know_whether_they_change_anything() -> None:
    assert ALL.changes
    assert AugmentationSection(rotate90=Rotate90Section(yz=(0.0, 0.0, 1.0, 0.0))).changes
    assert AugmentationSection(reflect=ReflectSection(probability=(0.0, 0.1, 0.0))).changes
    assert not AugmentationSection().changes
    assert not AugmentationSection(affine=AffineSection(rotation=45.0), noise=NoiseSection(std=3.0)).changes


def test_a_volume_that_is_shown_larger_reads_its_middle() -> None:
    ramp = torch.arange(9.0).reshape(1, 9, 1, 1).expand(1, 9, 9, 9)
    section = AugmentationSection(affine=AffineSection(probability=1.0, rotation=0.0, scale=(0.5, 0.0, 0.0)))
    widths = []
    for key in range(20):
        shown = VolumeAugmenter(section).change(ramp, key)
        assert shown[0, 4, 4, 4] == pytest.approx(4.0)
        widths.append(float(shown[0, 6, 0, 0] - shown[0, 2, 0, 0]))
    assert min(widths) < 3.5
    assert max(widths) > 5.0


def test_a_segment_that_is_shifted_takes_its_labels_along(make_plan) -> None:
    plan = make_plan()
    labels = (torch.arange(20 * 18 * 16).reshape(20, 18, 16) % 7 == 0).to(torch.uint8)
    moves = set()
    for key in range(12):
        augmenter = Augmenter(moved(0.0, 2.0, 0.0), plan)
        (image, *_), target = augmenter.cut(labels[None].float(), labels, (10, 9, 8), key=key)
        block = image[0, 2:-2, 2:-2, 2:-2]
        plain = Augmenter(AugmentationSection(), plan).cut(labels[None].float(), labels, (10, 9, 8), key=key)[1]
        # Where the image is nearer to one label than to the other, the label map says that one.
        sure = (block - 0.5).abs() > 0.01
        assert torch.equal((block > 0.5)[sure], (target == 1)[sure])
        moves.add(torch.equal(target, plain))
    assert False in moves
