import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from matplotlib.figure import Figure

from dmx.errors import RunError
from dmx.tracking import delivery, process
from dmx.tracking.checkpoints import checkpoint_names, step_of
from dmx.tracking.delivery import Target, deliver
from dmx.tracking.process import process_of, process_tags, require_free, silent_for
from dmx.tracking.reap import reap, sync
from dmx.tracking.session import ActiveRun, checkpoint_path, resume_run
from dmx.tracking.store import RunInfo, RunReader, StoreClosedError

Begin = Callable[..., ActiveRun]
Now = Callable[[ActiveRun], RunInfo]


def test_an_outage_loses_nothing_and_stops_nobody(
    begin: Begin, train: Any, now: Now, remote: Any, project: Path, notes: list[str]
) -> None:
    run = begin(remote)
    remote.down = True
    training = train(run)
    start = time.monotonic()
    training.start()
    training.go(1, 20)
    assert time.monotonic() - start < 2
    run.end("FINISHED")
    assert now(run).status == "RUNNING"
    assert any(f"dmx runs sync {run.info.id[:8]}" in note for note in notes)
    assert len(notes) == 2
    remote.down = False
    assert sync(remote, now(run), root=project, notify=notes.append) > 0
    info = now(run)
    assert info.status == "FINISHED"
    assert [point.step for point in remote.metric_history(info.id, "train/loss")] == list(range(1, 21))
    assert sync(remote, info, root=project, notify=notes.append) == 0
    assert sync(remote, info, again=True, root=project, notify=notes.append) > 0
    assert now(run).metrics == info.metrics
    assert len(remote.metric_history(info.id, "train/loss")) == 20


@pytest.mark.parametrize(("failures", "status"), [(1, "FINISHED"), (2, "RUNNING")])
def test_one_failure_at_the_end_leaves_nothing_to_the_user(
    begin: Begin, now: Now, remote: Any, monkeypatch: pytest.MonkeyPatch, failures: int, status: str
) -> None:
    monkeypatch.setattr(delivery, "_ONCE_MORE_SECONDS", 0.0)
    run = begin(remote)
    inner, left = remote.log_metrics, [ConnectionError("nobody there")] * failures

    def log_metrics(run_id: str, points: Any) -> None:
        if left:
            raise left.pop()
        inner(run_id, points)

    monkeypatch.setattr(remote, "log_metrics", log_metrics)
    run.log_metrics({"loss": 1.0}, 1)
    run.end("FINISHED")
    assert now(run).status == status


def test_files_for_a_remote_store_wait_here_and_are_uploaded(
    begin: Begin, train: Any, now: Now, remote: Any, project: Path, tmp_path: Path
) -> None:
    with begin(remote) as run:
        training = train(run)
        training.start()
        training.go(1, 20)
        run.log_text("config.yaml", "seed: 1")
        run.log_figure("figures/curve.png", Figure(figsize=(1, 1)))
        training.end()
    info = now(run)
    assert run.files == project / "mlruns" / "local" / info.id / "files"
    top = remote.list_artifacts(info.id)
    assert sorted(top) == ["checkpoints", "config.yaml", "figures", "history", "log.txt"]
    kept = sorted(set(checkpoint_names(info.tags).values()))
    assert sorted(remote.list_artifacts(info.id, "checkpoints")) == kept
    assert step_of(kept[-1]) == 20
    here = checkpoint_path(remote, info, "best", root=project)
    assert here.is_relative_to(run.files)
    there = checkpoint_path(remote, info, "best", root=tmp_path / "other")
    assert (there / "model.safetensors").read_bytes() == b"weights"
    assert there == checkpoint_path(remote, info, "best", root=tmp_path / "other")


