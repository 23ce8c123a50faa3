"""Which process works on a run: its tags, whether it still lives, and when another one may take its place."""

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

import psutil

from dmx.errors import RunError
from dmx.tracking.store import RunInfo, RunReader, RunStore

BEAT_SECONDS = 15.0
"""Time between two signs of life of a run."""

WATCHED_SECONDS = 65.0
"""How long a run is watched for a sign of life; those of version 0.1 gave one a minute."""

_POLL_SECONDS = 2.0
# No clock is that wrong.
_LONG_DEAD = timedelta(days=1)
_START_TOLERANCE_SECONDS = 2.0

_JOB, _RESTARTS = "dmx.job", "dmx.job_restarts"
# What a job is known by, the last one for certain, and how often it was begun again, where a scheduler says it.
_SCHEDULERS = (
    ("slurm", ("SLURM_CLUSTER_NAME", "SLURM_JOB_ID"), "SLURM_RESTART_COUNT"),
    ("pbs", ("PBS_JOBID",), None),
    ("lsf", ("LSB_JOBINDEX", "LSB_JOBID"), None),
    ("sge", ("SGE_TASK_ID", "JOB_ID"), None),
)

Owner = tuple[str, str, str]
Notify = Callable[[str], None]


def now() -> str:
    """Return the time in UTC, as tags hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def process_tags() -> dict[str, str]:
    """Return the tags that identify this process: a number alone is used again by others."""
    return {
        "dmx.host": platform.node(),
        "dmx.pid": str(os.getpid()),
        "dmx.process_started": f"{psutil.Process().create_time():.2f}",
        "dmx.heartbeat": now(),
        **job_tags(),
    }


def successor_tags() -> dict[str, str | None]:
    """Return the tags of a process that goes on with a run of another one, of whose job nothing is left."""
    return {_JOB: None, _RESTARTS: None, **process_tags()}


def job_tags() -> dict[str, str]:
    """Return the tags of the cluster's job that this process is; none outside of a job."""
    for scheduler, names, restarts in _SCHEDULERS:
        values = [os.environ.get(name, "") for name in names]
        if values[-1]:
            count = {} if restarts is None else {_RESTARTS: os.environ.get(restarts) or "0"}
            return {_JOB: " ".join([scheduler, *filter(None, values)]), **count}
    return {}


def owner_of(tags: Mapping[str, str]) -> Owner:
    """Return what tells the process of a run from every other one."""
    return (tags.get("dmx.host", ""), tags.get("dmx.pid", ""), tags.get("dmx.process_started", ""))


def process_of(tags: Mapping[str, str]) -> Literal["alive", "gone", "elsewhere"]:
    """Tell whether the process of a run lives on this machine, is gone, or belongs to another machine."""
    if tags.get("dmx.host") != platform.node():
        return "elsewhere"
    try:
        started = psutil.Process(int(tags["dmx.pid"])).create_time()
    except (KeyError, ValueError, psutil.Error):
        return "gone"
    same = abs(started - float(tags.get("dmx.process_started", "0"))) < _START_TOLERANCE_SECONDS
    return "alive" if same else "gone"


def silent_for(tags: Mapping[str, str]) -> timedelta:
    """Return the time since the run's last sign of life by this machine's clock, the longest of all without any.

    It is below zero where the other machine's clock is ahead.
    """
    try:
        return datetime.now(UTC) - datetime.fromisoformat(tags["dmx.heartbeat"])
    except (KeyError, ValueError, TypeError):
        return timedelta.max


