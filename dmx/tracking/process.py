"""Which process works on a run: its tags, and whether it still lives."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal

import psutil

from dmx.errors import RunError
from dmx.tracking.store import RunInfo

_FRESH = timedelta(minutes=10)
_START_TOLERANCE_SECONDS = 2.0


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
    }


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
    """Return the time since the run's last sign of life, the longest of all without any."""
    try:
        return datetime.now(UTC) - datetime.fromisoformat(tags["dmx.heartbeat"])
    except (KeyError, ValueError, TypeError):
        return timedelta.max


def require_free(run: RunInfo) -> None:
    """Refuse a run on which another process works.

    Raises:
        RunError: A process of this machine, or one of another machine that was heard of lately, works on it.
    """
    where = process_of(run.tags)
    own = where == "alive" and run.tags.get("dmx.pid") == str(os.getpid())
    if run.status != "RUNNING" or own:
        return
    if where == "alive" or (where == "elsewhere" and silent_for(run.tags) < _FRESH):
        raise RunError(
            f"Run '{run.experiment}/{run.name}' is in use by process {run.tags.get('dmx.pid')} on "
            f"{run.tags.get('dmx.host')}. Wait for it, or end it first. 'dmx runs reap' closes abandoned runs."
        )
