import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmx.config.sections import NormalizeSection
from dmx.errors import CohortError
from dmx.preprocess.normalize import measured_region, normalize_channel

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "data_ops.npz"
IMAGE = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 10.0]).reshape(1, 2, 3)
EVERYWHERE = np.ones((1, 2, 3), dtype=bool)


def normalized(image: Any = IMAGE, region: Any = EVERYWHERE, **settings: Any) -> Any:
    return normalize_channel(image, region, NormalizeSection(**settings), case="c1", channel="t1")


def measured(**settings: Any) -> list[float]:
    return sorted(IMAGE[measured_region(IMAGE, EVERYWHERE, NormalizeSection(**settings))].tolist())


@pytest.mark.skipif(not GOLDEN.exists(), reason="the reference arrays lie beside the repository, not in it")
@pytest.mark.parametrize("number", range(4))
def test_zscore_equals_the_reference(number: int) -> None:
    with np.load(GOLDEN) as golden:
        percentiles, within_std, above_mean = json.loads(str(golden[f"z{number}/args"]))
        section = NormalizeSection(
            percentiles=percentiles and tuple(percentiles),
            within_std=within_std and tuple(within_std),
            above_mean=above_mean,
        )
        result = normalize_channel(golden["z/img"], golden["z/mask"], section, case="c", channel="t1")
        # The result is stored as float32; before that it is equal.
        np.testing.assert_array_equal(result, golden[f"z{number}/out"].astype(np.float32))


def test_zscore_has_mean_0_and_population_deviation_1_in_its_region_alone(rng: np.random.Generator) -> None:
    image = rng.normal(50, 9, (6, 5, 4))
    region = np.zeros(image.shape, dtype=bool)
    region[2:4] = True
    result = normalized(image, region)
    assert result[region].mean() == pytest.approx(0, abs=1e-6)
    assert result[region].std() == pytest.approx(1, abs=1e-6)
    assert abs(result.mean()) > 1e-3


def test_cut_offs_compare_strictly() -> None:
    assert measured() == [0, 1, 2, 3, 4, 10]
    assert measured(percentiles=(0.0, 100.0)) == [1, 2, 3, 4]
    assert measured(above_mean=True) == [4]


def test_each_cut_off_is_taken_from_the_whole_region_and_all_must_hold() -> None:
    within = measured(within_std=(1.0, 1.0))
    assert within == [1, 2, 3, 4]
    assert measured(within_std=(1.0, 1.0), percentiles=(30.0, 100.0)) == [2, 3, 4]


def test_an_equal_channel_becomes_0_everywhere() -> None:
    region = EVERYWHERE.copy()
    region[0, 1, 2] = False
    flat = np.where(region, 0.1, 7.0)
    assert not normalized(flat, region).any()
    assert normalized(flat).any()


def test_an_empty_region_names_case_and_channel() -> None:
    with pytest.raises(CohortError, match="case 'c1', channel 't1'"):
        normalized(region=~EVERYWHERE)
    with pytest.raises(CohortError, match="cut-offs"):
        normalized(within_std=(0.0, 0.0))


def test_a_window_maps_to_0_and_1_and_clips() -> None:
    result = normalized(method="window", window=(1.0, 3.0))
    np.testing.assert_allclose(result.ravel(), [0, 0, 0.5, 1, 1, 1])
    with pytest.raises(ValueError, match="window must be a lower and a higher number"):
        NormalizeSection(method="window", window=(3.0, 3.0))


def test_none_and_channels_that_are_not_named_stay_as_they_are() -> None:
    np.testing.assert_array_equal(normalized(method="none"), IMAGE)
    np.testing.assert_array_equal(normalized(channels=("t2",)), IMAGE)
    assert not np.array_equal(normalized(channels=("t1",)), IMAGE)


def test_fixed_numbers_clip_and_scale_whatever_the_method_says() -> None:
    fixed = {"t1": (1.0, 4.0, 2.0, 0.5)}
    wanted = [-2.0, -2.0, 0.0, 2.0, 4.0, 4.0]
    for method in ("zscore", "none"):
        assert normalized(method=method, fixed=fixed).ravel().tolist() == wanted
    assert normalized(method="none", fixed={"t2": fixed["t1"]}).ravel().tolist() == IMAGE.ravel().tolist()
    for numbers in ((4.0, 1.0, 2.0, 0.5), (1.0, 4.0, 2.0, 0.0)):
        with pytest.raises(ValueError, match=r"fixed\.t1 must be a lowest and a higher intensity"):
            NormalizeSection(fixed={"t1": numbers})


def test_a_range_is_that_of_the_region_and_nothing_is_cut_off() -> None:
    assert normalized(method="range").ravel().tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 1.0])
    region = IMAGE < 5
    assert normalized(region=region, method="range").ravel().tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 2.5])


def test_outside_of_the_region_zscore_can_leave_zeros() -> None:
    region = IMAGE > 0
    zero, scaled = (normalized(region=region, outside=outside) for outside in ("zero", "scaled"))
    assert zero[region].tolist() == scaled[region].tolist()
    assert zero[~region].tolist() == [0.0]
    assert scaled[~region].item() < -1
