"""Commands in processes of their own that are killed, and a comparison of what they leave with what they should."""

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
import yaml

from dmx.config.load import as_dict
from dmx.config.trust import VARIABLE
from dmx.training.checkpoint import read_checkpoint
from tests.faults.kills_board import POINTS
from tests.workflows.conftest import make_manifest, settings
from tests.workflows.tiny_images import NAME, image_settings, make_images

TOP = Path(__file__).parents[2]
_UNTIMED = ("time/", "system/")
_LOCAL = re.compile(r"[0-9a-f]{32}")
_READY = 2
_DOWNLOADED = re.compile(r"tmp\w+/(config\.yaml|identity\.json)")
# One for each process that has worked on the run.
_RECORDS = "sessions"
_PICTURE = re.compile(r"\+timestamp\+\d+\+[0-9a-f-]{36}")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; below 0: the signal that ended it.
        seconds: How long it took.
        cpu_seconds: How long it computed.
        peak_memory: Its largest resident size in bytes.
        window: Where its main thread was last.
        delivering: Whether something was on its way to the store.
        counts: How often it passed each point.
        out: What it printed.
        err: What it said on standard error.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_memory: int
    window: str
    delivering: bool
    counts: Mapping[str, int]
    out: str
    err: str

    @property
    def said(self) -> str:
        return " ".join((self.err + self.out).split())


