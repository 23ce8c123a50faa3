import pytest
import torch

from dmx import seeding


def test_a_key_depends_on_every_part_of_its_path_and_on_nothing_else() -> None:
    keys = {
        seeding.derive(*path)
        for path in [(0, "a", 1, 2), (1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 12), (0, "a", "1", 2)]
    }
    assert len(keys) == 5
    torch.rand(3)
    assert seeding.derive(0, "a", 1, 2) in keys


def test_draws_repeat_and_differ_between_keys() -> None:
    assert torch.equal(seeding.uniform(7, (3, 4)), seeding.uniform(7, (3, 4)))
    assert not torch.equal(seeding.uniform(7, (3, 4)), seeding.uniform(8, (3, 4)))


@pytest.mark.parametrize("key", [0, -1, seeding.derive(3, "x"), (1 << 63) - 1, -(1 << 63)])
def test_uniform_numbers_fill_the_unit_interval_evenly(key: int) -> None:
    values = seeding.uniform(key, (100_000,)).double()
    counts = torch.histc(values, 20, 0, 1)
    assert values.min() >= 0
    assert values.max() < 1
    # 19 degrees of freedom: a fair generator exceeds 50 once in 10,000 times.
    assert ((counts - 5000) ** 2 / 5000).sum() < 50


def test_normal_numbers_have_the_moments_of_the_standard_normal() -> None:
    values = seeding.normal(5, (100_001,)).double()
    assert values.shape == (100_001,)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert abs((values**4).mean() - 3) < 0.15


def test_neighboring_keys_are_uncorrelated() -> None:
    first, second = seeding.uniform(1000, (50_000,)), seeding.uniform(1001, (50_000,))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.02


def test_a_scalar_is_the_first_draw_of_its_key_with_more_digits() -> None:
    for key in (0, 5, -9, seeding.derive(1, "y")):
        assert seeding.scalar(key) == pytest.approx(float(seeding.uniform(key, (1,))), abs=2**-23)
