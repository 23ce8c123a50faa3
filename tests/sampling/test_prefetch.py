import threading
import time

import pytest

from dmx.errors import TrainingError
from dmx.sampling.prefetch import Prefetcher


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_values_come_in_the_order_in_which_they_are_wanted(workers):
    with Prefetcher(lambda key: key * key, following=lambda key: key + 1, workers=workers) as ahead:
        assert [ahead.get(key) for key in [0, 1, 2, 3, 40, 41, 5]] == [0, 1, 4, 9, 1600, 1681, 25]


def test_so_many_values_are_prepared_ahead_and_no_more():
    made = []
    gate = threading.Event()

    def function(key):
        made.append(key)
        if key == 3:
            gate.set()
        return key

    with Prefetcher(function, following=lambda key: key + 1, workers=1, depth=3) as ahead:
        ahead.get(0)
        assert gate.wait(5)
        time.sleep(0.02)
        assert made == [0, 1, 2, 3]
        ahead.get(1)
    assert made[:4] == [0, 1, 2, 3]
    assert len(made) <= 5


def test_nothing_is_prepared_without_workers():
    made = []
    with Prefetcher(made.append, following=lambda key: key + 1, workers=0) as ahead:
        ahead.get(7)
    assert made == [7]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_reaches_who_wants_the_value(workers):
    def function(key):
        if key == 1:
            raise ValueError("no scan")
        return key

    with Prefetcher(function, following=lambda key: key + 1, workers=workers) as ahead:
        assert ahead.get(0) == 0
        with pytest.raises(ValueError, match="no scan"):
            ahead.get(1)
        assert ahead.get(2) == 2


def test_closing_ends_the_threads():
    before = threading.active_count()
    ahead = Prefetcher(lambda key: time.sleep(0.01), following=lambda key: key + 1, workers=3, depth=8)
    ahead.get(0)
    assert threading.active_count() > before
    ahead.close()
    ahead.close()
    assert threading.active_count() == before
    with pytest.raises(TrainingError, match="closed"):
        ahead.get(1)
