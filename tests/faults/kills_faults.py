"""Faults that a request can bring into a process, by name; each takes one value."""

from typing import Any


def apart(value: bool) -> None:
    """Let the artifacts be reached by copying only, as if they were on another machine."""
    from dmx.tracking.mlflow_reader import MlflowReader

    if value:
        MlflowReader.local_artifacts = lambda self, run_id: None  # type: ignore[assignment,method-assign]


def without_sampler_position(value: bool) -> None:
    """Let every process draw its segments from the beginning, as a sampler would that is not part of a checkpoint."""
    from dmx.sampling.prefetch import Prefetcher

    start: list[Any] = []
    inner = Prefetcher.get

    def get(self: Any, key: Any) -> Any:
        start.append((0, 0, 0) if not start else self._following(start[-1]))
        return inner(self, start[-1])

    Prefetcher.get = get  # type: ignore[method-assign]


def profile(path: str) -> None:
    import cProfile

    pr = cProfile.Profile()
    pr.enable()
    import os

    ex = os._exit

    def e(c):
        pr.disable()
        pr.dump_stats(path)
        ex(c)

    os._exit = e
