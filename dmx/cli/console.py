"""Where words go: results to standard output, notes and errors to standard error."""

import os
import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

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


class _HarmlessConsole(Console):
    """A console that shows no control character of a text: a name cannot move the cursor or recolor the terminal."""

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
