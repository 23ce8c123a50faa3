"""What a process that is to be killed tells about itself: how often it passed each point, and where it was last.

It writes into memory that outlives it, so that the moment of a kill is known afterwards.
"""

import mmap
import os
import signal
import struct
import threading
from collections.abc import Mapping

# Calls at which a process can be told to end. A point named in the present is before the call, one in the past after.
POINTS = (
    "any",
    "step",
    "stepped",
    "half-written",
    "open",
    "fsync",
    "rename",
    "renamed",
    "unlink",
    "copy",
    "commit",
    "committed",
    "created",
    "noted",
    "journaled",
    "validated",
    "published",
)
WINDOWS = (
    "before a run exists",
    "while the run is created",
    "while a resume begins",
    "in a step",
    "between steps",
    "while a checkpoint is written",
    "while a checkpoint is named and old ones go",
    "in a validation",
    "between validation and checkpoint",
    "while the run is ended",
)
_WORD = struct.Struct("=i")


class Board:
    """Numbers that a process shares with the one that it was forked from."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _WORD.size * (3 + len(POINTS)))
        self._lock = threading.Lock()

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))

    def _get(self, place: int) -> int:
        return int(_WORD.unpack_from(self._memory, place * _WORD.size)[0])

    def _set(self, place: int, value: int) -> None:
        _WORD.pack_into(self._memory, place * _WORD.size, value)

    @property
    def window(self) -> str:
        """Where the main thread is."""
        return WINDOWS[self._get(0)]

    @window.setter
    def window(self, name: str) -> None:
        self._set(0, WINDOWS.index(name))

    @property
    def delivering(self) -> bool:
        """Whether something is on its way to the store."""
        return self._get(1) != 0

    @delivering.setter
    def delivering(self, value: bool) -> None:
        self._set(1, int(value))

    @property
    def called(self) -> bool:
        """Whether the process asks the one that started it to act."""
        return self._get(2) != 0

    def call(self) -> None:
        self._set(2, 1)

    def passed(self, point: str) -> int:
        """Count a point and return how often it was passed."""
        with self._lock:
            place = 3 + POINTS.index(point)
            count = self._get(place) + 1
            self._set(place, count)
            return count

    def counts(self) -> dict[str, int]:
        return {point: self._get(3 + place) for place, point in enumerate(POINTS)}


class Plan:
    """What is to happen at which pass of which point.

    Args:
        board: Counts the points.
        at: Point, number of the pass → ``KILL``, the name of another signal, or ``CALL``.
    """

    def __init__(self, board: Board, at: Mapping[tuple[str, int], str]) -> None:
        self.board = board
        self._at = dict(at)

    def due(self, point: str) -> bool:
        """Count a point; return whether the process is to die there, and send it any other signal."""
        counted = {name: self.board.passed(name) for name in ("any", point)}
        for name, count in counted.items():
            what = self._at.get((name, count))
            if what == "KILL":
                return True
            if what == "CALL":
                self.board.call()
            elif what is not None:
                os.kill(os.getpid(), getattr(signal, f"SIG{what}"))
        return False

    def reach(self, point: str) -> None:
        """Count a point and die there if that is planned."""
        if self.due(point):
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
