"""A process that has imported everything and forks one child per command, which it kills when it is told to.

It reads one JSON request a line and answers each with one line; see :mod:`tests.faults.kills`.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import pty
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.faults import kills_faults
from tests.faults.kills_board import Board, Plan
from tests.faults.kills_hooks import install
from tests.workflows.conftest import settings

_LONGEST_SECONDS = 120.0


def warm_up() -> None:
    """Import what a training imports, and nothing that starts a thread."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import matplotlib as mpl
    import torch

    torch.set_num_threads(1)
    mpl.use("Agg")
    import dmx

    for module in pkgutil.walk_packages(dmx.__path__, "dmx."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        "mlflow",
        "mlflow.store.tracking.sqlalchemy_store",
        "mlflow.store.db_migrations",
        "PIL.WebPImagePlugin",
    ):
        importlib.import_module(name)
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import mlflow.store.artifact.local_artifact_repo
    import torch._dynamo
    import torch.fx.experimental.proxy_tensor
    import torch.utils._python_dispatch

    # Fonts are looked up when the first picture is drawn.
    figure = matplotlib.figure.Figure()
    figure.subplots().set_title("warm")
    figure.savefig(io.BytesIO(), format="png")
    # pydantic reads the sections once.
    settings(Path("cohort.csv"))
    assert matplotlib.backends
    assert mlflow.store
    gc.collect()
    gc.freeze()


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warm_up()
    board = Board()
    for line in sys.stdin:
        request = json.loads(line)
        board.clear()
        print(json.dumps(answer(request, board)), file=answers, flush=True)


def answer(request: dict[str, Any], board: Board) -> dict[str, Any]:
    """Start a child, do to it what the request says, and tell how it ended."""
    start = time.monotonic()
    master = -1
    if request["terminal"]:
        child, master = pty.fork()
    else:
        child = os.fork()
    if child == 0:
        be_the_command(request, board)
    deadline = start + min(request["seconds"] or _LONGEST_SECONDS, _LONGEST_SECONDS)
    status = None
    while status is None:
        ended, found, usage = os.wait4(child, os.WNOHANG)
        if ended:
            status = found
        elif time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
        else:
            master = serve_terminal(master, close=board.called)
            time.sleep(0.002)
    seconds = time.monotonic() - start
    serve_terminal(master, close=True)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory": usage.ru_maxrss * 1024,
        "window": board.window,
        "delivering": board.delivering,
        "counts": board.counts(),
    }


def serve_terminal(master: int, *, close: bool) -> int:
    """Read what a terminal shows, so that nobody waits for it, or close it."""
    if master < 0:
        return master
    if close:
        os.close(master)
        return -1
    os.set_blocking(master, False)
    with contextlib.suppress(OSError):
        os.read(master, 65536)
    return master


def be_the_command(request: dict[str, Any], board: Board) -> None:
    """Run a command as a fresh process would; never returns."""
    # Whoever has started the tests may have it ignored, as nohup does.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    code = 1
    try:
        prepare(request)
        install(Plan(board, {(point, count): what for point, count, what in request["at"]}))
        for name, value in request["faults"].items():
            getattr(kills_faults, name)(value)
        from dmx.cli.main import main

        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def prepare(request: dict[str, Any]) -> None:
    """Go where the command is called, with its words, its variables and its output."""
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    sys.argv = ["dmx", *request["words"]]
    if not request["terminal"]:
        for number, name in ((1, "out"), (2, "err")):
            descriptor = os.open(Path(request["output"], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY))
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))


if __name__ == "__main__":
    serve()
