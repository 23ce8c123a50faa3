"""Where words go: results to standard output, notes and errors to standard error."""

import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import IO, Any, TypeVar, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

T = TypeVar("T")

_PLAIN_WIDTH = 100
_LONGEST_WORD = 500
_SHOWN_OF_WORD = 200
# Control characters, and those that turn the direction of writing: names from files of strangers can hold both.
_CONTROL = {
    **dict.fromkeys(
        (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\N{REPLACEMENT CHARACTER}"
    ),
    **{ord(char): char for char in "\n\t"},
}


def say_nothing_more(*files: IO[str]) -> None:
    """Let what is printed go nowhere where the terminal is gone, for writing to it would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in files or (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            # A terminal that is gone is still a device, but no longer says that it is a terminal.
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _LastingFile:
    """A file of text that a closed terminal does not end: what is printed after that goes nowhere.

    Args:
        file: The file, which everything else is asked of.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        return self._lasting(lambda: self._file.write(text))

    def flush(self) -> None:
        """Write what has not been written yet."""
        self._lasting(self._file.flush)

    def _lasting(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            say_nothing_more(self._file)
            return act()


class _HarmlessConsole(Console):
    """A console that shows no control character of a text: a name cannot move the cursor or recolor the terminal.

    A training whose terminal is closed goes on, if it is not told to end.
    """

    @property
    def file(self) -> IO[str]:
        """Return where the words go."""
        return cast(IO[str], _LastingFile(super().file))

    @file.setter
    def file(self, new: IO[str]) -> None:
        self._file = new

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as Rich does, with a visible sign in place of what would act on the terminal."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=segment.text.translate(_CONTROL))


def _console(*, stderr: bool = False) -> Console:
    """Return a console that neither wraps at 80 columns nor colors when nobody sees a terminal."""
    console = _HarmlessConsole(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return _HarmlessConsole(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)
    return console


def sentence(text: str) -> str:
    r"""Return an error as one line that ends like a sentence, with overlong words shortened.

    >>> sentence("must be a number,\ngot x")
    'must be a number, got x.'
    """
    line = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: word[0][:_SHOWN_OF_WORD] + "…", " ".join(text.split("\n")))
    return line if line.endswith((".", "?", "!", ")")) else f"{line}."


out = _console()
err = _console(stderr=True)
