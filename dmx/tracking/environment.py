"""What a run was made with: machine, packages, and the state of the code."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil

from dmx import __version__
from dmx.tracking.location import mask

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG")
_GIT_SECONDS = 20
_LONGEST_DIFF = 2_000_000


def environment() -> dict[str, object]:
    """Return machine, versions and threads, as ``environment.json`` holds them."""
    return {
        "dmx": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": _packages(),
        "cpu": {
            "model": _cpu_model(),
            "cores": psutil.cpu_count(logical=False),
            "threads": psutil.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        },
        "gpu": _gpus(),
        "variables": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "command": [mask(Path(sys.argv[0]).name), *map(_shortened, sys.argv[1:])],
    }


def _shortened(argument: str) -> str:
    """Leave the folders of absolute paths out: they often name a person."""
    return Path(argument).name if Path(argument).is_absolute() else mask(argument)


def _packages() -> dict[str, str]:
    """Return the versions of what the project depends on."""
    try:
        lines = requires("dmx-transfer") or []
    except PackageNotFoundError:
        lines = []
    found = {}
    for line in lines:
        name = line.split(";")[0].split("[")[0].rstrip(" <>=!~.,0123456789")
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpus() -> list[dict[str, object]]:
    import torch

    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": item.name, "memory_gb": round(item.total_memory / 1e9, 1), "cuda": torch.version.cuda}
        for item in properties
    ]


@dataclass(frozen=True, kw_only=True)
class GitState:
    """The code at the start of a run.

    Attributes:
        commit: Full hash; empty outside of a repository.
        dirty: Whether tracked files have been changed.
        diff: The changes.
    """

    commit: str = ""
    dirty: bool = False
    diff: str = ""

    def tags(self) -> dict[str, str]:
        """Return the tags of a run; MLflow shows the commit beside the run's source."""
        if not self.commit:
            return {}
        return {"mlflow.source.git.commit": self.commit, "dmx.git_dirty": str(self.dirty).lower()}


def git_state(folder: Path) -> GitState:
    """Return the state of the repository that a folder is in; an empty one without git or a repository."""
    commit = _git(folder, "rev-parse", "HEAD").strip()
    if not commit:
        return GitState()
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv")
    if len(diff) > _LONGEST_DIFF:
        diff = f"{diff[:_LONGEST_DIFF]}\n(cut after {_LONGEST_DIFF} characters)\n"
    return GitState(commit=commit, dirty=bool(diff), diff=diff)


# Programs that the configuration of a repository may name.
_NO_PROGRAMS = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def _git(folder: Path, *words: str) -> str:
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *_NO_PROGRAMS, *words],
            capture_output=True,
            timeout=_GIT_SECONDS,
            env=variables,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", errors="replace")
