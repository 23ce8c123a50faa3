import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.config.load import as_dict
from dmx.errors import CheckpointError, CohortError, ConfigError, RunError, TransferError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import checkpoint_path
from dmx.training.checkpoint import read_checkpoint
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from dmx.workflows.transfer import prepare_transfer, train_transferred, transfer, transfer_and_train
from tests.workflows.conftest import session, settings


@pytest.fixture
def source(project: Path, manifest: Path) -> str:
    return train(settings(manifest, training={"moving_average": None}), session(project)).run.id


def raw(manifest: Path, source: str, **changes: Any) -> dict[str, Any]:
    values = {**as_dict(settings(manifest)), "name": "target"}
    values["transfer"] = {"sources": {"source": {"run": source}}, **changes.pop("transfer", {})}
    for section, entries in changes.items():
        values[section] = {**values[section], **entries}
    return values


def weights(project: Path, run: str, name: str = "best") -> dict[str, torch.Tensor]:
    store = open_store(root=project)
    return dict(read_checkpoint(checkpoint_path(store, store.get_run(run), name, root=project)).prediction_state)


def test_a_transfer_is_a_run_with_the_new_network_and_its_plan(project: Path, manifest: Path, source: str) -> None:
    wider = {"normal": {"widths": [6, 6]}, "subsampled": [{"factor": 2}, {"factor": 3}]}
    done = transfer(raw(manifest, source, model=wider), session(project), path=project / "x.yaml", allow_leak=True)
    store = open_store(root=project)
    run = store.get_run(done.run.id)
    assert "-transfer-" in run.name
    assert run.kind == "transfer"
    assert run.tags["dmx.source_run_id"] == source
    assert "mlflow.parentRunId" not in run.tags, "MLflow does not nest across experiments"
    assert run.params["transfer.received"] == str(done.plan.received)
    folder = store.local_artifacts(run.id)
    assert folder is not None
    assert json.loads((folder / "transfer/plan.json").read_text())["received"] == done.plan.received
    assert (folder / "transfer/mapping.csv").read_text().count("\n") > 5
    assert "<svg" in (folder / "transfer/mapping.html").read_text()
    old, new = weights(project, source), weights(project, run.id, "initial")
    assert torch.equal(new["normal.block_2.conv.weight"][:4, :4], old["normal.block_2.conv.weight"])
    assert torch.equal(new["subsampled_2.block_1.conv.weight"][:4], old["subsampled_1.block_1.conv.weight"])
    assert not torch.equal(new["head.conv.weight"], old["head.conv.weight"])


def test_the_transferred_network_trains_without_any_switch(project: Path, manifest: Path, source: str) -> None:
    moved = transfer(raw(manifest, source), session(project), path=project / "x.yaml", allow_leak=True)
    done = train_transferred(
        settings(manifest, training={"epochs": 1}), moved.run.id, session(project), name=None, strict=False
    )
    store = open_store(root=project)
    assert store.get_run(done.run.id).tags["dmx.source_run_id"] == moved.run.id
    assert torch.equal(
        weights(project, done.run.id, "initial")["normal.block_1.conv.weight"],
        weights(project, source)["normal.block_1.conv.weight"],
    )
    with pytest.raises(RunError, match=r"not trained.*dmx train EXPERIMENT --from-run"):
        resume(moved.run.id, session(project))
    with pytest.raises(RunError, match=r"has been trained.*dmx resume.*dmx finetune"):
        train_transferred(settings(manifest), source, session(project), name=None, strict=False)


def test_transfer_and_training_in_one_run(project: Path, manifest: Path, source: str) -> None:
    values = raw(manifest, source, freeze={"normal": [1], "subsampled": "same_as_normal"})
    done = transfer_and_train(
        values, session(project), path=project / "x.yaml", name=None, strict=False, allow_leak=True
    )
    store = open_store(root=project)
    run = store.get_run(done.run.id)
    assert run.params["freeze.normal"] == "1"
    old, new = weights(project, source), weights(project, run.id, "last")
    assert torch.equal(old["normal.block_1.conv.weight"], new["normal.block_1.conv.weight"])
    assert not torch.equal(old["normal.block_2.conv.weight"], new["normal.block_2.conv.weight"])


