"""What is printed when nobody can read it any more."""

import errno
import os
import pty
from pathlib import Path

import pytest

from dmx.cli.console import _HarmlessConsole


def test_a_closed_terminal_ends_nothing_that_prints() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        console = _HarmlessConsole(file=terminal)
        console.print("seen")
        os.close(master)

        console.print("not seen")
        console.print("nor this")

        assert os.fstat(terminal.fileno()).st_rdev == Path(os.devnull).stat().st_rdev


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_what_cannot_be_written_to_a_file_is_still_an_error() -> None:
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "w") as full:  # noqa: PTH123
        _HarmlessConsole(file=full).print("x")

    assert caught.value.errno == errno.ENOSPC
