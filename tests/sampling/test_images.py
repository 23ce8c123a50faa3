from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmx import seeding
from dmx.config.images import ImageAugmentationSection
from dmx.errors import CohortError, ConfigError
from dmx.preprocess.image_contract import ImageContract
from dmx.sampling.batch import Batch
from dmx.sampling.image_augment import ImageAugmenter, draw_box
from dmx.sampling.image_source import ImageSource
from dmx.sampling.images import ImageSampler, ImagesInOrder
from dmx.sampling.prefetch import Prefetcher

CONTRACT = ImageContract(resize=(12, 12), crop=(8, 8), classes=("a", "b", "c"))
NOTHING = ImageAugmentationSection()
ALL = ImageAugmentationSection(crop="resized", flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4)


def make_source(count: int = 11, *, targets: torch.Tensor | None = None) -> ImageSource:
    """Noise of several sizes; two thirds of the images belong to class 0."""
    sizes = tuple((12, 12 + n % 3) if n % 2 else (14, 12) for n in range(count))
    numbers = [3 * height * width for height, width in sizes]
    packed = (seeding.uniform(1, (sum(numbers),)) * 256).to(torch.uint8)
    labels = torch.tensor([0 if n % 3 else 1 + n % 2 for n in range(count)])
    offsets = tuple(sum(numbers[:n]) for n in range(count))
    return ImageSource(
        tuple(f"i{n}" for n in range(count)), packed, offsets, sizes, labels if targets is None else targets
    )


def make_sampler(section: ImageAugmentationSection = NOTHING, **changes: object) -> ImageSampler:
    options = {"source": make_source(), "contract": CONTRACT, "batch_size": 4, "seed": 0, "device": "cpu"} | changes
    source, contract = options.pop("source"), options.pop("contract")
    return ImageSampler(source, contract, section, **options)


def epoch_of(sampler: ImageSampler, epoch: int = 0, parts: int = 1) -> list[Batch]:
    return [sampler.batch(epoch, s, p) for s in range(sampler.steps_per_epoch) for p in range(parts)]


def names(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.cases]


def pixels(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.inputs[0] for batch in batches])


def test_a_batch_holds_inputs_labels_and_names() -> None:
    sampler = make_sampler(ALL)
    batch = sampler.batch(0, 0)
    assert (batch.inputs[0].shape, batch.inputs[0].dtype) == ((4, 3, 8, 8), torch.float32)
    assert (batch.target.shape, batch.target.dtype) == ((4,), torch.int64)
    source = make_source()
    assert batch.target.tolist() == [int(source.target[int(name[1:])]) for name in batch.cases]
    numbers = torch.arange(22, dtype=torch.float32).view(11, 2)
    regression = make_sampler(source=make_source(targets=numbers), contract=replace(CONTRACT, targets=("x", "y")))
    batch = regression.batch(0, 2)
    assert torch.equal(batch.target, numbers[[int(name[1:]) for name in batch.cases]])


def test_an_epoch_is_each_image_once_and_the_next_another_order() -> None:
    sampler = make_sampler()
    epochs = [names(epoch_of(sampler, epoch)) for epoch in range(4)]
    for order in epochs:
        assert sorted(order) == sorted(make_source().ids)
    assert len({tuple(order) for order in epochs}) == 4
    assert [len(batch.cases) for batch in epoch_of(sampler)] == [4, 4, 3]
    assert names(epoch_of(make_sampler(seed=1))) != epochs[0]
    assert names(epoch_of(make_sampler(purpose="other"))) != epochs[0]