def test_widening_that_keeps_the_output_is_measured(project: Path, manifest: Path, source: str) -> None:
    wider = {"normal": {"widths": [8, 8]}, "fc": {"widths": [12], "dropout": 0.0}}
    exact = prepare_transfer(
        raw(manifest, source, model=wider, transfer={"extra": "zero-cross", "head": "copy"}),
        session(project),
        path=project / "x.yaml",
        allow_leak=True,
    )
    assert exact.error is not None
    assert exact.error < 1e-5


def test_a_network_without_a_cohort_in_common_predicts_after_transfer(
    project: Path, manifest: Path, source: str
) -> None:
    same = raw(manifest, source, transfer={"head": "copy"})
    moved = transfer(same, session(project), path=project / "x.yaml", allow_leak=True)
    scan = project / "scans/t1_4.nii.gz"
    for run, out in ((source, "old"), (moved.run.id, "new")):
        predict(PredictRequest(run=run, inputs=[scan], output=project / out), session(project))
    files = [(project / out / "t1_4_segmentation.nii.gz").read_bytes() for out in ("old", "new")]
    assert files[0] == files[1]


def test_weights_of_another_tool_come_from_a_file(project: Path, manifest: Path, source: str) -> None:
    state = weights(project, source)
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, project / "wrapped.safetensors")
    torch.save({"epoch": 3, "state_dict": state}, project / "inside.pth")
    for file in ("wrapped.safetensors", "inside.pth"):
        values = raw(manifest, source)
        values["transfer"] = {"sources": {"source": {"file": file}}}
        done = prepare_transfer(values, session(project), path=project / "x.yaml")
        network = dict(done.checked.network.state_dict())
        assert torch.equal(network["normal.block_2.conv.weight"], state["normal.block_2.conv.weight"])
        assert any("module." in line or "'state_dict'" in line for line in done.start.sentences)


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (open, ("pwned", "w"))  # type: ignore[return-value]


def test_a_file_that_would_execute_something_is_refused(project: Path, manifest: Path, source: str) -> None:
    torch.save({"state_dict": Payload()}, project / "evil.pth")
    values = raw(manifest, source)
    values["transfer"] = {"sources": {"source": {"file": "evil.pth"}}}
    with pytest.raises(CheckpointError, match="without executing code"):
        prepare_transfer(values, session(project), path=project / "x.yaml")
    assert not (project / "pwned").exists()


def test_what_cannot_be_transferred_is_one_sentence_and_no_run(project: Path, manifest: Path, source: str) -> None:
    for error, part, changes in (
        (TransferError, "layers", {"transfer": {"layers": [9]}}),
        (TransferError, "kernel", {"model": {"normal": {"widths": [4, 4], "kernels": 5}}}),
        (ConfigError, "either a run or a file", {"transfer": {"sources": {"a": {}}}}),
        (ConfigError, "must name a run or a file", {"transfer": {"sources": {}}}),
        (RunError, "nobody", {"transfer": {"sources": {"a": {"run": "nobody"}}}}),
    ):
        with pytest.raises(error, match=part):
            transfer(raw(manifest, source, **changes), session(project), path=project / "x.yaml")
    cohort = read_manifest(manifest)
    turned = {"training": "validation", "validation": "training", "evaluation": "evaluation"}
    cases = tuple(replace(case, split=turned[case.split]) for case in cohort.cases)
    write_manifest(replace(cohort, cases=cases), project / "turned.csv")
    leaking = raw(manifest, source, cohort={"manifest": str(project / "turned.csv")})
    with pytest.raises(CohortError, match="--allow-leak"):
        transfer(leaking, session(project), path=project / "x.yaml")
    assert len(open_store(root=project).list_runs()) == 1
    transfer(raw(manifest, source), session(project), path=project / "x.yaml")