def test_a_missing_checkpoint_is_explained(begin: Begin, train: Any, now: Now, project: Path) -> None:
    with begin() as run:
        with pytest.raises(RunError, match="It has none"):
            checkpoint_path(run.store, run.info, "best", root=project)
        train(run).start()
    with pytest.raises(RunError, match="It has initial"):
        checkpoint_path(run.store, now(run), "best", root=project)
    (run.files / "checkpoints").rename(run.files / "moved")
    with pytest.raises(RunError, match="is not at"):
        checkpoint_path(run.store, now(run), "initial", root=project)


def test_what_the_store_refuses_is_told_and_laid_aside(
    begin: Begin, now: Now, project: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    with begin() as run:
        run.log_metrics({"good": 1.0, "a(b)": 2.0}, 1)
        run.log_metrics({"good": 3.0}, 2)
        run.log_params({"p": 1})
        run.log_params({"p": 2})
    info = now(run)
    assert info.metrics == {"good": 3.0}
    assert info.params == {"p": "1"}
    assert info.status == "FINISHED"
    assert not run.delivered
    assert len(notes) == 2
    assert f"refused a part of it; that is kept in '{run.folder.refused}'" in notes[1]
    # It is tried again, and taken where the store has changed its mind.
    assert sync(run.store, info, root=project, notify=notes.append) == 0
    assert len(notes) == 4
    monkeypatch.setattr(run.store, "log_params", lambda *_: None)
    assert sync(run.store, info, root=project, notify=notes.append) == 1
    assert sync(run.store, info, again=True, root=project, notify=lambda _: None) > 0


@pytest.mark.parametrize("what", ["run", "experiment"])
def test_a_run_in_the_trash_loses_nothing(
    begin: Begin, train: Any, now: Now, project: Path, notes: list[str], what: str
) -> None:
    """Whoever restores it and delivers gets all of it."""
    run = begin()
    store: Any = run.store
    training = train(run)
    training.start()
    training.go(1, 5)
    client = store._client
    getattr(client, f"delete_{what}")(run.info.id if what == "run" else run.info.experiment_id)
    run._courier._attempt()
    training.go(6, 20)
    run.set_tags({"late": "yes"})
    training.end()
    run.end("FINISHED")
    assert not run.delivered
    assert len(notes) == 2
    assert "is in the trash of the run store" in notes[0]
    assert "The training goes on" in notes[0]
    assert "not yet complete" in notes[1]
    assert "Restore it there" in notes[1]
    assert f"Then run 'dmx runs sync {run.info.id[:8]}'" in notes[1]
    with pytest.raises(StoreClosedError, match="is in the trash"):
        sync(store, run.info, root=project, notify=notes.append)
    getattr(client, f"restore_{what}")(run.info.id if what == "run" else run.info.experiment_id)
    assert sync(store, now(run), root=project, notify=notes.append) > 0
    info = now(run)
    assert (info.status, info.tags["late"]) == ("FINISHED", "yes")
    assert [point.step for point in store.metric_history(info.id, "train/loss")] == list(range(1, 21))
    assert checkpoint_names(info.tags)["last"].endswith("20")
    assert len(notes) == 2


def test_a_run_that_is_deleted_for_good_is_named_as_that(store: Any) -> None:
    assert "deleted for good" in store.why_closed("0" * 32)


def test_metrics_go_in_batches(begin: Begin, leave: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin()
    leave(run)
    sizes: list[int] = []
    monkeypatch.setattr(delivery, "_METRICS_PER_BATCH", 4)
    monkeypatch.setattr(run.store, "log_metrics", lambda run_id, points: sizes.append(len(points)))
    for step in range(5):
        run.log_metrics({"a": 1.0, "b": 2.0}, step)
    run.set_tags({"x": "y"})
    run.log_metrics({"a": 1.0}, 9)
    deliver(Target(run.store, run.info.id, run.folder), print)
    assert sizes == [4, 4, 2, 1]


def test_the_thread_beats_and_survives_anything(
    begin: Begin, now: Now, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    monkeypatch.setattr(process, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(delivery, "_EVERY_SECONDS", 0.01)
    with begin(tags={"dmx.heartbeat": "2000-01-01T00:00:00+00:00"}) as run:
        deadline = time.monotonic() + 20
        while silent_for(now(run).tags) > timedelta(hours=1) and time.monotonic() < deadline:
            run._courier._wake.set()
            time.sleep(0.01)
        assert silent_for(now(run).tags) < timedelta(minutes=1)
        monkeypatch.setattr(delivery, "deliver", lambda *_, **__: 1 / 0)
        run._courier._attempt()
        monkeypatch.undo()
    assert ["ZeroDivisionError" in note for note in notes] == [True]


def test_a_store_that_takes_nothing_is_not_waited_for(
    begin: Begin, now: Now, remote: Any, project: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    """As long as something arrives the end waits; then it says what is missing, and the run stays locked meanwhile."""
    monkeypatch.setattr(delivery, "_LONGEST_SILENCE_SECONDS", 0.3)
    inner, gate = remote.log_metrics, threading.Event()
    run = begin(remote)

    def log_metrics(run_id: str, points: Any) -> None:
        if points[0].step == 3:
            gate.wait(30)
        time.sleep(0.1)
        inner(run_id, points)

    monkeypatch.setattr(remote, "log_metrics", log_metrics)
    for step in (1, 2, 3):
        run.log_metrics({"loss": 1.0}, step)
        run.set_tags({"step": str(step)})
    run.end("FINISHED")
    assert len(remote.metric_history(run.info.id, "loss")) == 2
    assert [f"dmx runs sync {run.info.id[:8]}" in note for note in notes] == [True]
    with pytest.raises(RunError, match="in use"):
        sync(remote, now(run), root=project, notify=notes.append)
    gate.set()
    deadline = time.monotonic() + 20
    while run.folder._lock is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sync(remote, now(run), root=project, notify=notes.append) == 0
    assert now(run).status == "FINISHED"


def test_a_process_is_told_by_its_start_not_by_its_number_alone() -> None:
    tags = process_tags()
    assert process_of(tags) == "alive"
    assert process_of(tags | {"dmx.process_started": "1.0"}) == "gone"
    assert process_of(tags | {"dmx.pid": str(max(psutil.pids()) + 100_000)}) == "gone"
    assert process_of(tags | {"dmx.host": "other"}) == "elsewhere"
    assert process_of({}) == "elsewhere"
    assert silent_for({}) == timedelta.max


def long_ago(**time_ago: int) -> str:
    return (datetime.now(UTC) - timedelta(**time_ago)).isoformat()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WATCHED_SECONDS", 0.3)
    monkeypatch.setattr(process, "_POLL_SECONDS", 0.02)
    for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID"):
        monkeypatch.delenv(name, raising=False)


AWAY = {"dmx.pid": "1", "dmx.host": "other"}


def left_behind(info: RunInfo, **tags: str) -> RunInfo:
    return replace(info, tags={**info.tags, **tags})


class Watched:
    """A store in which a run of another machine goes on giving signs of life, by whatever clock, or does not."""

    def __init__(self, run: RunInfo, *, beats: bool) -> None:
        self.run = run
        self.beats = beats
        self.looks = 0

    def get_run(self, run_id: str) -> RunInfo:
        assert run_id == self.run.id
        self.looks += 1
        return left_behind(self.run, **({"dmx.heartbeat": f"beat {self.looks}"} if self.beats else {}))


@pytest.mark.parametrize("clock", [timedelta(), timedelta(hours=-5), timedelta(hours=5)])
@pytest.mark.parametrize("beats", [True, False])
@pytest.mark.usefixtures("quick")
def test_a_run_of_another_machine_is_free_when_its_process_is_silent(
    begin: Begin, now: Now, clock: timedelta, beats: bool
) -> None:
    """Clocks that are ahead or behind neither hold a dead run back nor give a live one away."""
    with begin() as run:
        heartbeat = (datetime.now(UTC) + clock).isoformat()
        away = left_behind(now(run), **AWAY, **{"dmx.heartbeat": heartbeat})
        said: list[str] = []
        store = cast(RunReader, Watched(away, beats=beats))
        if beats:
            with pytest.raises(RunError, match=r"in use by process 1 on other.*sign of life.*--take-over"):
                require_free(store, away, notify=said.append)
        else:
            assert require_free(store, away, notify=said.append)[:2] == ("other", "1")
        assert "watching for" in said[0]


@pytest.mark.usefixtures("quick")
def test_a_live_process_of_this_machine_is_never_replaced(begin: Begin, now: Now) -> None:
    with begin() as run:
        info, parent = now(run), psutil.Process().parent()
        assert parent is not None
        other = {"dmx.pid": str(parent.pid), "dmx.process_started": str(parent.create_time())}
        store = cast(RunReader, Watched(info, beats=False))
        for take_over in (False, True):
            with pytest.raises(RunError, match="in use by process"):
                require_free(store, left_behind(info, **other), take_over=take_over, notify=print)
        require_free(store, info, notify=print)
        require_free(store, left_behind(info, **{**other, "dmx.process_started": "1"}), notify=print)
        assert cast(Watched, store).looks == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("before", "after", "at_once"),
    [
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}, True),
        # Two nodes of one job.
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}, False),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "a"}, {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "b"}, False),
        ({"PBS_JOBID": "7.host"}, {"PBS_JOBID": "7.host"}, True),
        ({"LSB_JOBID": "7", "LSB_JOBINDEX": "1"}, {"LSB_JOBID": "7", "LSB_JOBINDEX": "2"}, False),
        ({"JOB_ID": "7", "SGE_TASK_ID": "3"}, {"JOB_ID": "7", "SGE_TASK_ID": "3"}, True),
        ({}, {}, False),
    ],
)
def test_a_job_that_was_put_back_into_the_queue_takes_over_at_once(
    begin: Begin,
    now: Now,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, str],
    after: dict[str, str],
    at_once: bool,
) -> None:
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    with begin() as run:
        away = left_behind(now(run), **AWAY)
        for name in before:
            monkeypatch.delenv(name)
        for name, value in after.items():
            monkeypatch.setenv(name, value)
        store, said = Watched(away, beats=True), list[str]()
        if at_once:
            require_free(cast(RunReader, store), away, notify=said.append)
            assert store.looks == 0
            assert "takes over" in said[0]
        else:
            with pytest.raises(RunError, match="in use"):
                require_free(cast(RunReader, store), away, notify=said.append)


