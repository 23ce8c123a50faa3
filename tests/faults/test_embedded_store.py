"""The project's own run store, an SQLite file: locked, full, and used by several processes at once."""

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.journals import longest_pause, reach
from tests.faults.kills import Project, artifacts_of, runs_of
from tests.faults.together import together

# MLflow itself waits 20 seconds for the lock.
_LOCKED_SECONDS = 26.0
_PROCESSES = 8
_LONGEST_PAUSE = 3.0


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Keep everybody else from writing."""
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute("begin immediate")
        yield
        connection.execute("rollback")


@pytest.mark.slow
def test_a_locked_database_delays_no_step_and_loses_nothing(project: Project) -> None:
    root = project.copy()
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(project.call, root, "train", "balls.yaml", faults={"paced": 2.0})
        reach(root, 3)
        with locked(root / "mlruns/mlflow.db"):
            time.sleep(_LOCKED_SECONDS)
        ended = training.result(100)
    assert ended.code == 0, ended.said
    assert longest_pause(root, 2.0) < _LONGEST_PAUSE
    assert project.losses(root) == []


@pytest.mark.slow
def test_a_database_that_stays_locked_gets_everything_with_a_sync(project: Project) -> None:
    root = project.copy()
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(project.call, root, "train", "balls.yaml", faults={"paced": 0.2})
        reach(root, 3)
        with locked(root / "mlruns/mlflow.db"):
            ended = training.result(100)
    assert ended.code == 0, ended.said
    assert longest_pause(root, 0.2) < _LONGEST_PAUSE
    run_id, _ = artifacts_of(root)
    assert f"dmx runs sync {run_id[:8]}" in ended.said
    with locked(root / "mlruns/mlflow.db"):
        refused = project.call(root, "train", "balls.yaml")
    assert refused.code == 2
    assert refused.err.count("Error: ") == 1
    assert "locked" in refused.said
    assert project.call(root, "runs", "sync", run_id).code == 0
    assert project.losses(root) == []


@pytest.mark.slow
def test_eight_trainings_log_into_one_database_at_once(project: Project) -> None:
    root = project.copy()
    ended = together(root, *[("train", "balls.yaml")] * _PROCESSES, faults={})
    assert [(code, said[-2000:]) for code, said in ended if code] == []
    runs = runs_of(root)
    assert Counter(status for _, status, _ in runs) == {"FINISHED": _PROCESSES}
    assert sorted(names_of(root)) == [f"multiscale-train-{number}" for number in range(1, _PROCESSES + 1)]
    for run_id, _, folder in runs:
        assert differences(project, root, run_id, folder) == []


def names_of(root: Path) -> list[str]:
    with closing(sqlite3.connect(root / "mlruns/mlflow.db")) as connection:
        return [name for (name,) in connection.execute("select name from runs").fetchall()]


def differences(project: Project, root: Path, run_id: str, folder: Path) -> list[str]:
    """Return what of a run is not as a training alone has left it."""
    with closing(sqlite3.connect(root / "mlruns/mlflow.db")) as connection:
        points = connection.execute(
            "select key, step, value from metrics where run_uuid = ? order by key, step", [run_id]
        ).fetchall()
    metrics: dict[str, list[tuple[int, float]]] = {}
    for key, step, value in points:
        metrics.setdefault(key, []).append((step, value))
    known: dict[str, Any] = project.reference.metrics
    found = [key for key in known if metrics.get(key) != known[key]]
    untimed = project.reference.untimed
    found += [key for key in untimed if [step for step, _ in metrics.get(key, [])] != untimed[key]]
    local = root / "mlruns/local" / run_id
    if int((local / "delivered").read_text()) != (local / "journal.jsonl").stat().st_size:
        found.append("journal not delivered")
    missing = {Path(file).parts[0] for file in project.reference.files} - {path.name for path in folder.iterdir()}
    return found + sorted(missing)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_of_two_resumes_at_once_one_is_refused(project: Project, attempt: int) -> None:
    root = project.copy()
    project.call(root, "train", "balls.yaml", at=[("step", 4 + attempt, "KILL")])
    run_id, _ = artifacts_of(root)
    ended = together(root, *[("resume", run_id)] * 2, faults={"paced": 0.3})
    (refused,) = [said for code, said in ended if code == 2]
    assert sorted(code for code, _ in ended) == [0, 2], ended
    assert refused.count("Error: ") == 1
    assert "in use by process" in " ".join(refused.split())
    assert project.losses(root) == []