@pytest.mark.parametrize("section", [ALL, replace(ALL, crop="random")])
def test_neither_batches_nor_order_nor_workers_change_an_image(section: ImageAugmentationSection) -> None:
    whole = make_sampler(section, batch_size=11).batch(1, 0)
    for size in (1, 3, 4):
        parts = epoch_of(make_sampler(section, batch_size=size), 1)
        assert names(parts) == list(whole.cases)
        assert torch.equal(pixels(parts), whole.inputs[0])
    sampler = make_sampler(section)
    wanted = [sampler.batch(0, 2), sampler.batch(1, 0), sampler.batch(0, 0)]
    with Prefetcher(lambda k: sampler.batch(*k), following=sampler.following, workers=2) as ahead:
        for batch, key in zip(wanted, [(0, 2, 0), (1, 0, 0), (0, 0, 0)], strict=True):
            assert torch.equal(ahead.get(key).inputs[0], batch.inputs[0])
    assert not torch.equal(pixels(epoch_of(make_sampler(section, seed=1), 1)), whole.inputs[0])


def test_a_fixed_number_of_steps_goes_on_where_the_last_epoch_ended() -> None:
    sampler = make_sampler(steps_per_epoch=2)
    drawn = [name for epoch in range(11) for name in names(epoch_of(sampler, epoch))]
    assert sampler.steps_per_epoch == 2
    assert set(Counter(drawn).values()) == {8}
    assert len(set(drawn[:11])) == 11
    assert make_sampler(steps_per_epoch=2).batch(3, 1).cases == tuple(drawn[28:32])


def test_batches_of_a_smaller_last_step_share_its_images() -> None:
    sampler = make_sampler(batch_size=2, accumulate=2)
    batches = epoch_of(sampler, parts=2)
    assert [len(batch.cases) for batch in batches] == [2, 2, 2, 2, 1, 2]
    assert names(batches) == names(epoch_of(make_sampler()))
    assert [sampler.following(key) for key in [(0, 0, 0), (0, 0, 1), (0, 2, 1)]] == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]
    for step, part in ((3, 0), (0, 2), (-1, 0)):
        with pytest.raises(ValueError, match="step and part must be below 3 and 2"):
            sampler.batch(0, step, part)


def test_images_too_few_for_a_last_step_come_first_in_the_next_epoch() -> None:
    sampler = make_sampler(batch_size=1, accumulate=4)
    assert sampler.steps_per_epoch == 2
    drawn = [names(epoch_of(sampler, epoch, parts=4)) for epoch in range(11)]
    assert {len(epoch) for epoch in drawn} == {8}
    stream = [name for epoch in drawn for name in epoch]
    assert stream[:11] == names(epoch_of(make_sampler()))
    assert set(Counter(stream).values()) == {8}
    with pytest.raises(ConfigError, match="must be at most the number of training cases, 11, got 12"):
        make_sampler(batch_size=1, accumulate=12)
    assert len(epoch_of(make_sampler(batch_size=1, accumulate=12, steps_per_epoch=1), parts=12)) == 12


def test_a_balanced_stream_gives_classes_and_their_images_equally_often() -> None:
    sampler = make_sampler(balanced=True, batch_size=3, steps_per_epoch=14)
    batches = epoch_of(sampler)
    for batch in batches:
        assert sorted(batch.target.tolist()) == [0, 1, 2]
    counts = Counter(names(batches))
    labels = make_source().target.tolist()
    for label in range(3):
        drawn = [counts[f"i{n}"] for n, other in enumerate(labels) if other == label]
        assert sum(drawn) == 14
        assert max(drawn) - min(drawn) <= 1
    assert len({tuple(batch.target.tolist()) for batch in batches}) > 1
    assert len(Counter(names(epoch_of(make_sampler())))) == 11, "unbalanced, each image comes once"


