"""A script of one's own that lacks what several processes need."""

import subprocess
import sys
from pathlib import Path

# The jobs are none: the processes end before they are asked for one.
SCRIPT = """
import sys

from dmx.errors import DmxError
from dmx.preprocess.cache import CaseCache

try:
    list(CaseCache(sys.argv[1])._prepare_all({"a": None, "b": None}, None, 2))
except DmxError as error:
    print(error)
"""


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cache")], capture_output=True, text=True, check=True, timeout=120
    )

    assert "below if __name__ == '__main__':" in done.stdout
