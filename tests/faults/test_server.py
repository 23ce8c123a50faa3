"""A team server that dies, hangs, refuses or fails during a training loses nothing and delays nobody."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dmx.cohort.digest import file_sha256
from tests.faults import server as servers
from tests.faults.journals import entries, longest_pause, reach, step_times
from tests.faults.kills import Ended, Project
from tests.faults.server import TeamServer, until

# A step waits for the training's own work only; the other tests of this machine may take the processor for a while.
_LONGEST_PAUSE = 3.0
# At its end a training tries once more to deliver.
_LONGEST_END = 60.0
_STEPS = 18


@pytest.fixture(scope="session")
def team() -> Iterator[TeamServer]:
    if reason := servers.missing():
        pytest.skip(reason)
    team = TeamServer()
    yield team
    team.close()


@dataclass
class Study:
    """A project whose run store is the team's server."""

    project: Project
    team: TeamServer
    root: Path
    name: str

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def call(self, *words: str, **options: Any) -> Ended:
        environment = {"MLFLOW_TRACKING_URI": self.team.uri}
        ended = self.project.call(self.root, *words, environment=environment, **options)
        self._ended = time.time()
        return ended

    def begin(self, pace: float) -> "Future[Ended]":
        """Start a training whose steps take at least so long."""
        self.pace = pace
        words = ("train", "balls.yaml", "--set", f"tracking.experiment={self.name}")
        return self._pool.submit(self.call, *words, faults={"paced": pace})

    @property
    def folder(self) -> Path:
        """Return the folder of the only run on this machine."""
        (folder,) = (self.root / "mlruns/local").iterdir()
        return folder

    def points(self) -> list[tuple[str, int, float, int]]:
        """Return (key, step, value, time) of all that was logged, in its order."""
        found = [entry for entry in entries(self.root) if entry["do"] == "metrics"]
        return [(key, entry["step"], value, entry["time"]) for entry in found for key, value in entry["values"].items()]

    def reach(self, step: int) -> None:
        reach(self.root, step)

    def waited(self) -> float:
        """Return the time between the last entry and the end of the command, in seconds."""
        return self._ended - (self.folder / "journal.jsonl").stat().st_mtime

    def runs(self) -> list[tuple[str, str, str]]:
        """Return (id, status, active or deleted) of all runs that the server ever had of this study."""
        query = "select run_uuid, r.status, r.lifecycle_stage from runs r join experiments using (experiment_id)"
        return [(a, b, c) for a, b, c in self.team.postgres.rows(f"{query} where experiments.name = %s", self.name)]

    def synced(self) -> bool:
        return self.call("runs", "sync", self.folder.name).code == 0

    def delivered(self) -> int:
        file = self.folder / "delivered"
        return int(file.read_text()) if file.exists() else 0

    def losses(self) -> list[str]:
        """Return what the server does not hold exactly once: points, settings, names, models, files, pictures."""
        run_id = self.folder.name
        rows, reference = self.team.postgres.rows, self.project.reference
        found = []
        # In the order of the transactions that wrote them; what came together is in the order of the steps.
        query = "select key, step, value, timestamp from metrics where run_uuid = %s order by xmin::text::bigint, step"
        points = rows(query, run_id)
        if Counter(points) != Counter(self.points()):
            here, there = Counter(self.points()), Counter(points)
            found.append(f"points: missing {list(here - there)[:5]}, more {list(there - here)[:5]}")
        metrics: dict[str, list[tuple[int, float]]] = {}
        for key, step, value, _ in points:
            metrics.setdefault(key, []).append((step, value))
        found += [f"{key}: {metrics.get(key)}" for key, known in reference.metrics.items() if metrics.get(key) != known]
        status = rows("select status, count(*) from runs where run_uuid = %s group by status", run_id)
        if status != [("FINISHED", 1)]:
            found.append(f"status: {status}")
        tags = dict(rows("select key, value from tags where run_uuid = %s", run_id))
        found += [f"{key}: {tags.get(key)}" for key, value in reference.names.items() if tags.get(key) != value]
        params = dict(rows("select key, value from params where run_uuid = %s", run_id))
        if params.keys() != reference.params.keys():
            found.append(f"params: {sorted(params.keys() ^ reference.params.keys())}")
        models = rows(
            "select name, status from logged_models where source_run_id = %s and lifecycle_stage = 'active'", run_id
        )
        if sorted(models) != reference.models:
            found.append(f"models: {models}")
        return found + self._losses_of_files(run_id)

    def _losses_of_files(self, run_id: str) -> list[str]:
        ((uri,),) = self.team.postgres.rows("select artifact_uri from runs where run_uuid = %s", run_id)
        there = self.team.bucket.hashes(uri.removeprefix("mlflow-artifacts:/"))
        files = self.folder / "files"
        here = {path.relative_to(files).as_posix(): file_sha256(path) for path in files.rglob("*") if path.is_file()}
        pictures = [path.removeprefix("images/") for path in there if path.startswith("images/")]
        artifacts = {path: digest for path, digest in there.items() if not path.startswith("images/")}
        found = [f"file {path}" for path in here.keys() | artifacts.keys() if here.get(path) != artifacts.get(path)]
        drawn = [entry for entry in entries(self.root) if entry["do"] == "image"]
        shown = Counter(f"{entry['key'].replace('/', '~')}+step+{entry['step']}" for entry in drawn)
        for suffix in (".png", ".webp"):
            has = Counter(name.partition("+timestamp+")[0] for name in pictures if name.endswith(suffix))
            if has != shown:
                found.append(f"pictures {suffix}: {has} / {shown}")
        left = [path.name for path in (self.folder / "images").rglob("*.png")]
        return found + ([f"pictures left here: {left}"] if left else [])