@pytest.mark.usefixtures("quick")
def test_who_is_taken_over_sees_it_and_leaves_the_run_alone(
    begin: Begin, now: Now, project: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    monkeypatch.setattr(process, "BEAT_SECONDS", 0.02)
    old = begin()
    old.log_metrics({"loss": 1.0}, 1)
    old._courier._attempt()
    # The other process, of another machine: it has no lock of this one.
    old.store.set_tags(old.info.id, AWAY)
    deadline = time.monotonic() + 20
    while not old._courier.taken_by and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(RunError, match="was taken over by process 1 on other"):
        old.require_own()
    old.log_metrics({"loss": 2.0}, 2)
    old.end("FAILED", "taken over")
    info = now(old)
    assert (info.status, info.metrics) == ("RUNNING", {"loss": 1.0})
    assert info.tags["dmx.host"] == "other"
    said: list[str] = []
    watched = cast(RunReader, Watched(info, beats=True))
    owner = require_free(watched, info, take_over=True, notify=said.append)
    assert "both write to the run until it sees this" in said[0]
    with resume_run(old.store, info, root=project, notify=notes.append, replaces=owner) as new:
        assert now(new).tags["dmx.pid"] == str(os.getpid())
    assert now(new).status == "FINISHED"


def test_the_tags_of_a_job_go_with_it(
    begin: Begin, leave: Any, now: Now, project: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run = begin()
    assert now(run).tags["dmx.job"] == "slurm 7"
    leave(run)
    monkeypatch.delenv("SLURM_JOB_ID")
    with resume_run(run.store, now(run), root=project, notify=notes.append) as again:
        assert "dmx.job" not in now(again).tags


@pytest.mark.usefixtures("quick")
def test_runs_of_other_machines_are_closed_when_they_are_silent(
    begin: Begin, leave: Any, now: Now, project: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    dead, ahead, alive, heard = (begin() for _ in range(4))
    for run, heartbeat in (
        (dead, long_ago(minutes=11)),
        (ahead, long_ago(hours=-3)),
        (alive, long_ago(hours=3)),
        (heard, long_ago(minutes=2)),
    ):
        leave(run)
        run.store.set_tags(run.info.id, {**AWAY, "dmx.heartbeat": heartbeat})
    inner = dead.store.get_run

    def get_run(run_id: str) -> RunInfo:
        found = inner(run_id)
        return left_behind(found, **{"dmx.heartbeat": "now"}) if run_id == alive.info.id else found

    monkeypatch.setattr(dead.store, "get_run", get_run)
    closed = reap(dead.store, root=project, notify=notes.append)
    assert {item.run.id for item in closed} == {dead.info.id, ahead.info.id}
    assert "No sign of life from other" in closed[0].reason
    assert "3 runs of other machines gave no sign of life; watching" in notes[-1]


@pytest.mark.usefixtures("quick")
def test_abandoned_runs_are_closed_and_the_others_left(
    begin: Begin, train: Any, leave: Any, now: Now, project: Path, notes: list[str]
) -> None:
    gone, alive, away = (begin() for _ in range(3))
    train(gone).go(1, 5)
    for run in (gone, away):
        leave(run)
    gone.store.set_tags(gone.info.id, {"dmx.process_started": "1"})
    away.store.set_tags(away.info.id, {"dmx.host": "other", "dmx.heartbeat": long_ago(hours=3)})
    closed = reap(gone.store, stale=timedelta(hours=4), root=project, notify=notes.append)
    assert [item.run.id for item in closed] == [gone.info.id]
    assert now(gone).status == "KILLED"
    assert "is gone" in now(gone).tags["dmx.end_reason"]
    assert now(gone).metrics["val/dice"] == 0.1
    assert reap(gone.store, stale=timedelta(hours=4), root=project, notify=notes.append) == []
    (stale,) = reap(gone.store, stale=timedelta(hours=2), root=project, notify=notes.append)
    assert stale.run.id == away.info.id
    assert now(alive).status == "RUNNING"
    alive.end("FINISHED")
    with resume_run(gone.store, now(gone), root=project, notify=notes.append):
        assert now(gone).status == "RUNNING"
        assert "dmx.end_reason" not in now(gone).tags


def test_a_run_that_had_ended_itself_keeps_its_status(
    begin: Begin, now: Now, remote: Any, project: Path, notes: list[str]
) -> None:
    run = begin(remote)
    remote.down = True
    run.log_metrics({"loss": 1.0}, 1)
    run.end("FINISHED")
    remote.down = False
    remote.set_tags(run.info.id, {"dmx.process_started": "1"})
    (closed,) = reap(remote, root=project, notify=notes.append)
    assert closed.run.status == "FINISHED"


def test_a_locked_run_is_not_reaped(begin: Begin, now: Now, project: Path, notes: list[str]) -> None:
    with begin(tags={"dmx.process_started": "1"}) as run:
        assert reap(run.store, root=project, notify=notes.append) == []
        assert now(run).status == "RUNNING"


def test_only_the_machine_with_the_journal_can_sync(begin: Begin, now: Now, tmp_path: Path, notes: list[str]) -> None:
    with begin() as run:
        pass
    # From another folder it is the same journal.
    assert sync(run.store, now(run), root=tmp_path, notify=notes.append) == 0
    run.folder.path.rename(tmp_path / "on another machine")
    with pytest.raises(RunError, match="no journal"):
        sync(run.store, now(run), root=tmp_path, notify=notes.append)
