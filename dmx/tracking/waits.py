"""How long MLflow's client waits for a server: it reads that from the environment, anew for each call."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_ENVIRONMENT = {
    # The defaults let one call to a dead server block for minutes.
    _RETRIES: "2",
    _TIMEOUT: "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Its links lead to pages without the project's columns.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# A server answers to a file only when its own storage has it.
_UPLOAD_SECONDS = 15
_UPLOAD_BYTES_PER_SECOND = 1_000_000


def set_waits() -> None:
    """Let MLflow wait for seconds instead of minutes, unless the user has said how long; no telemetry."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def _changed(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ[name] for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def single_attempt() -> Iterator[None]:
    """Let no call be repeated by itself: what it did may be done although no answer came."""
    with _changed({_RETRIES: "0"}):
        yield


@contextmanager
def time_to_upload(source: Path) -> Iterator[None]:
    """Wait for an upload as long as its largest file may take, once: whoever delivers tries again anyway.

    Args:
        source: A file, or a folder, whose files are sent one by one.
    """
    sizes = [path.stat().st_size for path in (source.rglob("*") if source.is_dir() else [source]) if path.is_file()]
    seconds = _UPLOAD_SECONDS + max(sizes, default=0) // _UPLOAD_BYTES_PER_SECOND
    chosen = {_TIMEOUT: str(seconds), _RETRIES: "0"}
    # What the user has set stays.
    with _changed({name: value for name, value in chosen.items() if os.environ[name] == _ENVIRONMENT[name]}):
        yield