@pytest.fixture
def study(project: Project, team: TeamServer, request: pytest.FixtureRequest) -> Iterator[Study]:
    yield Study(project, team, project.copy(), request.node.name[:60])
    team.thaw()
    team.postgres.empty()
    team.gate.set("open")
    team.gate.fate, team.gate.met = (b"", ""), 0
    team.gate.late.clear()
    team.bucket.gate.set("open")


def finished(study: Study, training: "Future[Ended]") -> Ended:
    ended = training.result(120)
    assert ended.code == 0, ended.said
    assert len(step_times(study.root)) == _STEPS
    assert longest_pause(study.root, study.pace) < _LONGEST_PAUSE
    return ended


@pytest.mark.slow
def test_a_server_that_is_there_holds_everything_once(study: Study) -> None:
    ended = finished(study, study.begin(0.0))
    assert "cannot be logged" not in ended.said
    assert study.losses() == []


@pytest.mark.slow
def test_a_server_that_dies_for_good_gets_everything_with_a_sync(study: Study) -> None:
    training = study.begin(0.1)
    study.reach(4)
    study.team.kill()
    try:
        ended = finished(study, training)
        assert "dmx runs sync" in ended.said
        assert ended.said.count("The training goes on") == 1
        late = study.call("runs", "sync", study.folder.name)
        assert late.code == 2, late.said
        assert "does not answer" in late.said
    finally:
        study.team.start()
    assert study.losses() != []
    synced = study.call("runs", "sync", study.folder.name)
    assert synced.code == 0, synced.said
    assert study.losses() == []


@pytest.mark.slow
def test_a_server_that_comes_back_is_caught_up_with_during_the_training(study: Study) -> None:
    training = study.begin(2.0)
    study.reach(3)
    study.team.kill()
    held = study.delivered()
    study.team.start()
    until(lambda: study.delivered() > held, 60, "something is delivered again")
    assert not training.done()
    finished(study, training)
    assert study.losses() == []


@pytest.mark.slow
def test_a_server_that_hangs_for_a_while_delays_no_step(study: Study) -> None:
    training = study.begin(1.0)
    study.reach(3)
    study.team.freeze()
    study.reach(12)
    study.team.thaw()
    finished(study, training)
    assert study.losses() == []


@pytest.mark.slow
def test_a_server_that_hangs_for_good_gets_everything_with_a_sync(study: Study) -> None:
    training = study.begin(0.1)
    study.reach(4)
    study.team.freeze()
    ended = finished(study, training)
    assert "dmx runs sync" in ended.said
    assert study.waited() < _LONGEST_END
    study.team.thaw()
    synced = study.call("runs", "sync", study.folder.name)
    assert synced.code == 0, synced.said
    assert study.losses() == []


