"""The example of experiments/from_python prints what its README says, apart from numbers that differ by machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments" / "from_python"


def masked(text: str) -> list[str]:
    """Without run ids, and without the digits of losses and scores."""
    text = re.sub(r"\([0-9a-f]{8}\)", "(ID)", text)
    return re.sub(r"\d+\.\d{4}", "0.0000", text).split()


def test_the_example_prints_what_its_readme_says(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "from_python.py")]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = (FOLDER / "README.md").read_text(encoding="utf-8").split("```\n")[1]
    assert masked(done.stdout) == masked(said)
    assert "Changed: head.weight, head.bias" in done.stdout
    assert not list(tmp_path.iterdir())
