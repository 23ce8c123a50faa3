import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from dmx.errors import CohortError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.finetune import FinetuneRequest, finetune
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, session, settings


def test_a_fine_tuning_keeps_its_lineage_when_it_has_ended(project: Path, manifest: Path) -> None:
    store = open_store(root=project)
    parent = train(settings(manifest), session(project), name="parent").run
    raw = {
        "name": "child",
        "cohort": {"manifest": manifest.name},
        "sampling": {"segment": 11, "workers": 0},
        "training": {"epochs": 2, "steps_per_epoch": 2, "batch_size": 4},
        "validation": {"segments": 20, "volumes_every_epochs": 0},
        "freeze": {"normal": [1]},
    }
    path = project / "child.yaml"
    path.write_text(yaml.safe_dump(raw))
    request = FinetuneRequest(experiment=path, run=parent.id, allow_leak=True)
    run = finetune(request, session(project, Teller(stop_after=2))).run
    folder, other = store.local_artifacts(run.id), store.local_artifacts(parent.id)
    assert folder is not None
    assert other is not None
    assert not (folder / "lineage.html").exists()
    resume(run.id, session(project))
    text = (folder / "lineage.html").read_text()
    assert "balls/parent" in text
    assert "finetune, FINISHED, cohort balls" in text
    assert "frozen: normal 1, subsampled 1" in text
    assert f"best val/dice {max(p.value for p in store.metric_history(run.id, 'val/dice')):.3f}" in text
    assert not (other / "lineage.html").exists()


def test_training_cases_of_a_source_are_refused_after_the_source_was_deleted(
    project: Path, manifest: Path, other: Path
) -> None:
    quick = {"epochs": 1, "steps_per_epoch": 1}
    seldom = {"segments": 20, "volumes_every_epochs": 0}
    source = settings(manifest, training=quick, validation=seldom)
    parent = train(source, session(project), name="parent").run
    raw = {
        "name": "child",
        "cohort": {"manifest": other.name},
        "sampling": {"segment": 11, "workers": 0},
        "training": {**quick, "batch_size": 4},
        "validation": seldom,
    }
    path = project / "child.yaml"
    path.write_text(yaml.safe_dump(raw))
    run = finetune(FinetuneRequest(experiment=path, run=parent.id, allow_leak=True), session(project)).run
    folder = open_store(root=project).local_artifacts(parent.id)
    assert folder is not None
    shutil.rmtree(folder)
    with closing(sqlite3.connect(project / "mlruns/mlflow.db")) as database, database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", (parent.id,))
    with pytest.raises(CohortError, match="same scan in balls/parent"):
        evaluate(EvaluateRequest(run=run.id, cohort=manifest, split="training"), session(project))
