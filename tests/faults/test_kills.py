"""A training that is killed at any moment, and resumed, ends with the same bits as the one that was not."""

import contextlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.kills import Project, Tally, account, artifacts_of, random_moment, runs_of, survive

_KILLS_PER_RUN = 15
MODES = ("plain", "workers and fp16", "artifacts apart")
# For each way to train: at least that many kills in `make test-all`.
KILLS = {**dict.fromkeys(MODES, 70), "images": 20, "images and fixed features": 10}


def at(point: str, count: int = 1, what: str = "KILL") -> dict[str, Any]:
    return {"at": [(point, count, what)]}


# Each of them hits another place: see tests/faults/kills_board.py.
NAMED_MOMENTS: list[Mapping[str, Any]] = [
    at("noted"),
    at("created"),
    at("any", 150),
    at("half-written", 2),
    at("half-written", 6),
    at("step", 4),
    at("published", 3),
    at("fsync", 12),
    at("stepped", 5),
    at("rename", 14),
    at("validated"),
    at("unlink", 3),
    at("commit", 9),
    at("committed", 30),
]


def show(mode: str, tallies: list[Tally]) -> None:
    """Print what docs/reliability.md says."""
    windows = Counter(window for tally in tallies for window in tally.kills)
    print(f"\n{mode}: {windows.total()} kills of {len(tallies)} trainings")
    for window, count in windows.most_common():
        print(f"  {count:4d} {window}")
    print(f"  {sum(tally.delivering for tally in tallies):4d} of them while the journal was on its way to the store")


def test_a_training_survives_a_kill_in_each_part_of_it(project: Project) -> None:
    """The slow tests know more moments."""
    root = project.copy()
    moments = [at("created"), at("half-written", 6), at("step", 4), at("validated"), at("published", 2)]
    tally = survive(project, root, moments)
    assert project.losses(root) == []
    assert tally.kills == [
        "while the run is created",
        "while a checkpoint is written",
        "in a step",
        "between validation and checkpoint",
        "between steps",
    ]


def test_what_is_left_out_of_a_checkpoint_is_noticed(project: Project) -> None:
    """The negative control: without the sampler's position a resumed training ends differently."""
    root = project.copy()
    project.call(root, "train", "balls.yaml", **at("step", 4))
    run_id, _ = artifacts_of(root)
    ended = project.call(root, "resume", run_id, faults={"without_sampler_position": True})
    assert ended.code == 0, ended.said
    found = account(root)
    assert any(difference.startswith("state: /model/") for difference in found.differences(project.reference))
    assert any(difference.startswith("metrics: ") for difference in found.differences(project.reference))


@pytest.mark.slow
@pytest.mark.parametrize("mode", KILLS)
def test_a_training_survives_kills_at_random_moments(projects: Mapping[str, Project], mode: str) -> None:
    project = projects[mode]
    rng = random.Random(mode)
    tallies: list[Tally] = []
    while sum(len(tally.kills) for tally in tallies) < KILLS[mode]:
        root = project.copy()
        moments = [random_moment(rng, project.profile) for _ in range(_KILLS_PER_RUN)]
        tally = survive(project, root, moments)
        tallies.append(tally)
        assert project.losses(root) == [], moments[: tally.processes]
    show(mode, tallies)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_training_survives_kills_at_named_points(projects: Mapping[str, Project], mode: str) -> None:
    project = projects[mode]
    root = project.copy()
    tally = survive(project, root, NAMED_MOMENTS)
    assert project.losses(root) == []
    show(f"{mode}, named points", [tally])


# What the note about a new run is told, and what its journal is told first.
BEGINNINGS = [
    *(at("noted", count) for count in (1, 2, 3)),
    at("created"),
    *(at("journaled", count) for count in (1, 2, 3)),
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "artifacts apart"])
def test_a_run_that_is_killed_while_it_is_made_goes_on(projects: Mapping[str, Project], mode: str) -> None:
    project = projects[mode]
    tallies = []
    for moment in BEGINNINGS:
        root = project.copy()
        tallies.append(survive(project, root, [moment]))
        assert project.losses(root) == [], moment
        shutil.rmtree(root)
    assert sum(len(tally.kills) for tally in tallies) == len(BEGINNINGS)
    show(f"{mode}, beginnings", tallies)


STOPS = {
    "SIGTERM": ([("step", 5, "TERM")], 143, "step_000000005"),
    "SIGINT": ([("step", 5, "INT")], 130, "step_000000005"),
    # The second one comes while the checkpoint is written, which is then absent.
    "SIGINT twice": ([("step", 5, "INT"), ("half-written", 10, "INT")], 130, "step_000000004"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "name"),
    [(mode, name) for mode in MODES[:2] for name in STOPS],
)
def test_a_signal_ends_a_training_that_goes_on_later(projects: Mapping[str, Project], mode: str, name: str) -> None:
    project = projects[mode]
    signals, code, newest = STOPS[name]
    root = project.copy()
    stopped = project.call(root, "train", "balls.yaml", at=signals)
    assert stopped.code == code, stopped.said
    ((run_id, status, folder),) = runs_of(root)
    assert status == "KILLED"
    assert max(path.name for path in (folder / "checkpoints").glob("step_*")) == newest
    assert project.call(root, "resume", run_id).code == 0
    assert project.losses(root) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES[:2])
def test_a_closed_terminal_ends_a_training_that_goes_on_later(projects: Mapping[str, Project], mode: str) -> None:
    """The step is finished and saved, although nothing can be shown any more."""
    project = projects[mode]
    root = project.copy()
    closed = project.call(root, "train", "balls.yaml", terminal=True, at=[("step", 5, "CALL")])
    assert closed.code == 129
    ((run_id, status, folder),) = runs_of(root)
    assert status == "KILLED"
    assert not list((folder / "checkpoints").glob(".*"))
    assert project.call(root, "resume", run_id).code == 0
    assert project.losses(root) == []


def processes_in(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="One core prepares cases in the process itself.")
def test_a_kill_while_cases_are_prepared_leaves_no_process(project: Project) -> None:
    root = project.copy()
    shutil.rmtree(root / "mlruns/cache")
    killed = project.call(root, "train", "balls.yaml", faults={"killed_while_preparing": True})
    assert killed.code == -9
    deadline = time.monotonic() + 60
    while processes_in(root) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_in(root) == []
    assert runs_of(root) == []
    assert project.call(root, "train", "balls.yaml", faults={"one_core": True}).code == 0
    assert project.losses(root) == []
