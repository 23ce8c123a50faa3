from collections import Counter
from dataclasses import replace

import pytest
import torch

from dmx.config.augmentation import (
    AffineSection,
    AugmentationSection,
    BiasFieldSection,
    BlurSection,
    DeepMedicAffine,
    DeepMedicHistDist,
    DeepMedicSection,
    ElasticSection,
    GammaSection,
    IntensitySection,
    NoiseSection,
    ReflectSection,
    Rotate90Section,
)
from dmx.config.sections import SamplingSection
from dmx.errors import CohortError, ConfigError
from dmx.sampling.prefetch import Prefetcher
from dmx.sampling.source import DeviceSource

ALL = AugmentationSection(
    affine=AffineSection(probability=0.5),
    elastic=ElasticSection(probability=0.5),
    reflect=ReflectSection(probability=(0.5, 0.5, 0.5)),
    rotate90=Rotate90Section(xy=(1.0, 1.0, 1.0, 1.0)),
    intensity=IntensitySection(probability=0.5),
    gamma=GammaSection(probability=0.5),
    noise=NoiseSection(probability=0.5),
    bias_field=BiasFieldSection(probability=0.5),
    blur=BlurSection(probability=0.5),
)


def equal(one, other):
    return (
        all(map(torch.equal, one.inputs, other.inputs))
        and torch.equal(one.target, other.target)
        and one.cases == other.cases
    )


def test_a_batch_has_one_tensor_per_pathway(make_sampler):
    batch = make_sampler().batch(0, 0)
    assert [tuple(x.shape) for x in batch.inputs] == [(4, 2, 9, 9, 9), (4, 2, 7, 7, 7)]
    assert batch.target.shape == (4, 5, 5, 5)
    assert batch.target.dtype == torch.int64
    assert len(batch.cases) == 4


def test_the_target_is_the_block_inside_of_the_segment(make_case, make_source, make_sampler):
    case = make_case()
    coded = torch.arange(20 * 18 * 16).reshape(20, 18, 16)
    case = replace(case, channels_CIJK=coded[None].float(), labels_IJK=coded)
    batch = make_sampler(make_source([case]), compatibility="deepmedic").batch(0, 0)
    assert torch.equal(batch.target, batch.inputs[0][:, 0, 2:7, 2:7, 2:7].long())


@pytest.mark.parametrize("augmentation", [AugmentationSection(), ALL])
def test_a_batch_is_a_function_of_seed_epoch_step_and_part(make_sampler, augmentation):
    keys = [(epoch, step, part) for epoch in range(2) for step in range(2) for part in range(2)]
    first, second = (make_sampler(augmentation=augmentation, accumulate=2) for _ in range(2))
    batches = {key: first.batch(*key) for key in keys}
    assert all(equal(second.batch(*key), batches[key]) for key in reversed(keys))
    assert not any(equal(batches[a], batches[b]) for a in keys for b in keys if a < b)
    assert not equal(make_sampler(seed=8).batch(0, 0), make_sampler().batch(0, 0))
    assert not equal(make_sampler(purpose="validation").batch(0, 0), make_sampler().batch(0, 0))


def test_a_step_in_two_parts_has_the_segments_of_one(make_sampler):
    whole = make_sampler(augmentation=ALL).batch(1, 2)
    sampler = make_sampler(augmentation=ALL, batch_size=2, accumulate=2)
    parts = [sampler.batch(1, 2, part) for part in range(2)]
    assert whole.cases == parts[0].cases + parts[1].cases
    assert torch.equal(whole.target, torch.cat([part.target for part in parts]))
    assert torch.equal(whole.inputs[1], torch.cat([part.inputs[1] for part in parts]))


def test_threads_and_the_source_change_nothing(make_case, make_source, make_sampler):
    sampler = make_sampler(augmentation=ALL)
    copied = DeviceSource(make_source([make_case("a"), make_case("b", seed=1)]), device="cpu", memory_gb=1e-9)
    other = make_sampler(copied, augmentation=ALL)
    with Prefetcher(lambda key: other.batch(*key), following=other.following, workers=3, depth=4) as ahead:
        key = (0, 3, 0)
        for _ in range(5):
            assert equal(sampler.batch(*key), ahead.get(key))
            key = sampler.following(key)
    assert key == (1, 3, 0)


def test_parts_steps_and_epochs_follow_each_other(make_sampler):
    sampler = make_sampler(accumulate=2)
    assert sampler.following((0, 0, 0)) == (0, 0, 1)
    assert sampler.following((0, 0, 1)) == (0, 1, 0)
    assert sampler.following((0, 4, 1)) == (1, 0, 0)


