"""One project with a trained run per test process; faults are brought into copies of its parts."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dmx.tracking.mlflow_store import open_store
from dmx.workflows.session import Session
from dmx.workflows.train import train
from tests.faults.kills import HEAD_ONLY, Machine, Project, keep
from tests.faults.world import World
from tests.workflows.conftest import settings


@pytest.fixture(scope="session")
def migrated(request: pytest.FixtureRequest) -> Path:
    """Return where an empty run store is kept from one test session to the next: MLflow takes seconds to make one."""
    assert request.config.cache is not None
    return request.config.cache.mkdir("faults") / f"mlflow-{version('mlflow')}.db"


@pytest.fixture(scope="session")
def world(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("faults") / "project"
    (root / "mlruns").mkdir(parents=True)
    before = dict(os.environ)
    os.environ["DMX_CACHE_DIR"] = str(root.parent / "facts")
    world = World(root)
    if migrated.exists():
        shutil.copy(migrated, world.database)
    else:
        open_store(root=root)
        keep(world.database, migrated)
    world.build()
    small = settings(world.manifest, training={"epochs": 1, "steps_per_epoch": 2}, validation={"segments": 2})
    world.run_id = train(small, Session(root=root)).run.id
    yield world
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


class Projects(Mapping[str, Project]):
    """A project for each way to train, made when it is asked for."""

    ways: Mapping[str, dict[str, Any]] = {
        "plain": {},
        "workers and fp16": {"sampling": {"workers": 2}, "training": {"precision": "fp16"}},
        "artifacts apart": {"faults": {"apart": True}},
        "images": {"images": True},
        "images and fixed features": {"images": True, **HEAD_ONLY},
    }

    def __init__(self, machine: Machine, folder: Path, store: Path) -> None:
        self._made = cache(
            lambda name: Project(machine, folder / name.replace(" ", "_"), store=store, **self.ways[name])
        )

    def __getitem__(self, name: str) -> Project:
        return self._made(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ways)

    def __len__(self) -> int:
        return len(self.ways)


@pytest.fixture(scope="session")
def projects(machine: Machine, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Projects]:
    # Where the memory is the disk, hundreds of trainings wait for no disk.
    memory = Path("/dev/shm")
    quick = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    folder = Path(tempfile.mkdtemp(dir=memory if quick else tmp_path_factory.mktemp("kills")))
    yield Projects(machine, folder, migrated)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def project(projects: Projects) -> Project:
    return projects["plain"]


@pytest.fixture
def here(world: World) -> Path:
    return world.here()
