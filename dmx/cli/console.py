"""Where words go: results to standard output, notes and errors to standard error."""

import os

from rich.console import Console

_PLAIN_WIDTH = 100


def _console(*, stderr: bool = False) -> Console:
    """Return a console that neither wraps at 80 columns nor colors when nobody sees a terminal."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        return Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)
    return console


out = _console()
err = _console(stderr=True)
