"""The processes that dmx starts: none of them imports a module because it lies in the working folder.

Python looks for modules in the folder that it is started in before it looks in its own library. A folder of scans may
come from anybody, and a researcher's own ``signal.py`` is no part of dmx either.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

PYTHON = (sys.executable, "-P")
"""Begins the command of every child that is Python."""

_SAFE = "PYTHONSAFEPATH"
_PATH = "PYTHONPATH"


def variables(**more: str) -> dict[str, str]:
    """Return the environment of a child: this one's, without the working folder among the places of modules.

    Args:
        more: Further variables.
    """
    found = {**os.environ, _SAFE: "1", **more}
    if _PATH in found:
        found[_PATH] = os.pathsep.join(entry for entry in found[_PATH].split(os.pathsep) if entry)
    return found


@contextmanager
def _safely() -> Iterator[None]:
    """Hand :func:`variables` to what is started in the block; multiprocessing has no argument for it."""
    before = {name: os.environ.get(name) for name in (_SAFE, _PATH)}
    found = variables()
    os.environ.update({name: found[name] for name in before if name in found})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Worker(SpawnProcess):
    def start(self) -> None:
        with _safely():
            super().start()


class _Context(SpawnContext):
    Process = _Worker


@contextmanager
def workers(number: int, *, initializer: Callable[[], Any] | None = None) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that begin anew: a fork would copy the locks of the libraries that are loaded here.

    Args:
        number: How many.
        initializer: Called in each of them first.
    """
    # It starts a process that keeps account of the others.
    with _safely():
        pool = ProcessPoolExecutor(number, mp_context=_Context(), initializer=initializer)
    with pool:
        yield pool


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    if sys.platform == "win32" or not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len(os.sched_getaffinity(0))
