"""A record for each session of a run: with what code, packages and machine it was worked on from then on."""

import hashlib
import json
import platform
from collections.abc import Mapping
from typing import Any

import psutil

from dmx.tracking.environment import GitState, environment
from dmx.tracking.files import read_text
from dmx.tracking.process import job_tags, now
from dmx.tracking.store import RunInfo, RunReader

FOLDER = "sessions"

_SHORT = 12
# What can move the bits, and how a person calls it; host and job alone do not.
_WORDS = {
    "commit": "commit",
    "diff": "uncommitted changes",
    "dmx": "dmx",
    "python": "Python",
    "torch": "torch",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "numpy": "NumPy",
    "device": "device",
    "threads": "threads",
    "cpu": "processor",
    "cores": "cores",
}

Record = Mapping[str, Any]


def session_record(number: int, git: GitState, *, device: str, threads: int) -> dict[str, Any]:
    """Return what a session is made of.

    Args:
        number: 0 for the first session of the run, then one more with each resume.
        git: The code.
        device: Device that trains.
        threads: CPU threads that it computes with.
    """
    import torch

    known: Any = environment()
    cuda = torch.device(device) if device.startswith("cuda") else None
    return {
        "session": number,
        "started": now(),
        "host": platform.node(),
        "job": job_tags().get("dmx.job", ""),
        "commit": git.commit,
        "dirty": git.dirty,
        "diff": hashlib.sha256(git.diff.encode()).hexdigest() if git.diff else "",
        "dmx": known["dmx"],
        "python": known["python"],
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": _cudnn() if cuda is not None else "",
        "numpy": known["packages"].get("numpy", ""),
        "device": device if cuda is None else f"{device} ({torch.cuda.get_device_name(cuda)})",
        "threads": threads,
        "cpu": known["cpu"]["model"],
        "cores": psutil.cpu_count(logical=False),
        "command": known["command"],
    }


def _cudnn() -> str:
    import torch

    version: Any = torch.backends.cudnn.version  # without types
    return str(version() or "")


def read_sessions(store: RunReader, run: RunInfo) -> list[Record]:
    """Return the records of a run's sessions in order; of a run of an earlier version what it kept of its first one."""
    names = [path for path in store.list_artifacts(run.id, FOLDER) if path.endswith(".json")]
    found = [record for path in names if (record := _read(store, run, path)) is not None]
    if not found and (kept := _read(store, run, "environment.json")) is not None:
        found = [_from_environment(run, kept)]
    return sorted(found, key=lambda record: int(record["session"]))


def _read(store: RunReader, run: RunInfo, path: str) -> Record | None:
    text = read_text(store, run.id, path)
    try:
        record = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and (path == "environment.json" or isinstance(record.get("session"), int))
    return record if whole else None


def _from_environment(run: RunInfo, kept: Record) -> Record:
    packages, cpu = _section(kept, "packages"), _section(kept, "cpu")
    found = {
        "commit": run.tags.get("mlflow.source.git.commit"),
        "dmx": kept.get("dmx"),
        "python": kept.get("python"),
        "torch": packages.get("torch"),
        "numpy": packages.get("numpy"),
        "cpu": cpu.get("model"),
        "cores": cpu.get("cores"),
    }
    return {"session": 0, **{name: value for name, value in found.items() if value is not None}}


def _section(kept: Record, name: str) -> Record:
    found = kept.get(name)
    return found if isinstance(found, dict) else {}


def differences(before: Record, after: Record) -> list[str]:
    """Return what is not as it was and can move the bits, one phrase each, such as ``torch 2.11.0 → 2.12.0``."""
    return [
        _difference(name, before[name], after[name])
        for name in _WORDS
        if name in before and name in after and str(before[name]) != str(after[name])
    ]


def _difference(name: str, before: object, after: object) -> str:
    if name == "diff":
        return f"other {_WORDS[name]}" if after else f"no {_WORDS[name]} any more"
    if name == "commit":
        before, after = str(before)[:_SHORT], str(after)[:_SHORT]
    return f"{_WORDS[name]} {before or 'none'} → {after or 'none'}"


def session_line(record: Record) -> str:
    """Return a record as one line for the terminal."""
    commit = str(record.get("commit", ""))[:_SHORT]
    changed = " with uncommitted changes" if record.get("dirty") else ""
    parts = (
        record.get("started", ""),
        record.get("host", ""),
        record.get("job", ""),
        record.get("device", ""),
        f"{record['threads']} threads" if "threads" in record else "",
        f"dmx {record.get('dmx', '?')}",
        f"torch {record.get('torch', '?')}",
        f"commit {commit}{changed}" if commit else "",
    )
    return ", ".join(str(part) for part in parts if part)
