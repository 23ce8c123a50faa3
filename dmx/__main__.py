"""``dmx`` and ``python -m dmx``."""

import os
import sys


def leave_working_folder() -> None:
    """Let this process import nothing from the working folder, where ``python -m`` looks first.

    Where dmx itself lies there, the folder comes after all others.
    """
    here = os.path.realpath(os.curdir)
    # Nothing may be imported before, not even pathlib.
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    kept = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != here]
    if len(kept) < len(sys.path):
        sys.path[:] = [*kept, here] if here == home else kept


def main() -> None:
    """Run a command."""
    leave_working_folder()
    from dmx.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