class Machine:
    """Runs commands in children of one process that has imported everything."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.kills_server"],
            cwd=TOP,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(
        self,
        root: Path,
        *words: str,
        at: Sequence[tuple[str, int, str]] = (),
        seconds: float = 0.0,
        terminal: bool = False,
        faults: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Call the command.

        Args:
            root: Folder of the project.
            words: The command's words.
            at: (point, number of the pass, what happens): ``KILL``, another signal, or ``CALL`` to close the terminal.
            seconds: Kill it after that time; 0: never.
            terminal: Whether it has a terminal.
            faults: Functions of :mod:`tests.faults.kills_faults` with their value.
            environment: Further variables.
        """
        aside = root.with_name(f"{root.name}-aside")
        (aside / "tmp").mkdir(parents=True, exist_ok=True)
        request = {
            "cwd": str(root),
            "words": words,
            "at": list(at),
            "seconds": seconds,
            "terminal": terminal,
            "faults": dict(faults or {}),
            "output": str(aside),
            "environment": {"DMX_CACHE_DIR": str(aside / "facts"), "TMPDIR": str(aside / "tmp")}
            | dict(environment or {}),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        texts = ("", "") if terminal else ((aside / "out").read_text(), (aside / "err").read_text())
        return Ended(**answer, out=texts[0], err=texts[1])

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


def small_training(root: Path, **sections: Any) -> None:
    """Write a cohort and an experiment with everything that a state may hold."""
    if not (root / "cohort.csv").exists():
        make_manifest(root)
    values: dict[str, Any] = {
        "training": {"epochs": 3, "steps_per_epoch": 6, "batch_size": 2, "accumulate": 2, "moving_average": 0.9},
        "validation": {"segments": 8, "volumes_every_epochs": 2, "overlays": 1},
        "checkpoints": {"every_steps": 2},
        "freeze": {"normal": [1], "unfreeze": {1: {"normal": [1]}}},
        "schedule": {"name": "plateau", "patience": 1},
        "optimizer": {"name": "adam", "lr": 0.01},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    experiment = settings(root / "cohort.csv", **values)
    (root / "balls.yaml").write_text(yaml.safe_dump(as_dict(experiment)))


def small_classification(root: Path, **sections: Any) -> None:
    """Write images and an experiment whose images change at random and whose first layer is frozen for an epoch."""
    if not (root / "cohort.csv").exists():
        make_images(root, name="cohort")
    values: dict[str, Any] = {
        "name": "balls",
        "training": {"epochs": 4, "batch_size": 4, "moving_average": 0.9},
        "image_augmentation": {"crop": "random", "flip": 0.5},
        "checkpoints": {"every_steps": 2},
        "freeze": {"layers": ["network.features.0"], "unfreeze": {1: {"layers": ["network.features.0"]}}},
        "schedule": {"name": "plateau", "patience": 1},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    experiment = image_settings(root / "cohort.csv", **values)
    (root / "balls.yaml").write_text(yaml.safe_dump(as_dict(experiment)))


# A classification of which nothing but the head is trained, so that the features before it are computed once.
HEAD_ONLY = {
    "image_augmentation": {"crop": "center", "flip": 0.0},
    "freeze": {"layers": ["network.features.*"], "norm_statistics": "frozen", "unfreeze": {}},
}


class Project:
    """A project with a cohort, prepared cases, an experiment and an empty store, and what a training of it becomes.

    Args:
        machine: Starts the commands.
        folder: Where the project and its copies are.
        store: A database that MLflow has migrated; it is made when it is not there, which takes seconds.
        images: Whether it classifies images.
        faults: Brought into all its processes.
        sections: Changes of the experiment.

    Attributes:
        profile: A training that nobody disturbed.
        reference: What it left.
    """

    def __init__(
        self,
        machine: Machine,
        folder: Path,
        *,
        store: Path,
        images: bool = False,
        faults: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> None:
        self.machine = machine
        self.faults = dict(faults or {})
        self._folder = folder
        self._count = 0
        self.template = folder / "template"
        (self.template / "mlruns").mkdir(parents=True)
        (small_classification if images else small_training)(self.template, **sections)
        if store.exists():
            shutil.copy(store, self.template / "mlruns/mlflow.db")
        else:
            assert machine.call(self.template, "runs", "list").code == 0
            keep(self.template / "mlruns/mlflow.db", store)
        first = self.copy()
        self.profile = self.call(first, "train", "balls.yaml")
        assert self.profile.code == 0, self.profile.said
        self.reference = account(first)
        shutil.copytree(first / "mlruns/cache", self.template / "mlruns/cache")

    def copy(self) -> Path:
        """Return a copy of the project, before any run."""
        self._count += 1
        root = self._folder / f"copy_{self._count}"
        shutil.copytree(self.template, root)
        for name in ("balls.yaml", "cohort.csv"):
            path = root / name
            path.write_text(path.read_text().replace(str(self.template), str(root)))
        return root

    def call(self, root: Path, *words: str, **options: Any) -> Ended:
        """Call the command with the project's faults."""
        environment = {VARIABLE: NAME, **options.pop("environment", {})}
        faults = {**self.faults, **options.pop("faults", {})}
        return self.machine.call(root, *words, faults=faults, environment=environment, **options)

    def losses(self, root: Path) -> list[str]:
        """Return in what a training that was killed differs from the one that was not."""
        found = account(root)
        if "apart" in self.faults:
            # MLflow's drafts in a store that dmx reaches only by copying are not its to remove.
            found.files[:] = [path for path in found.files if ".artifact.uploading." not in path]
            # What is looked at before the run is opened is downloaded into the system's temporary folder.
            found.elsewhere[:] = [path for path in found.elsewhere if not _DOWNLOADED.fullmatch(path)]
        # Where a process ended by itself, a model stands for the checkpoint that was its last and may still be there.
        kept = {Path(file).parent.name for file in found.files if file.startswith("checkpoints/")}
        further = [model for model in found.models if model not in self.reference.models]
        differences = [f"models: {name}" for name, status in further if name not in kept or status != _READY]
        found.models[:] = [model for model in found.models if model not in further]
        return differences + found.differences(self.reference)


def keep(database: Path, store: Path) -> None:
    """Copy a database for later tests; another process may do the same."""
    draft = store.with_name(f"{os.getpid()}.db")
    with closing(sqlite3.connect(database)) as made:
        made.execute("vacuum into ?", [str(draft)])
    draft.replace(store)


@dataclass(frozen=True)
class Account:
    """All that a project holds after a training, without what no two trainings share (durations, times of day)."""

    runs: list[tuple[str, str]]
    state: dict[str, Any]
    metrics: dict[str, list[tuple[int, float]]]
    untimed: dict[str, list[int]]
    tables: dict[str, str]
    params: dict[str, str]
    names: dict[str, str]
    models: list[tuple[str, str]]
    inputs: int
    files: list[str]
    elsewhere: list[str]

    def differences(self, other: "Account") -> list[str]:
        """Return what differs, a phrase each."""
        found = []
        for name, ours in vars(self).items():
            theirs = getattr(other, name)
            if isinstance(ours, dict):
                keys = [key for key in sorted(ours.keys() | theirs.keys()) if not _equal(ours, theirs, key)]
                found += [f"{name}: {key}: {_short(ours.get(key))} / {_short(theirs.get(key))}" for key in keys]
            elif isinstance(ours, list) and name in ("files", "elsewhere"):
                missing, more = (
                    sorted((Counter(a) - Counter(b)).elements()) for a, b in ((theirs, ours), (ours, theirs))
                )
                if missing or more:
                    found.append(f"{name}: missing {missing[:6]}, more {more[:6]}")
            elif ours != theirs:
                found.append(f"{name}: {ours} / {theirs}")
        return found


def _short(value: Any) -> str:
    return str(value)[:200]


def _equal(ours: dict[str, Any], theirs: dict[str, Any], key: str) -> bool:
    one, other = ours.get(key), theirs.get(key)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested values by their path; durations are left out."""
    if isinstance(value, Mapping):
        return {
            key: leaf
            for part, inner in value.items()
            if part not in ("seconds", "sampling")
            for key, leaf in flat(inner, f"{name}/{part}").items()
        }
    if isinstance(value, list | tuple):
        return {key: leaf for part, inner in enumerate(value) for key, leaf in flat(inner, f"{name}/{part}").items()}
    return {name: value}


def account(root: Path) -> Account:
    """Read what a project holds; there must be one complete run."""
    with closing(sqlite3.connect(root / "mlruns/mlflow.db")) as connection:
        runs = connection.execute(
            "select run_uuid, status, name, artifact_uri from runs where lifecycle_stage = 'active' order by start_time"
        ).fetchall()
        run_id, _, _, artifacts = next(row for row in runs if row[1] == "FINISHED")
        points = connection.execute(
            "select key, step, value from metrics where run_uuid = ? order by key, step", [run_id]
        ).fetchall()
        params = dict(connection.execute("select key, value from params where run_uuid = ?", [run_id]).fetchall())
        tags = dict(connection.execute("select key, value from tags where run_uuid = ?", [run_id]).fetchall())
        models = connection.execute(
            "select name, status from logged_models where source_run_id = ? and lifecycle_stage = 'active'", [run_id]
        ).fetchall()
        inputs = connection.execute("select count(*) from inputs where destination_id = ?", [run_id]).fetchone()[0]
    folder = path_of(artifacts)
    metrics: dict[str, list[tuple[int, float]]] = {}
    untimed: dict[str, list[int]] = {}
    for key, step, value in points:
        if key.startswith(_UNTIMED):
            untimed.setdefault(key, []).append(step)
        else:
            metrics.setdefault(key, []).append((step, value))
    last = sorted((folder / "checkpoints").glob("step_*"))[-1]
    state = read_checkpoint(last).as_state()
    # Each process that goes on checks the frozen tensors once more, and the state says so.
    state["training"]["origin"]["checks"] = [
        check for check in state["training"]["origin"]["checks"] if check["occasion"] != "resume"
    ]
    return Account(
        runs=[(status, name) for _, status, name, _ in runs],
        state=flat(state),
        metrics=metrics,
        untimed=untimed,
        tables={name: _table(folder / name) for name in ("history/steps.csv", "history/epochs.csv")},
        params=params,
        names={
            key: value
            for key, value in tags.items()
            if key.startswith(("dmx.checkpoint", "mlflow.latest", "mlflow.loggedI"))
        },
        models=sorted(models),
        inputs=inputs,
        files=_files(folder),
        elsewhere=[path.replace(run_id, "RUN") for path in _elsewhere(root, folder, run_id)],
    )


def _table(path: Path) -> str:
    """Return a table without its columns of durations."""
    import csv

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keep = [name for name in rows[0] if not name.startswith(_UNTIMED) and "seconds" not in name]
    return "\n".join(",".join(row[name] for name in keep) for row in rows)


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != _RECORDS)
    return sorted(_PICTURE.sub("", path.relative_to(folder).as_posix()) for path in paths)


def _elsewhere(root: Path, artifacts: Path, run_id: str) -> list[str]:
    """Return the files of the project, and of the temporary folder, that are no artifacts."""
    found = []
    for top in (root, root.with_name(f"{root.name}-aside") / "tmp"):
        files = (path for path in top.rglob("*") if path.is_file() and path.parent.name != _RECORDS)
        paths = (path for path in files if not path.is_relative_to(artifacts))
        found += [path.relative_to(top).as_posix() for path in paths if not path.name.startswith("mlflow.db-")]
    return sorted(path if run_id in path else _LOCAL.sub("ID", path) for path in found)


def path_of(uri: str) -> Path:
    """Return the folder that a store names, as a path or as a ``file:`` address."""
    return Path(url2pathname(urlsplit(uri).path) if uri.startswith("file:") else uri)


def runs_of(root: Path) -> list[tuple[str, str, Path]]:
    """Return (id, status, artifacts) of all runs, oldest first."""
    with closing(sqlite3.connect(root / "mlruns/mlflow.db")) as connection:
        rows = connection.execute(
            "select run_uuid, status, artifact_uri from runs where lifecycle_stage = 'active' order by start_time"
        ).fetchall()
    return [(run_id, status, path_of(uri)) for run_id, status, uri in rows]


def artifacts_of(root: Path) -> tuple[str, Path]:
    """Return id and artifacts of the only run."""
    ((run_id, _, folder),) = runs_of(root)
    return run_id, folder


@dataclass
class Tally:
    """What happened to a training that was killed again and again.

    Attributes:
        kills: Where it was killed.
        delivering: Kills while something was on its way to the store.
        processes: Commands that were called.
    """

    kills: list[str] = field(default_factory=list)
    delivering: int = 0
    processes: int = 0


def survive(project: Project, root: Path, moments: Iterable[Mapping[str, Any]]) -> Tally:
    """Train, kill, resume, kill, … and let it end at last.

    Args:
        project: Starts the commands.
        root: A copy of it.
        moments: When to kill.
    """
    tally = Tally()
    coming = iter(moments)
    while True:
        runs = runs_of(root)
        words = ("resume", runs[0][0]) if runs else ("train", "balls.yaml")
        ended = project.call(root, *words, **next(coming, {}))
        tally.processes += 1
        if ended.code == -9:
            tally.kills.append(ended.window)
            tally.delivering += ended.delivering
        else:
            assert ended.code == 0, f"{' '.join(words)} after {tally.kills}: {ended.code}: {ended.err[-3000:]}"
            return tally


def random_moment(rng: random.Random, profile: Ended) -> Mapping[str, Any]:
    """Return a moment to kill: half of them by the clock, half at a point that was passed."""
    if rng.random() < 0.35:
        return {"seconds": rng.uniform(0.0, 0.8 * profile.seconds)}
    point = rng.choice(POINTS)
    count = max(1, profile.counts[point])
    # A process that resumes does less than a whole training, so early passes are drawn more often.
    return {"at": [(point, 1 + int(count * 0.7 * rng.random() ** 3), "KILL")]}
