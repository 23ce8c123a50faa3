"""A project with a training, three fine-tunings of it and their evaluations, and a browser that looks at it."""

import importlib.util
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.config.load import as_dict
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunInfo
from dmx.tracking.ui import free_port, serving
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.finetune import FinetuneRequest, finetune
from dmx.workflows.train import train
from dmx.workflows.transfer import transfer
from tests.workflows.conftest import make_manifest, migrated, session, settings

__all__ = ["migrated"]

FREEZES = {"all-trained": {}, "head-only": {"normal": "all", "fc": [1]}, "first-frozen": {"normal": [1]}}


@dataclass(frozen=True)
class Study:
    """The runs of the project, in one experiment."""

    root: Path
    parent: RunInfo
    children: tuple[RunInfo, ...]
    transferred: RunInfo


@pytest.fixture(scope="module")
def study(chromium: str, tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Study]:
    # The browser comes first: without one nothing needs to be trained.
    root = tmp_path_factory.mktemp("study")
    (root / "mlruns").mkdir()
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(root / "mlruns/mlflow.db")) as target:
        source.backup(target)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DMX_CACHE_DIR", str(root / "facts"))
        manifest = make_manifest(root)
        parent = train(settings(manifest), session(root), name="parent").run
        children = tuple(_child(root, manifest, parent, name) for name in FREEZES)
        yield Study(root, parent, children, _transferred(root, manifest, parent))


def _child(root: Path, manifest: Path, parent: RunInfo, name: str) -> RunInfo:
    other = root / "other.csv"
    write_manifest(read_manifest(manifest), other)
    path = root / f"{name}.yaml"
    raw: dict[str, Any] = {
        "name": name,
        "cohort": {"manifest": other.name},
        "sampling": {"segment": 11, "workers": 0},
        "training": {"epochs": 2, "steps_per_epoch": 4, "batch_size": 4},
        "validation": {"segments": 20, "volumes_every_epochs": 2},
        "freeze": FREEZES[name],
        "tracking": {"experiment": parent.experiment},
    }
    path.write_text(yaml.safe_dump(raw))
    request = FinetuneRequest(experiment=path, run=parent.id, allow_leak=True, name=name)
    run = finetune(request, session(root)).run
    evaluate(EvaluateRequest(run=run.id, allow_leak=True), session(root))
    return open_store(root=root).get_run(run.id)


def _transferred(root: Path, manifest: Path, parent: RunInfo) -> RunInfo:
    """Transfer depths of the parent to a network of eleven layers and three pathways."""
    deep = {"normal": {"widths": [4, 6] * 5}, "subsampled": [{"factor": 2}, {"factor": 3}]}
    experiment = settings(manifest, model=deep, sampling={"segment": 27})
    raw = {
        **as_dict(experiment),
        "name": parent.experiment,
        "transfer": {"sources": {"parent": {"run": parent.id}}, "layers": [1, 2, 3]},
    }
    return transfer(raw, session(root), path=root / "deep.yaml", name="deep", allow_leak=True).run


@pytest.fixture(scope="module")
def base(study: Study) -> Iterator[str]:
    """The address of MLflow's pages."""
    with serving(f"sqlite:///{study.root / 'mlruns/mlflow.db'}", free_port(5400)) as address:
        yield address


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser of the machine; none is downloaded."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed (pip install playwright)")
    return found


@pytest.fixture
def page(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    # As root, which is what containers run as, Chromium refuses its sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=arguments)
        opened = browser.new_page(viewport={"width": 1600, "height": 1000})
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()