def test_what_cannot_be_drawn_from_is_a_sentence() -> None:
    source = make_source()
    unknown = source.target.clone()
    unknown[7] = -1
    with pytest.raises(CohortError, match="'i7' has no label, so it cannot be trained with"):
        make_sampler(source=replace(source, target=unknown))
    numbers = torch.ones(11, 2)
    numbers[3, 1] = torch.nan
    with pytest.raises(CohortError, match="'i3' has no number to predict"):
        make_sampler(source=replace(source, target=numbers))
    with pytest.raises(CohortError, match="There is nothing to train with"):
        make_sampler(source=ImageSource((), source.packed, (), (), source.target[:0]))
    with pytest.raises(CohortError, match="Class 'd' has no cases to train with, so"):
        make_sampler(contract=replace(CONTRACT, classes=("a", "b", "c", "d")), balanced=True)
    with pytest.raises(ConfigError, match="a regression has no classes"):
        make_sampler(source=replace(source, target=torch.ones(11, 1)), balanced=True)


def test_prediction_takes_the_middle_of_all_images_in_order() -> None:
    source = replace(make_source(), target=torch.full((11,), -1))
    images = ImagesInOrder(source, CONTRACT, batch_size=4, device="cpu")
    batches = list(images)
    assert (len(images), [len(batch.cases) for batch in batches]) == (3, [4, 4, 3])
    assert names(batches) == list(source.ids)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CONTRACT.mean, CONTRACT.std))
    expected = (source[0][:, 3:11, 2:10].float() / 255 - mean) / std
    assert torch.equal(batches[0].inputs[0][0], expected)
    assert torch.equal(pixels(list(ImagesInOrder(source, CONTRACT, batch_size=1, device="cpu"))), pixels(batches))
    turned = ImagesInOrder(source, replace(CONTRACT, color="BGR"), batch_size=4, device="cpu").batch(0)
    assert torch.equal(turned.inputs[0].flip(1), batches[0].inputs[0])
    with pytest.raises(ValueError, match="number must be below 3"):
        images.batch(3)


def test_without_changes_training_sees_what_prediction_sees() -> None:
    in_order = dict(
        zip(
            make_source().ids,
            pixels(list(ImagesInOrder(make_source(), CONTRACT, batch_size=4, device="cpu"))),
            strict=True,
        )
    )
    assert not NOTHING.changes
    for section, same in ((NOTHING, True), (ALL, False)):
        batch = make_sampler(section).batch(0, 0)
        equal = [torch.equal(x, in_order[name]) for x, name in zip(batch.inputs[0], batch.cases, strict=True)]
        assert all(equal) if same else not any(equal)
        assert section.changes is not same


sides = st.integers(8, 60)


@settings(max_examples=200, deadline=None)
@given(size=st.tuples(sides, sides), key=st.integers(-(2**63), 2**63 - 1), crop=st.sampled_from(["random", "resized"]))
def test_a_box_lies_in_the_image_and_keeps_area_and_ratio(size: tuple[int, int], key: int, crop: str) -> None:
    section = ImageAugmentationSection(crop=crop, area=(0.2, 0.9), ratio=(0.5, 2.0))
    top, left, height, width = draw_box(section, CONTRACT, size, key)
    assert 0 <= top <= size[0] - height
    assert 0 <= left <= size[1] - width
    if crop == "random":
        assert (height, width) == (8, 8)
    else:
        # Sides are rounded to whole pixels.
        assert 0.5 * 0.8 <= width / height <= 2.0 * 1.25
        assert 0.2 * 0.7 <= height * width / (size[0] * size[1]) <= 1.0


def test_boxes_reach_everywhere_and_every_size() -> None:
    boxes = [
        draw_box(ImageAugmentationSection(crop="resized"), CONTRACT, (40, 40), seeding.derive(0, n)) for n in range(300)
    ]
    areas = [height * width / 1600 for _, _, height, width in boxes]
    assert min(areas) < 0.15
    assert max(areas) > 0.9
    assert min(top for top, *_ in boxes) == 0
    assert max(top + height for top, _, height, _ in boxes) == 40
    corners = {
        draw_box(ImageAugmentationSection(crop="random"), CONTRACT, (10, 9), seeding.derive(0, n))[:2]
        for n in range(99)
    }
    assert corners == {(top, left) for top in range(3) for left in range(2)}


