from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmx import geometry


@given(length=st.integers(1, 60), tile=st.integers(1, 20), stride=st.integers(1, 20))
def test_tiles_cover_an_axis_and_stay_inside(length: int, tile: int, stride: int) -> None:
    stride = min(stride, tile)
    starts = geometry.tile_starts(length, tile, stride)
    covered = {index for start in starts for index in range(start, start + tile)}
    assert covered >= set(range(length))
    if length >= tile:
        assert max(covered) == length - 1
    assert len(set(starts)) == len(starts)


def test_tiles_go_through_all_axes_the_last_one_fastest() -> None:
    assert list(geometry.tiles((4, 4, 2), (2, 2, 2), (2, 2, 2))) == list(product([0, 2], [0, 2], [0]))


@pytest.mark.parametrize(("size", "center", "start"), [(37, 20, 2), (4, 5, 4), (1, 7, 7)])
def test_a_segment_starts_before_its_center(size: int, center: int, start: int) -> None:
    assert geometry.segment_start((center,) * 3, (size,) * 3) == (start,) * 3


def test_a_triple_is_one_number_or_three() -> None:
    assert geometry.triple([1, 2, 3]) == (1, 2, 3)
    with pytest.raises(ValueError, match="unpack"):
        geometry.triple([1, 2])
