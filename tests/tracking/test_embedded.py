"""The database file of a project: looked at without disturbing whoever works with it."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dmx.errors import RunError
from dmx.tracking import embedded

ELSEWHERE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("INSERT INTO t VALUES (2)")
connection.commit()
connection.close()
"""


def test_opening_a_store_again_keeps_the_locks_of_the_first_connection(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as first:
        first.execute("PRAGMA journal_mode=WAL")
        first.execute("CREATE TABLE t (x)")
        first.execute("INSERT INTO t VALUES (1)")
        first.commit()
        with embedded.opening(database):
            pass
        # A process that believes that it is the last one removes the log of the others when it ends.
        subprocess.run([sys.executable, "-c", ELSEWHERE, str(database)], check=True)
        assert (tmp_path / "mlflow.db-wal").exists()
        first.execute("INSERT INTO t VALUES (3)")
        first.commit()
        assert [x for (x,) in first.execute("SELECT x FROM t")] == [1, 2, 3]


def test_a_file_that_is_no_database_stays_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "mlflow.db"
    other.write_text("notes of somebody, not a database " * 20)
    before = other.read_bytes()
    with pytest.raises(RunError, match="is no SQLite database"), embedded.opening(other):
        pass
    assert other.read_bytes() == before
    other.write_bytes(b"")
    with embedded.opening(other):
        pass
