"""Start MLflow's own pages on this machine, for this machine only."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from urllib.error import URLError
from urllib.request import urlopen

from dmx.children import PYTHON, variables
from dmx.errors import RunError
from dmx.tracking.embedded import database_path, mlflow_address
from dmx.tracking.location import mask

HOST = "127.0.0.1"
# "Bad ports" above 1023 of the WHATWG's Fetch standard: a browser opens no page there.
_BLOCKED = frozenset(
    (1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6679, 6697, 10080)
)
_START_SECONDS = 120.0
_STOP_SECONDS = 10.0


def free_port(wanted: int) -> int:
    """Return the first free port from ``wanted`` on that browsers open.

    Raises:
        RunError: None of twenty is free.
    """
    for port in range(wanted, min(wanted + 20, 65536)):
        if port in _BLOCKED:
            continue
        with socket.socket() as probe:
            # A port that was closed a moment ago can be used again.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RunError(f"No port from {wanted} on is free. Choose another one with --port.")


@contextmanager
def serving(uri: str, port: int) -> Iterator[str]:
    """Serve the pages of a run store while the block runs.

    Args:
        uri: Address of a database; it is handed over by a variable, because it can hold a password.
        port: Port on the loopback interface.

    Yields:
        The address of the pages, when they answer.

    Raises:
        RunError: The server does not start.
    """
    command = [*PYTHON, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    # The server's own experiment 0 would otherwise leave its folder wherever the command was called.
    database = database_path(uri)
    if database is not None:
        command += ["--default-artifact-root", (database.parent / "artifacts").as_uri(), "--no-serve-artifacts"]
    environment = variables(
        MLFLOW_BACKEND_STORE_URI=uri if database is None else mlflow_address(database),
        MLFLOW_DISABLE_TELEMETRY="true",
        # Seven processes of 120 MB that only serve features for language models.
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    environment.pop("MLFLOW_TRACKING_URI", None)
    # What serves the pages imports from the folder that it is started in, whatever Python is told.
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="dmx-ui-") as empty:
        # A group of its own: the server starts further processes, which must end with it.
        process = subprocess.Popen(command, cwd=empty, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            base = f"http://{HOST}:{port}"
            if not _answers(base, process):
                log.seek(0)
                lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
                raise RunError(f"The MLflow server did not start: {mask(lines[-1]) if lines else 'it said nothing'}")
            yield base
        finally:
            _end(process)


def _answers(base: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; False when it ends or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(f"{base}/health", timeout=2):
                return True
        except (URLError, HTTPException, OSError):
            time.sleep(0.2)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return
