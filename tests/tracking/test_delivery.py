import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from matplotlib.figure import Figure

from dmx.errors import RunError
from dmx.tracking import delivery
from dmx.tracking.checkpoints import checkpoint_names, step_of
from dmx.tracking.delivery import Target, deliver
from dmx.tracking.process import process_of, process_tags, require_free, silent_for
from dmx.tracking.reap import reap, sync
from dmx.tracking.session import ActiveRun, checkpoint_path, resume_run
from dmx.tracking.store import RunInfo

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


def test_what_the_store_refuses_is_told_and_left_out(begin: Begin, now: Now, notes: list[str]) -> None:
    with begin() as run:
        run.log_metrics({"good": 1.0, "a(b)": 2.0}, 1)
        run.log_metrics({"good": 3.0}, 2)
        run.log_params({"p": 1})
        run.log_params({"p": 2})
    info = now(run)
    assert info.metrics == {"good": 3.0}
    assert info.params == {"p": "1"}
    assert info.status == "FINISHED"
    assert len(notes) == 1


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
    monkeypatch.setattr(delivery, "_HEARTBEAT_SECONDS", -1.0)
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


def test_a_run_of_another_process_is_refused(begin: Begin, now: Now) -> None:
    with begin() as run:
        info = now(run)
        parent = psutil.Process().parent()
        assert parent is not None
        other = {"dmx.pid": str(parent.pid), "dmx.process_started": str(parent.create_time())}
        away = {"dmx.pid": "1", "dmx.host": "other"}
        for tags, free in (
            ({}, True),
            (other, False),
            (away, False),
            ({"dmx.host": "other"}, False),
            (away | {"dmx.heartbeat": long_ago(hours=1)}, True),
            (other | {"dmx.process_started": "1"}, True),
        ):
            changed = RunInfo(**{**vars(info), "tags": {**info.tags, **tags}})
            if free:
                require_free(changed)
            else:
                with pytest.raises(RunError, match="in use by process"):
                    require_free(changed)


def test_abandoned_runs_are_closed_and_the_others_left(
    begin: Begin, train: Any, leave: Any, now: Now, project: Path, notes: list[str]
) -> None:
    gone, alive, away = (begin() for _ in range(3))
    train(gone).go(1, 5)
    for run in (gone, away):
        leave(run)
    gone.store.set_tags(gone.info.id, {"dmx.process_started": "1"})
    away.store.set_tags(away.info.id, {"dmx.host": "other", "dmx.heartbeat": long_ago(hours=3)})
    closed = reap(gone.store, root=project, notify=notes.append)
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