def require_free(store: RunReader, run: RunInfo, *, take_over: bool = False, notify: Notify) -> Owner:
    """Refuse a run on which another process works, and return the process whose place may be taken.

    A run of another machine is watched for a minute, as the clocks of two machines cannot be compared. It is free at
    once when this process is the same job of the cluster, which was put back into the queue.

    Args:
        store: Where the run is.
        run: The run.
        take_over: Do not watch, take the place of a process of another machine.
        notify: Told what is waited for, and what is dangerous.

    Raises:
        RunError: A process works on the run.
    """
    where, owner = process_of(run.tags), owner_of(run.tags)
    if run.status != "RUNNING" or where == "gone" or owner == owner_of(process_tags()):
        return owner
    if where == "alive":
        raise _in_use(run, "Wait for it, or end it first.")
    process = f"process {run.tags.get('dmx.pid')} on {run.tags.get('dmx.host')}"
    if _requeued(run.tags):
        notify(f"The job {run.tags[_JOB]} was put back into the queue; it takes over from {process}.")
        return owner
    if take_over:
        notify(
            f"Taking over from {process}, last heard of at {run.tags.get('dmx.heartbeat')}. If it still lives, both "
            "write to the run until it sees this and ends, within a minute where it reaches the store. End it first."
        )
        return owner
    if silent_for(run.tags) > _LONG_DEAD:
        return owner
    notify(f"The run was left by {process} without an end; watching for {WATCHED_SECONDS:.0f} s whether that lives.")
    if still_beating(store, [run]):
        raise _in_use(
            run,
            "It has just given a sign of life. Wait for it, or end it first; where that cannot be, 'dmx resume "
            f"{run.id[:8]} --take-over' insists.",
        )
    return owner


def _in_use(run: RunInfo, advice: str) -> RunError:
    return RunError(
        f"Run '{run.experiment}/{run.name}' is in use by process {run.tags.get('dmx.pid')} on "
        f"{run.tags.get('dmx.host')}. {advice}"
    )


def _requeued(tags: Mapping[str, str]) -> bool:
    """Tell whether this process is the job of a run, begun again; the nodes of one job have one number of restarts."""
    mine = job_tags()
    if _JOB not in mine or mine[_JOB] != tags.get(_JOB):
        return False
    counts = (mine.get(_RESTARTS, ""), tags.get(_RESTARTS, ""))
    return not all(count.isdecimal() for count in counts) or int(counts[0]) > int(counts[1])


def still_beating(store: RunReader, runs: Sequence[RunInfo]) -> set[str]:
    """Watch runs for a while, and return the ids of those that give a sign of life.

    Raises:
        RunError: The store cannot be reached, so that nothing can be said.
    """
    beating: set[str] = set()
    waiting = {run.id: run.tags.get("dmx.heartbeat") for run in runs}
    deadline = time.monotonic() + WATCHED_SECONDS
    while waiting and time.monotonic() < deadline:
        time.sleep(min(_POLL_SECONDS, WATCHED_SECONDS))
        for run_id, before in list(waiting.items()):
            found = store.get_run(run_id)
            if found.status != "RUNNING":
                del waiting[run_id]
            elif found.tags.get("dmx.heartbeat") != before:
                beating.add(run_id)
                del waiting[run_id]
    return beating


class Heartbeat:
    """A thread that keeps saying that this process works on a run, and notices when another one has taken its place.

    Args:
        store: Where the run is.
        run_id: The run, with the tags of this process.

    Attributes:
        taken_by: The process that works on the run instead; empty as long as it is this one.
    """

    def __init__(self, store: RunStore, run_id: str) -> None:
        self.taken_by = ""
        self._store = store
        self._run_id = run_id
        self._owner = owner_of(process_tags())
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="dmx-heartbeat", daemon=True).start()

    def end(self) -> None:
        """Say nothing any more."""
        self._ended.set()

    def _run(self) -> None:
        while not self.taken_by and not self._ended.wait(BEAT_SECONDS):
            # A store that cannot be reached is told of by whoever delivers.
            with suppress(Exception):
                self.beat()

    def beat(self) -> None:
        """Give a sign of life, unless another process has taken the run."""
        tags = self._store.get_run(self._run_id).tags
        if owner_of(tags) != self._owner:
            self.taken_by = f"process {tags.get('dmx.pid')} on {tags.get('dmx.host')}"
        elif not self._ended.is_set():
            self._store.set_tags(self._run_id, {"dmx.heartbeat": now()})
