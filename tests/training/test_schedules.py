"""Learning rates against their formulas."""

import math
from typing import Any

import pytest

from dmx.config.optimization import ScheduleSection
from dmx.training.schedules import Schedule, preview


def rates(compatibility: str = "none", epochs: int = 6, steps: int = 4, **section: Any) -> list[float]:
    return preview(
        ScheduleSection(**section), lr=0.1, epochs=epochs, steps_per_epoch=steps, compatibility=compatibility
    )


def test_polynomial_falls_at_every_step() -> None:
    assert rates(name="polynomial") == pytest.approx([0.1 * (1 - n / 24) ** 0.9 for n in range(24)])
    waiting = rates(name="polynomial", wait_epochs=2.0, power=2.0)
    assert waiting[:9] == pytest.approx([0.1] * 9)
    assert waiting[9:] == pytest.approx([0.1 * (1 - n / 16) ** 2 for n in range(1, 16)])


def test_deepmedics_polynomial_waits_a_third_and_falls_once_per_epoch() -> None:
    expected = [0.1 * (1 - min(max(e - 2, 0), 4) / 4) ** 0.9 for e in range(6) for _ in range(4)]
    assert rates("deepmedic", name="polynomial") == pytest.approx(expected)


def test_exponential_ends_at_the_final_rate() -> None:
    assert rates(name="exponential") == pytest.approx([0.1 * 0.01 ** (n / 24) for n in range(24)])
    gamma = ((0.001 + 1e-8) / 0.1) ** (1 / 4)
    expected = [0.1 * gamma ** max(e - 2, 0) for e in range(6) for _ in range(4)]
    assert rates("deepmedic", name="exponential", final_lr=0.001) == pytest.approx(expected)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    curve = rates(name="cosine", final_lr=0.02)
    assert curve[0] == pytest.approx(0.1)
    assert curve[12] == pytest.approx(0.06)
    assert curve[6] == pytest.approx(0.02 + 0.08 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates(name="cosine")[-1] == pytest.approx(0.1 * (1 + math.cos(math.pi * 23 / 24)) / 2)


def test_steps_divide_at_their_epochs_and_deepmedics_one_later() -> None:
    section = {"name": "steps", "at_epochs": (2, 4), "divide_by": 10.0}
    assert rates(**section)[::4] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert rates("deepmedic", **section)[::4] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_warmup_grows_linearly_and_the_curve_begins_behind_it() -> None:
    curve = rates(name="constant", warmup=2.0)
    assert curve[:8] == pytest.approx([0.1 * n / 9 for n in range(1, 9)])
    assert curve[8:] == pytest.approx([0.1] * 16)
    assert rates(name="polynomial", warmup=2.0)[8:] == pytest.approx(rates(name="polynomial", epochs=4))


def test_a_wait_longer_than_the_training_keeps_the_rate() -> None:
    assert rates(name="polynomial", wait_epochs=9.0) == pytest.approx([0.1] * 24)


def plateau(values: list[float | None], min_increase: float = 0.0) -> list[float]:
    section = ScheduleSection(name="plateau", patience=2, divide_by=2.0, min_increase=min_increase)
    schedule = Schedule(section, lr=0.8, epochs=20, steps_per_epoch=3)
    curve = []
    for epoch, value in enumerate(values):
        curve.append(schedule.lr(epoch, 0))
        schedule.epoch_ended(epoch + 1, value)
        resumed = Schedule(section, lr=0.8, epochs=20, steps_per_epoch=3)
        resumed.load_state_dict(schedule.state_dict())
        schedule = resumed
    return curve


def test_plateau_divides_after_patience_without_improvement() -> None:
    assert plateau([0.5, 0.4, 0.4, 0.4, 0.4, 0.4]) == [0.8, 0.8, 0.8, 0.4, 0.4, 0.2]
    assert plateau([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == [0.8] * 6
    assert plateau([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], min_increase=1.0) == [0.8, 0.8, 0.8, 0.4, 0.4, 0.2]


def test_plateau_waits_for_a_measurement() -> None:
    assert plateau([0.5, None, None, None, 0.4, 0.4]) == [0.8, 0.8, 0.8, 0.8, 0.8, 0.4]


def test_only_plateau_looks_at_values() -> None:
    schedule = Schedule(ScheduleSection(name="constant"), lr=0.1, epochs=3, steps_per_epoch=1)
    assert not any(schedule.epoch_ended(epoch, 0.0) for epoch in range(1, 20))


def test_a_step_at_the_end_of_the_warmup_follows_the_curve() -> None:
    # Two steps per epoch and a warm-up of one epoch: the third step is the first of the curve.
    curve = rates(name="steps", at_epochs=(1,), divide_by=10.0, warmup=1.0, epochs=3, steps=2)
    assert curve == pytest.approx([0.1 * 1 / 3, 0.1 * 2 / 3, 0.01, 0.01, 0.01, 0.01])


def test_an_extended_training_begins_its_curve_anew_or_stretches_it() -> None:
    anew = rates(name="polynomial", power=1.0, epochs=6, steps=1, begin_epoch=2)
    assert anew == pytest.approx([0.1, 0.1, 0.1, 0.075, 0.05, 0.025])
    kept = rates(name="polynomial", power=1.0, epochs=6, steps=1, span_epochs=4)
    assert kept == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0, 0.0])
    both = rates(name="polynomial", power=1.0, epochs=6, steps=1, begin_epoch=1, span_epochs=5)
    assert both == pytest.approx([0.1, 0.1, 0.08, 0.06, 0.04, 0.02])


def test_the_wait_of_deepmedic_ends_with_a_third() -> None:
    assert rates("deepmedic", name="exponential", final_lr=0.1, epochs=3, steps=1) == pytest.approx([0.1] * 3)
    equal = rates("deepmedic", name="polynomial", wait_epochs=3.0, epochs=4, steps=1, power=1.0)
    assert equal == pytest.approx([0.1] * 4)