@pytest.mark.slow
@pytest.mark.parametrize("what", ["database", "bucket", "network", "answers"])
def test_what_a_server_stands_on_fails_and_comes_back(study: Study, what: str) -> None:
    """A stopped database is an answer 500; of the answers every third is lost after the work was done."""
    team = study.team
    breaks = {
        "database": (team.postgres.stop, team.postgres.start),
        "bucket": (lambda: team.bucket.gate.set("closed"), lambda: team.bucket.gate.set("open")),
        "network": (lambda: team.gate.set("closed"), lambda: team.gate.set("open")),
        "answers": (lambda: team.gate.set("swallow"), lambda: team.gate.set("open")),
    }
    stop, start = breaks[what]
    training = study.begin(1.0)
    study.reach(3)
    stop()
    study.reach(9)
    start()
    finished(study, training)
    if study.losses():
        synced = study.call("runs", "sync", study.folder.name)
        assert synced.code == 0, synced.said
    assert study.losses() == []
    # After a lost answer to an upload nothing is asked for ten seconds, so it can be the only one.
    assert what != "answers" or team.gate.swallowed > 0


@pytest.mark.slow
def test_a_lost_answer_to_the_creation_of_a_run_makes_no_second_one(study: Study) -> None:
    study.team.gate.fate = (b"runs/create", "lost")
    finished(study, study.begin(0.0))
    # It was asked for once, so what has trained is what the server made then.
    assert study.team.gate.met == 1
    assert study.runs() == [(study.folder.name, "FINISHED", "active")]
    assert study.losses() == []


@pytest.mark.slow
def test_a_creation_that_is_carried_out_late_leaves_no_run(study: Study) -> None:
    """The server makes a second run when the training has begun with the one that it got by asking again."""
    gate = study.team.gate
    gate.fate = (b"runs/create", "late")
    training = study.begin(0.5)
    study.reach(3)
    gate.late.set()
    finished(study, training)
    assert gate.met == 2
    runs = study.runs()
    assert sorted(stage for _, _, stage in runs) == ["active", "deleted"]
    assert {status for _, status, _ in runs} == {"FINISHED", "KILLED"}
    assert (study.folder.name, "FINISHED", "active") in runs
    assert study.losses() == []
    assert list((study.root / "mlruns/creating").glob("*.jsonl")) == []


@pytest.mark.slow
def test_a_storage_that_hangs_delays_the_end_by_less_than_a_minute(study: Study) -> None:
    """The server answers; what it keeps artifacts in takes connections and says nothing."""
    bucket = study.team.bucket.gate
    training = study.begin(0.3)
    study.reach(4)
    bucket.set("hang")
    ended = finished(study, training)
    assert f"dmx runs sync {study.folder.name[:8]}" in ended.said
    print(f"\nthe end took {study.waited():.0f} s")
    assert study.waited() < _LONGEST_END
    bucket.set("open")
    until(study.synced, 60, "the server takes files again")
    assert study.losses() == []


@pytest.mark.slow
def test_a_full_disk_of_the_database_loses_nothing(study: Study) -> None:
    postgres = study.team.postgres
    if not postgres.has_disk:
        pytest.skip("A small disk needs the right to mount one.")
    training = study.begin(0.3)
    study.reach(2)
    postgres.fill()
    ended = finished(study, training)
    assert "dmx runs sync" in ended.said
    postgres.empty()
    synced = study.call("runs", "sync", study.folder.name)
    assert synced.code == 0, synced.said
    assert study.losses() == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_network_that_comes_and_goes_loses_nothing(study: Study, seed: int) -> None:
    rng = random.Random(seed)
    training = study.begin(0.7)
    study.reach(2)
    while not training.done():
        study.team.gate.set(rng.choice(("open", "closed", "hang", "swallow")))
        wait([training], rng.uniform(0.2, 3.0))
    study.team.gate.set("open")
    finished(study, training)
    synced = study.call("runs", "sync", study.folder.name)
    assert synced.code == 0, synced.said
    assert study.losses() == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["closed", "hang"])
def test_nothing_begins_without_the_server(study: Study, mode: str) -> None:
    study.team.gate.set(mode)
    refused = study.begin(0.0).result(120)
    assert refused.code == 2
    assert refused.err.count("Error: ") == 1
    assert "does not answer" in refused.said
    assert refused.seconds < _LONGEST_END
    assert not (study.root / "mlruns/local").exists()