def test_an_image_that_no_draw_fits_gives_the_largest_allowed_box() -> None:
    section = ImageAugmentationSection(crop="resized", area=(1.0, 1.0), ratio=(0.75, 4 / 3))
    assert draw_box(section, CONTRACT, (10, 100), 0) == (0, 43, 10, 13)
    assert draw_box(section, CONTRACT, (100, 10), 0) == (43, 0, 13, 10)


@pytest.fixture
def change() -> Callable[..., torch.Tensor]:
    """Return an image as changed by a section, back in 0..255."""

    def change(image: torch.Tensor, key: int = 0, **settings: object) -> torch.Tensor:
        contract = replace(CONTRACT, mean=(0.0,) * 3, std=(1.0,) * 3)
        section = ImageAugmentationSection(**settings)
        return ImageAugmenter(section, contract, device="cpu").input(image, key) * 255.0

    return change


def test_a_flip_exchanges_left_and_right_as_often_as_asked(change: Callable[..., torch.Tensor]) -> None:
    image = make_source()[1][:, :8, :8]
    plain = change(image)
    assert torch.equal(change(image, flip=1.0), plain.flip(-1))
    flipped = [not torch.equal(change(image, key, flip=0.3), plain) for key in range(200)]
    assert 35 < sum(flipped) < 85


def test_colors_change_as_their_names_say(change: Callable[..., torch.Tensor]) -> None:
    image = (seeding.uniform(3, (3, 8, 8)) * 60 + 90).to(torch.uint8)
    plain = change(image)
    gray = (plain * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    for key in range(5):
        ratio = change(image, key, brightness=0.5) / plain
        assert ratio.std() < 1e-4
        assert 0.5 <= ratio.mean() <= 1.5
        contrast = (change(image, key, contrast=0.5) - gray.mean()) / (plain - gray.mean())
        assert torch.allclose(contrast, contrast.median().expand_as(contrast), atol=0.05)
        saturated = change(image, key, saturation=0.5)
        assert torch.allclose(
            (saturated * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0), gray[0], atol=1e-2
        )
        assert not torch.allclose(saturated, plain, atol=0.1)
    bright = change(torch.full((3, 8, 8), 250, dtype=torch.uint8), brightness=1.0, contrast=1.0, saturation=1.0)
    assert 0.0 <= bright.min() <= bright.max() <= 255.0001


def test_a_scaled_box_is_averaged_and_stays_within_the_colors(change: Callable[..., torch.Tensor]) -> None:
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    full = {"crop": "resized", "area": (1.0, 1.0), "ratio": (1.0, 1.0)}
    assert (change(stripes, **full) - 100).abs().max() < 5
    steps = torch.zeros(3, 12, 12, dtype=torch.uint8)
    steps[:, :, 6:] = 255
    contract = replace(CONTRACT, interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3)
    cubic = ImageAugmenter(ImageAugmentationSection(**full), contract, device="cpu").input(steps, 0)
    assert 0.0 <= cubic.min() <= cubic.max() <= 1.0


def test_a_source_stays_where_it_is_when_the_memory_is_short() -> None:
    source = make_source()
    assert source.on("cpu", memory_gb=1.0) is source
    assert source.on("meta", memory_gb=source.packed.numel() / 1e9).packed.device.type == "meta"
    assert source.on("meta", memory_gb=(source.packed.numel() - 1) / 1e9) is source


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"flip": 1.1}, "flip must be between 0.0 and 1.0"),
        ({"contrast": -0.1}, "contrast must be between"),
        ({"area": (0.5, 0.4)}, "area must be a lower and a higher number"),
        ({"area": (0.0, 0.4)}, "area must be above 0"),
        ({"area": (0.1, 1.4)}, "area must be between"),
        ({"ratio": (2.0, 1.0)}, "ratio must be a lower"),
    ],
)
def test_settings_are_checked(values: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ImageAugmentationSection(**values)
