"""Prepare what is needed next while the network computes."""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from dmx.errors import TrainingError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Prefetcher(Generic[K, V]):
    """Calls a pure function ahead, in threads. What comes out depends neither on their number nor on the order.

    Args:
        function: Returns the value of a key; an exception reaches whoever gets that key.
        following: Returns the key that will probably be wanted after one.
        workers: Threads; 0 calls the function when a value is wanted.
        depth: Values that are prepared ahead, at most.
    """

    def __init__(
        self, function: Callable[[K], V], *, following: Callable[[K], K], workers: int, depth: int = 2
    ) -> None:
        self._function = function
        self._following = following
        self._depth = depth
        self._pending: dict[K, Future[V]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dmx-prefetch") if workers > 0 else None
        self._closed = False

    def get(self, key: K) -> V:
        """Return the value of a key and begin with those that follow it.

        Raises:
            TrainingError: The prefetcher is closed.
        """
        if self._closed:
            raise TrainingError(f"The prefetcher is closed; '{key}' cannot be prepared any more.")
        if self._pool is None:
            return self._function(key)
        wanted = [key]
        for _ in range(self._depth):
            wanted.append(self._following(wanted[-1]))
        for old in [k for k in self._pending if k not in wanted]:
            # After a jump, what was prepared for the old place is not needed.
            self._pending.pop(old).cancel()
        for ahead in wanted:
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.submit(self._function, ahead)
        return self._pending.pop(key).result()

    def close(self) -> None:
        """Drop what is not begun, wait for what is, and end the threads."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> "Prefetcher[K, V]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