@pytest.mark.parametrize("key", [(0, 5, 0), (0, -1, 0), (0, 0, 1)])
def test_an_epoch_has_so_many_steps_and_parts(make_sampler, key):
    with pytest.raises(ValueError, match="below 5 and 1"):
        make_sampler().batch(*key)


def test_centers_have_the_labels_of_their_categories(make_sampler):
    sampler = make_sampler(section=SamplingSection(proportions=(1.0, 3.0)), batch_size=8)
    centers = torch.cat([sampler.batch(0, step).target[:, 2, 2, 2] for step in range(5)])
    assert Counter(centers.tolist()) == {1: 10, 0: 30}


def test_segments_may_leave_the_volume_unless_compatibility_forbids_it(make_sampler):
    uniform = SamplingSection(categories="uniform")
    free = torch.cat([make_sampler(section=uniform).batch(0, step).target for step in range(5)])
    bound = make_sampler(section=uniform, compatibility="deepmedic")
    assert (free == -1).any()
    assert not (torch.cat([bound.batch(0, step).target for step in range(5)]) == -1).any()


def test_an_upright_segment_is_part_of_the_augmented_ones_choices(make_sampler):
    """Reflection with probability 1 shows the same segments backwards."""
    plain = make_sampler().batch(0, 0)
    reflected = make_sampler(
        augmentation=AugmentationSection(reflect=ReflectSection(probability=(1.0, 0.0, 1.0)))
    ).batch(0, 0)
    assert torch.equal(reflected.inputs[0], plain.inputs[0].flip(2, 4))
    assert torch.equal(reflected.inputs[1], plain.inputs[1].flip(2, 4))
    assert torch.equal(reflected.target, plain.target.flip(1, 3))


def test_turned_segments_keep_channels_and_labels_together(make_case, make_source, make_sampler):
    case = make_case(shape=(24, 24, 24))
    case = replace(case, channels_CIJK=case.labels_IJK[None].float())
    section = AugmentationSection(
        affine=AffineSection(probability=1.0), rotate90=Rotate90Section(xy=(0.0, 1.0, 0.0, 0.0))
    )
    batch = make_sampler(make_source([case]), augmentation=section, batch_size=8).batch(0, 0)
    inner = batch.inputs[0][:, 0, 2:7, 2:7, 2:7]
    seen = batch.target >= 0
    assert ((inner > 0.5) == (batch.target == 1))[seen].float().mean() > 0.98
    assert (batch.target == 1).any()


def test_turns_need_a_segment_with_equal_sides(make_plan, make_sampler):
    plan = make_plan()
    plan = replace(plan, shape=(9, 9, 7), output_shape=(5, 5, 3))
    turns = AugmentationSection(rotate90=Rotate90Section(yz=(1.0, 1.0, 0.0, 0.0)))
    with pytest.raises(ConfigError, match=r"augmentation\.rotate90\.yz .* 9 and 7"):
        make_sampler(plan=plan, augmentation=turns)
    make_sampler(plan=plan, augmentation=AugmentationSection(rotate90=Rotate90Section(yz=(1.0, 0.0, 1.0, 0.0))))
    with pytest.raises(ConfigError, match="not all 0"):
        make_sampler(augmentation=AugmentationSection(rotate90=Rotate90Section(yz=(0.0, 0.0, 0.0, 0.0))))


def test_a_case_without_label_map_is_named(make_case, make_source, make_sampler):
    source = make_source([replace(make_case("lost"), labels_IJK=None)])
    with pytest.raises(CohortError, match="'lost' has no label map"):
        make_sampler(source).batch(0, 0)


def test_a_volume_too_small_for_compatibility_is_an_error_and_fine_otherwise(make_case, make_source, make_sampler):
    source = make_source([make_case(shape=(10, 10, 8))])
    with pytest.raises(CohortError, match=r"sampling\.segment"):
        make_sampler(source, compatibility="deepmedic").batch(0, 0)
    assert make_sampler(source).batch(0, 0).target.shape == (4, 5, 5, 5)


def test_a_case_without_a_fitting_center_gives_way_to_another(make_case, make_source, make_sampler):
    source = make_source([make_case("small", shape=(10, 10, 8)), make_case("large")])
    sampler = make_sampler(source, compatibility="deepmedic", section=SamplingSection(categories="uniform"))
    assert {name for step in range(5) for name in sampler.batch(0, step).cases} == {"large"}


def deepmedic(**options):
    return AugmentationSection(deepmedic=DeepMedicSection(**options))


