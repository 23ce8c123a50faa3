"""A project with an empty run store: migrated once, then copied."""

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmx.config.sections import CheckpointSection
from dmx.tracking.mlflow_store import MlflowStore, open_store
from dmx.tracking.recorder import Recorder
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.training.events import CheckpointDue, EpochEnded, StepEnded, TrainingEnded, TrainingStarted, ValidationEnded
from dmx.training.position import Position


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("migrated")
    (root / "mlruns").mkdir()
    open_store(root=root)
    return root / "mlruns" / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project" / "mlruns"
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(folder / "mlflow.db")) as target:
        source.backup(target)
    monkeypatch.chdir(folder.parent)
    return folder.parent


@pytest.fixture
def store(project: Path) -> MlflowStore:
    opened = open_store(root=project)
    assert isinstance(opened, MlflowStore)
    return opened


class RemoteStore(MlflowStore):
    """A store whose artifacts are not a folder of this machine, and that can be down."""

    down = False

    def local_artifacts(self, run_id: str) -> Path | None:
        return None

    def log_metrics(self, run_id: str, points: Any) -> None:
        if self.down:
            raise ConnectionError("nobody there")
        super().log_metrics(run_id, points)


@pytest.fixture
def remote(store: MlflowStore) -> RemoteStore:
    return RemoteStore(store.uri)


def new_run(**changes: Any) -> NewRun:
    return NewRun(**{"experiment": "study", "kind": "train", "words": "two pathways", **changes})


@dataclass
class Training:
    """A training that tells its events but learns nothing: four epochs of five steps."""

    run: ActiveRun
    keep: CheckpointSection = field(default_factory=CheckpointSection)
    steps_per_epoch: int = 5
    epochs: int = 4

    def __post_init__(self) -> None:
        self.state = SimpleNamespace(last_checkpoint=None)
        self.recorder = Recorder(self.run, total_steps=self.steps_per_epoch * self.epochs, save=save, keep=self.keep)

    def checkpoint(self, position: Position, *names: str) -> None:
        self.recorder(CheckpointDue(state=self.state, position=position, names=names))  # type: ignore[arg-type]

    def start(self) -> None:
        self.recorder(
            TrainingStarted(
                position=Position(), epochs=4, steps_per_epoch=5, num_parameters=7, device="cpu", resumed=False
            )
        )
        self.checkpoint(Position(), "initial")

    def step(self, number: int, *, loss: float | None = None) -> None:
        self.recorder(
            StepEnded(
                epoch=(number - 1) // 5 + 1,
                step=(number - 1) % 5 + 1,
                global_step=number,
                loss=1 / number if loss is None else loss,
                terms={"cross_entropy": 0.5},
                lr=0.1,
                gradient_norm=1.0,
                num_segments=2,
                seconds=0.5,
                sampling_seconds=0.1,
            )
        )

    def end_epoch(self, epoch: int, **more: Any) -> None:
        step = epoch * self.steps_per_epoch
        metrics = {"val/dice": epoch / 10, "train/mean_loss": 1 / epoch, "time/epoch": 3.0}
        self.recorder(
            ValidationEnded(epoch=epoch, global_step=step, metrics={"val/dice": epoch / 10}, seconds=1.0, **more)
        )
        self.recorder(EpochEnded(epoch=epoch, global_step=step, metrics=metrics, seconds=3.0))
        self.checkpoint(Position(epoch, 0, step), "last", "best", f"epoch={epoch}")

    def go(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            self.step(number)
            if number % self.steps_per_epoch == 0:
                self.end_epoch(number // self.steps_per_epoch)

    def end(self) -> None:
        self.recorder(TrainingEnded(reason="finished", position=Position(self.epochs, 0, 20)))


def save(due: CheckpointDue, folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "checkpoint.json").write_text(json.dumps({"epoch": due.position.epoch}))


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def run(store: MlflowStore, project: Path, notes: list[str]) -> Iterator[ActiveRun]:
    active = start_run(store, new_run(), root=project, notify=notes.append)
    yield active
    active.end("FINISHED")


def abandon(active: ActiveRun) -> None:
    """Leave a run as a killed process does: nothing more is delivered, the lock is free."""
    active._courier._stopping = True
    active._courier._wake.set()
    active._courier._heart.end()
    active._courier._thread.join()
    active.folder.unlock()


def fresh(active: ActiveRun) -> RunInfo:
    return active.store.get_run(active.info.id)


@pytest.fixture
def begin(store: MlflowStore, project: Path, notes: list[str]) -> Callable[..., ActiveRun]:
    """Start a run; keywords change what it starts with."""

    def start(in_store: MlflowStore | None = None, **changes: Any) -> ActiveRun:
        return start_run(in_store or store, new_run(**changes), root=project, notify=notes.append)

    return start


@pytest.fixture
def train() -> type[Training]:
    return Training


@pytest.fixture
def leave() -> Callable[[ActiveRun], None]:
    return abandon


@pytest.fixture
def now() -> Callable[[ActiveRun], RunInfo]:
    """What the store knows of a run now."""
    return fresh
