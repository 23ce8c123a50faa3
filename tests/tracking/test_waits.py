import os
from pathlib import Path

import pytest

from dmx.tracking.waits import set_waits, single_attempt, time_to_upload

TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (TIMEOUT, RETRIES):
        # Whatever the code under test sets is undone, too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def waits() -> tuple[str, str]:
    return os.environ[TIMEOUT], os.environ[RETRIES]


def test_the_largest_file_says_how_long_an_upload_may_take(tmp_path: Path) -> None:
    set_waits()
    (tmp_path / "deep").mkdir()
    for name, size in (("a", 10), ("deep/b", 30_000_000)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with time_to_upload(tmp_path / "a"):
        assert waits() == ("15", "0")
    with time_to_upload(tmp_path):
        assert waits() == ("45", "0")
    assert waits() == ("5", "2")


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, "600")
    set_waits()
    (tmp_path / "a").touch()
    with time_to_upload(tmp_path / "a"):
        assert waits() == ("600", "0")
    with single_attempt():
        assert waits() == ("600", "0")
    with pytest.raises(ZeroDivisionError), single_attempt():
        raise ZeroDivisionError
    assert waits() == ("600", "2")
