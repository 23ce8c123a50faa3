import math

import pytest
import torch

from dmx import seeding
from dmx.config.augmentation import (
    AugmentationSection,
    BiasFieldSection,
    BlurSection,
    GammaSection,
    IntensitySection,
    NoiseSection,
)
from dmx.geometry import PatchPlan, SegmentPlan
from dmx.sampling.intensity import bias_field, blur, change_intensities, gamma, happens, noise, shift_scale

PLAN = SegmentPlan(
    (12, 12, 12),
    (8, 8, 8),
    (2, 2, 2),
    (2, 2, 2),
    (
        PatchPlan("normal", (12, 12, 12), (1, 1, 1), (0, 0, 0)),
        PatchPlan("wide", (12, 12, 12), (2, 2, 2), (-6, -6, -6)),
        PatchPlan("strided", (12, 12, 12), (2, 2, 2), (-6, -6, -6), "stride", "deepmedic"),
    ),
)


def ones():
    return [torch.ones(2, 12, 12, 12) for _ in PLAN.patches]


def normals():
    return [seeding.normal(n, (2, 12, 12, 12)) for n in range(3)]


def test_shift_and_scale_are_one_draw_per_channel_for_all_pathways():
    changed = shift_scale(normals(), (0.5, 0.1), (1.0, 0.2), key=3)
    for before, after in zip(normals(), changed, strict=True):
        slope = (after[:, 0, 0, 1] - after[:, 0, 0, 0]) / (before[:, 0, 0, 1] - before[:, 0, 0, 0])
        shift = after[:, 0, 0, 0] / slope - before[:, 0, 0, 0]
        torch.testing.assert_close(
            slope,
            (changed[0][:, 0, 0, 1] - changed[0][:, 0, 0, 0]) / (normals()[0][:, 0, 0, 1] - normals()[0][:, 0, 0, 0]),
        )
        torch.testing.assert_close(
            shift, changed[0][:, 0, 0, 0] / slope - normals()[0][:, 0, 0, 0], rtol=1e-3, atol=1e-4
        )
        assert slope[0] != slope[1]
    draws = torch.stack([shift_scale(ones(), (0.5, 0.1), (1.0, 0.0), key=k)[0][0, 0, 0, 0] for k in range(200)])
    assert draws.mean() == pytest.approx(1.5, abs=0.05)
    assert draws.std() == pytest.approx(0.1, abs=0.03)


def test_gamma_keeps_extremes_and_order_over_all_pathways():
    before, after = normals(), gamma(normals(), GammaSection(log_std=0.5), key=1)
    joined, bent = (torch.cat([p.flatten(1) for p in patches], dim=1) for patches in (before, after))
    torch.testing.assert_close(bent.amin(dim=1), joined.amin(dim=1))
    torch.testing.assert_close(bent.amax(dim=1), joined.amax(dim=1))
    order = joined[0].argsort()
    assert (bent[0][order].diff() >= 0).all()
    assert not torch.allclose(bent, joined)


def test_gamma_leaves_a_constant_channel_alone():
    for patch in gamma(ones(), GammaSection(log_std=0.5), key=1):
        assert torch.equal(patch, torch.ones(2, 12, 12, 12))


def test_averaged_voxels_get_less_noise():
    zeros = [torch.zeros(2, 12, 12, 12) for _ in PLAN.patches]
    single, averaged, strided = (p.std() for p in noise(zeros, PLAN, NoiseSection(std=0.4), key=5))
    assert averaged / single == pytest.approx(1 / math.sqrt(8), rel=0.1)
    assert strided / single == pytest.approx(1.0, rel=0.1)
    assert 0 < single <= 0.4


def test_the_bias_field_is_one_field_in_space():
    normal, wide, strided = bias_field(ones(), PLAN, BiasFieldSection(std=0.5), key=2)
    assert (normal > 0).all()
    assert normal.std() > 0.01
    # Voxel 3 of the wide patch averages voxels 0 and 1 of the normal one.
    middle = (normal[:, 0:12:2] * normal[:, 1:12:2]).sqrt()
    torch.testing.assert_close(wide[:, 3:9, 3, 3], middle[:, :, 0:2, 0:2].mean(dim=(2, 3)), rtol=0.01, atol=0.01)
    torch.testing.assert_close(strided[:, 3:9, 3, 3], normal[:, ::2, 0, 0], rtol=0.01, atol=0.001)
    assert not torch.allclose(normal[0], normal[1])


def test_blur_keeps_the_mean_and_is_narrower_in_wide_patches():
    peak = torch.zeros(1, 12, 12, 12)
    peak[0, 6, 6, 6] = 1.0
    normal, wide, _ = blur([peak] * 3, PLAN, BlurSection(sigma=1.5), key=4)
    assert normal.sum() == pytest.approx(1.0, abs=1e-4)
    assert normal[0, 6, 6, 6] < wide[0, 6, 6, 6] < 1.0
    sigma = 1.5 * seeding.scalar(4)
    ratio = math.exp(-0.5 / sigma**2)
    assert float(normal[0, 7, 6, 6] / normal[0, 6, 6, 6]) == pytest.approx(ratio, rel=1e-4)


def test_each_change_has_its_probability():
    assert not any(happens(0.0, key, "x") for key in range(50))
    assert all(happens(1.0, key, "x") for key in range(50))
    assert 60 < sum(happens(0.3, key, "x") for key in range(300)) < 120


@pytest.mark.parametrize(
    "section",
    [
        {"bias_field": BiasFieldSection(probability=1.0)},
        {"blur": BlurSection(probability=1.0)},
        {"gamma": GammaSection(probability=1.0)},
        {"intensity": IntensitySection(probability=1.0)},
        {"noise": NoiseSection(probability=1.0)},
    ],
)
def test_a_change_is_made_where_it_is_asked_for(section):
    changed = change_intensities(normals(), PLAN, AugmentationSection(**section), key=1)
    again = change_intensities(normals(), PLAN, AugmentationSection(**section), key=1)
    for before, after, twin in zip(normals(), changed, again, strict=True):
        assert not torch.allclose(before, after)
        assert torch.equal(after, twin)
        assert after.dtype == torch.float32
    unchanged = change_intensities(normals(), PLAN, AugmentationSection(), key=1)
    assert all(map(torch.equal, normals(), unchanged))
