"""One project with a trained run per test process; faults are brought into copies of its parts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmx.tracking.mlflow_store import open_store
from dmx.workflows.session import Session
from dmx.workflows.train import train
from tests.faults.world import World
from tests.workflows.conftest import settings


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("faults") / "project"
    (root / "mlruns").mkdir(parents=True)
    before = dict(os.environ)
    os.environ["DMX_CACHE_DIR"] = str(root.parent / "facts")
    open_store(root=root)
    world = World(root)
    world.build()
    small = settings(world.manifest, training={"epochs": 1, "steps_per_epoch": 2}, validation={"segments": 2})
    world.run_id = train(small, Session(root=root)).run.id
    yield world
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def here(world: World) -> Path:
    return world.here()
