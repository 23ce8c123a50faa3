"""Call several commands at the same moment, each in a process forked from one that has imported everything."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.faults.kills_board import Board
from tests.faults.kills_server import be_the_command, warm_up

TOP = Path(__file__).parents[2]


def together(root: Path, *commands: Sequence[str], faults: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Call commands of a project at once; return exit code and what was said on standard error, for each."""
    requests = []
    for number, words in enumerate(commands):
        output = root.with_name(f"{root.name}-aside") / f"command_{number}"
        (output / "tmp").mkdir(parents=True, exist_ok=True)
        requests.append(
            {
                "cwd": str(root),
                "words": list(words),
                "at": [],
                "terminal": False,
                "faults": dict(faults),
                "output": str(output),
                "environment": {"DMX_CACHE_DIR": str(output.parent / "facts"), "TMPDIR": str(output / "tmp")},
            }
        )
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.together"],
        cwd=TOP,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        input=json.dumps(requests),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    codes: list[int] = json.loads(done.stdout)
    return [(code, Path(request["output"], "err").read_text()) for code, request in zip(codes, requests, strict=True)]


def serve() -> None:
    requests = json.load(sys.stdin)
    warm_up()
    children = []
    # They wait until the last one is there.
    gate, opener = os.pipe()
    for request in requests:
        child = os.fork()
        if child == 0:
            os.close(opener)
            os.read(gate, 1)
            be_the_command(request, Board())
        children.append(child)
    os.close(opener)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes))


if __name__ == "__main__":
    serve()
