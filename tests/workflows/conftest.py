"""A project with a tiny cohort and a network that learns something in seconds."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.case import Case, Cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import write_volume
from dmx.config.load import build_experiment
from dmx.config.sections import Experiment
from dmx.tracking.mlflow_store import open_store
from dmx.training.events import Event, StepEnded
from dmx.workflows.session import Session

SPLITS = ("training", "training", "training", "validation", "evaluation", "evaluation")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("migrated")
    (root / "mlruns").mkdir()
    open_store(root=root)
    return root / "mlruns" / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "mlruns").mkdir(parents=True)
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(folder / "mlruns/mlflow.db")) as target:
        source.backup(target)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DMX_CACHE_DIR", str(tmp_path / "facts"))
    return folder


@pytest.fixture
def manifest(project: Path) -> Path:
    return make_manifest(project)


@pytest.fixture
def other(project: Path, manifest: Path) -> Path:
    """The same scans as another study's: other names, subjects and splits."""
    cohort = read_manifest(manifest)
    order = ("validation", "evaluation", "evaluation", "training", "training", "training")
    cases = tuple(
        replace(case, name=f"b_{case.name}", split=split) for case, split in zip(cohort.cases, order, strict=True)
    )
    path = project / "other.csv"
    write_manifest(replace(cohort, name="other", cases=cases), path)
    return path


def make_manifest(project: Path) -> Path:
    """Make six cases of 14 to 18 voxels a side: a bright ball in noise, scanned left-to-right reversed."""
    cases = []
    for index, split in enumerate(SPLITS):
        rng = np.random.default_rng(index)
        shape = (16, 18, 14)
        affine = np.diag([-1.0, 1.0, 2.0, 1.0])
        affine[0, 3] = 15.0
        grid = NiftiGrid.from_affine(shape, affine)
        center = rng.uniform(5, 9, 3)
        distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - center, axis=-1)
        labels = (distance < 3.5).astype(np.uint8)
        scan = (100 * (index + 1) * (labels + rng.normal(0, 0.3, shape))).astype(np.float32)
        files = {name: project / f"scans/{name}_{index}.nii.gz" for name in ("t1", "label")}
        files["t1"].parent.mkdir(exist_ok=True)
        write_volume(files["t1"], scan, grid, dtype=np.float32)
        write_volume(files["label"], labels, grid, dtype=np.uint8)
        name = f"case_{index}"
        cases.append(
            Case(name=name, subject=f"s{index}", channels={"t1": files["t1"]}, label_map=files["label"], split=split)
        )
    cohort = Cohort(name="balls", classes=("background", "ball"), channels=("t1",), cases=tuple(cases))
    path = project / "cohort.csv"
    write_manifest(cohort, path)
    return path


def settings(manifest: Path, **sections: object) -> Experiment:
    raw: dict[str, object] = {
        "name": "balls",
        "cohort": {"manifest": str(manifest)},
        "sampling": {"segment": 11, "workers": 0},
        "model": {
            "normal": {"widths": [4, 4]},
            "subsampled": [{"factor": 2}],
            "fc": {"widths": [6], "dropout": [0.0, 0.2]},
        },
        "training": {"epochs": 2, "steps_per_epoch": 4, "batch_size": 4, "moving_average": 0.9},
        "optimizer": {"name": "adam", "lr": 0.01},
        "validation": {"segments": 40, "volumes_every_epochs": 2, "overlays": 1},
    }
    for name, changes in sections.items():
        current = raw.get(name, {})
        raw[name] = {**current, **changes} if isinstance(current, dict) and isinstance(changes, dict) else changes
    return build_experiment(raw)


@dataclass
class Teller:
    """Keeps what a report is told, and can ask a training to stop after some steps."""

    sentences: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stop_after: int = 10**9

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def warn(self, sentence: str) -> None:
        self.say(f"Warning: {sentence}")

    def progress(self, what: str, done: int, total: int) -> None:
        assert 0 <= done <= total

    def stop(self) -> bool:
        steps = [event.global_step for event in self.events if isinstance(event, StepEnded)]
        return bool(steps) and steps[-1] == self.stop_after


def session(project: Path, teller: Teller | None = None) -> Session:
    teller = teller or Teller()
    return Session(root=project, report=teller, listeners=(teller.events.append,), stop=teller.stop)