def test_deepmedic_changes_are_made_under_its_own_names(make_plan, make_sampler):
    options = {"plan": make_plan(9, border="deepmedic"), "compatibility": "deepmedic"}
    plain = make_sampler(**options).batch(0, 0)
    changed = make_sampler(augmentation=deepmedic(reflect=(0.0, 1.0, 0.0)), **options).batch(0, 0)
    for one, other in zip(plain.inputs, changed.inputs, strict=True):
        assert torch.equal(one.flip(3), other)
    turned = make_sampler(augmentation=deepmedic(rotate90=Rotate90Section(xz=(0.0, 0.0, 0.0, 2.0))), **options).batch(
        0, 0
    )
    assert torch.equal(turned.inputs[1], torch.rot90(plain.inputs[1], 3, [2, 4]))
    assert torch.equal(turned.target, torch.rot90(plain.target, 3, [1, 3]))
    shifted = make_sampler(
        augmentation=deepmedic(hist_dist=DeepMedicHistDist(shift=(2.0, 0.0), scale=(3.0, 0.0))), **options
    ).batch(0, 0)
    torch.testing.assert_close(shifted.inputs[0], (plain.inputs[0] + 2) * 3)
    only_shift = make_sampler(augmentation=deepmedic(hist_dist=DeepMedicHistDist(shift=(2.0, 0.0))), **options)
    torch.testing.assert_close(only_shift.batch(0, 0).inputs[0], plain.inputs[0] + 2)


@pytest.mark.parametrize(
    ("affine", "name"),
    [
        ({"interp_order_imgs": 3}, "interp_order_imgs must be 0 or 1, got 3"),
        ({"interp_order_lbls": 1}, "interp_order_lbls"),
        ({"interp_order_roi": 1}, "interp_order_roi"),
        ({"interp_order_wmaps": 0}, "interp_order_wmaps"),
        ({"boundary_mode": "reflect"}, "boundary_mode must be nearest, got reflect"),
    ],
)
def test_deepmedic_settings_that_cannot_be_met_are_refused(make_sampler, affine, name):
    with pytest.raises(ConfigError, match=name):
        make_sampler(augmentation=deepmedic(affine=DeepMedicAffine(**affine)))


def test_deepmedic_maps_whole_images_once_per_case_and_epoch(make_case, make_source, make_sampler, make_plan):
    source = make_source([make_case(shape=(30, 30, 30))])
    augmentation = deepmedic(affine=DeepMedicAffine(prob=1.0))
    plan = make_plan(9, border="deepmedic")
    sampler = make_sampler(source, plan=plan, augmentation=augmentation, compatibility="deepmedic")
    draw = sampler._augmenter.deepmedic.image_map
    assert draw((30, 30, 30), 1) == draw((30, 30, 30), 1)
    assert draw((30, 30, 30), 1) != draw((30, 30, 30), 2)
    batch = sampler.batch(0, 0)
    assert (batch.target >= 0).all()
    # Half of the centers are drawn from the lesion; they stay in it, but for rounding at its surface.
    centers = torch.cat([sampler.batch(0, step).target[:, 2, 2, 2] for step in range(5)])
    assert 6 <= int(centers.sum()) <= 12
    nearest = make_sampler(
        source,
        plan=plan,
        augmentation=deepmedic(affine=DeepMedicAffine(prob=1.0, interp_order_imgs=0)),
        compatibility="deepmedic",
    ).batch(0, 0)
    values = source[0].channels_CIJK
    assert torch.isin(nearest.inputs[0][:, 0], values[0]).all()
    assert not torch.isin(batch.inputs[0][:, 0], values[0]).all()


def test_deepmedic_scales_whole_images_about_one_within_its_limit(make_case, make_source, make_sampler, make_plan):
    source = make_source([make_case(shape=(30, 30, 30))])
    augmentation = deepmedic(affine=DeepMedicAffine(prob=1.0, max_scaling=0.2))
    plan = make_plan(9, border="deepmedic")
    sampler = make_sampler(source, plan=plan, augmentation=augmentation, compatibility="deepmedic")
    maps = [sampler._augmenter.deepmedic.image_map((30, 30, 30), key) for key in range(200)]
    # A rotation keeps volumes, so the determinant is that of the scaling alone.
    scales = torch.linalg.det(torch.tensor([found.matrix for found in maps], dtype=torch.float64)).abs() ** (1 / 3)
    factors = torch.minimum(scales, 1 / scales)
    assert factors.min() > 1 / 1.26
    assert factors.max() > 0.99
    assert 0.95 < float(scales.mean()) < 1.05
