"""Close runs that nobody works on any more."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from dmx.errors import RunError
from dmx.tracking.checkpoints import checkpoint_names, kept_models
from dmx.tracking.creation import settle_all
from dmx.tracking.delivery import Notify, Target, deliver
from dmx.tracking.folder import run_folder
from dmx.tracking.location import runs_folder
from dmx.tracking.process import process_of, silent_for
from dmx.tracking.store import RunInfo, RunStore

_ALL = 1_000_000


@dataclass(frozen=True)
class Reaped:
    """A run that was closed: what it was, and why."""

    run: RunInfo
    reason: str


def reap(store: RunStore, *, stale: timedelta | None = None, root: Path | None = None, notify: Notify) -> list[Reaped]:
    """Set runs KILLED whose process is gone.

    What their journals still hold is delivered first; a run that had ended itself gets its own status.

    Args:
        store: Where the runs are.
        stale: Also close runs of other machines whose last sign of life is older than this.
        root: Folder of the project.
        notify: Gets a sentence when something cannot be delivered.
    """
    closed = []
    settle_all(store, runs_folder(store.uri, root))
    for run in store.list_runs(limit=_ALL):
        reason = _reason(run, stale)
        if run.status == "RUNNING" and reason and _close(store, run, reason, root=root, notify=notify):
            closed.append(Reaped(store.get_run(run.id), reason))
    return closed


def _reason(run: RunInfo, stale: timedelta | None) -> str:
    where = process_of(run.tags)
    if where == "gone":
        return f"Its process {run.tags.get('dmx.pid', '')} is gone."
    silence = silent_for(run.tags)
    if where == "elsewhere" and stale is not None and silence > stale:
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
        return deliver(Target(store, run.id, folder), notify, again=again)
    finally:
        folder.unlock()
