"""Close runs that nobody works on any more."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from dmx.errors import RunError
from dmx.tracking.checkpoints import checkpoint_names, kept_models
from dmx.tracking.creation import settle_all
from dmx.tracking.delivery import Notify, Target, deliver, deliver_refused
from dmx.tracking.folder import run_folder
from dmx.tracking.location import runs_folder
from dmx.tracking.process import WATCHED_SECONDS, process_of, silent_for, still_beating
from dmx.tracking.store import RunInfo, RunStore

_ALL = 1_000_000
_STALE = timedelta(minutes=10)
_CLOCKS_APART = timedelta(minutes=1)


@dataclass(frozen=True)
class Reaped:
    """A run that was closed: what it was, and why."""

    run: RunInfo
    reason: str


def reap(store: RunStore, *, stale: timedelta | None = None, root: Path | None = None, notify: Notify) -> list[Reaped]:
    """Set runs KILLED whose process is gone.

    What their journals still hold is delivered first; a run that had ended itself gets its own status. Runs of other
    machines are watched for a minute: clocks of two machines cannot be compared.

    Args:
        store: Where the runs are.
        stale: Close runs of other machines only when their last sign of life is older than this; ``None``: 10 minutes.
        root: Folder of the project.
        notify: Gets a sentence when something cannot be delivered, or is waited for.
    """
    settle_all(store, runs_folder(store.uri, root))
    running = [run for run in store.list_runs(limit=_ALL) if run.status == "RUNNING"]
    away = [run for run in running if process_of(run.tags) == "elsewhere" and _seems_dead(run, stale or _STALE)]
    if away:
        notify(
            f"{len(away)} run{'s' if len(away) != 1 else ''} of other machines gave no sign of life; watching for "
            f"{WATCHED_SECONDS:.0f} s."
        )
    beating = still_beating(store, away)
    silent = {run.id for run in away} - beating
    closed = []
    for run in running:
        reason = _reason(run, silent=run.id in silent)
        if reason and _close(store, run, reason, root=root, notify=notify):
            closed.append(Reaped(store.get_run(run.id), reason))
    return closed


def _seems_dead(run: RunInfo, stale: timedelta) -> bool:
    """Tell whether a run is silent for too long, or by a clock that is ahead, which says nothing."""
    silence = silent_for(run.tags)
    return silence > stale or silence < -_CLOCKS_APART


def _reason(run: RunInfo, *, silent: bool) -> str:
    if process_of(run.tags) == "gone":
        return f"Its process {run.tags.get('dmx.pid', '')} is gone."
    if silent:
        return f"No sign of life from {run.tags.get('dmx.host', 'its machine')} since {run.tags.get('dmx.heartbeat')}."
    return ""


def _close(store: RunStore, run: RunInfo, reason: str, *, root: Path | None, notify: Notify) -> bool:
    folder = run_folder(store, run.id, root)
    try:
        folder.lock()
    except RunError:
        # A process began to work on it since it was listed.
        return False
    try:
        folder.sweep()
        deliver(Target(store, run.id, folder), notify)
        current = store.get_run(run.id)
        if current.status == "RUNNING":
            store.log_checkpoints(run.id, kept_models(checkpoint_names(current.tags)))
            store.set_tags(run.id, {"dmx.end_reason": reason})
            store.set_status(run.id, "KILLED")
    finally:
        folder.unlock()
    return True


def sync(store: RunStore, run: RunInfo, *, again: bool = False, root: Path | None = None, notify: Notify) -> int:
    """Deliver what the journal of a run holds, and return the number of entries.

    Args:
        store: Where the run is.
        run: The run.
        again: Deliver everything from the beginning.
        root: Folder of the project.
        notify: Gets a sentence for each entry that the store refuses.

    Raises:
        RunError: A process works on the run, this machine has no journal of it, or the store cannot be reached.
    """
    folder = run_folder(store, run.id, root)
    if not folder.journal.is_file():
        raise RunError(
            f"This machine has no journal of run '{run.experiment}/{run.name}' ({folder.journal}). "
            "Sync it on the machine and in the project where it ran."
        )
    folder.lock()
    try:
        target = Target(store, run.id, folder)
        taken = 0 if again else deliver_refused(target, notify)
        return taken + deliver(target, notify, again=again)
    finally:
        folder.unlock()
