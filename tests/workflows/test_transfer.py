import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.config.load import as_dict
from dmx.errors import CheckpointError, CohortError, ConfigError, ModelError, RunError, TransferError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import checkpoint_path
from dmx.training.checkpoint import read_checkpoint
from dmx.workflows.equivalence import equivalence_error
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from dmx.workflows.trained import open_trained
from dmx.workflows.transfer import prepare_transfer, train_transferred, transfer, transfer_and_train
from tests.workflows.conftest import Teller, session, settings


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
        as_dict(settings(manifest, training={"epochs": 1})), moved.run.id, session(project), path=project / "x.yaml"
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
        train_transferred(as_dict(settings(manifest)), source, session(project), path=project / "x.yaml")


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


def tag(project: Path, run: str, key: str) -> str | None:
    return open_store(root=project).get_run(run).tags.get(key)


def test_a_training_of_a_transferred_network_looks_for_leaks_in_all_sources(
    project: Path, manifest: Path, source: str
) -> None:
    """Case 4 was trained on by the second source only, which gave less than the first one."""
    cohort = read_manifest(manifest)
    few = tuple(replace(case, split="training") for case in cohort.cases if case.name == "case_4")
    write_manifest(replace(cohort, cases=few), project / "few.csv")
    quick = {"training": {"epochs": 1, "moving_average": None}, "validation": {"volumes_every_epochs": 0}}
    second = train(settings(project / "few.csv", **quick), session(project)).run.id
    rules = [{"network": "a", "source": name, "target": name} for name in ("normal.*", "fc.*")]
    rules.append({"network": "b", "source": "subsampled_1.block_1", "target": "subsampled_1.block_1"})
    sources = {"a": {"run": source}, "b": {"run": second}}
    values = raw(manifest, source, transfer={"sources": sources, "map": rules})
    moved = transfer(values, session(project), path=project / "x.yaml").run.id
    assert tag(project, moved, "dmx.source_run_id") == source
    assert [entry["run"] for entry in json.loads(tag(project, moved, "dmx.sources") or "")] == [source, second]
    splits = {"case_4": "validation", "case_5": "training"}
    cases = tuple(replace(case, split=splits.get(case.name, "")) for case in cohort.cases)
    write_manifest(replace(cohort, cases=cases), project / "rest.csv")
    experiment = as_dict(settings(project / "rest.csv", **quick))
    with pytest.raises(CohortError, match=r"case_4 \(same scan in .*--allow-leak"):
        train_transferred(experiment, moved, session(project), path=project / "x.yaml")
    done = train_transferred(experiment, moved, session(project), path=project / "x.yaml", allow_leak=True)
    assert tag(project, done.run.id, "dmx.leak") == "1"
    # The transfer itself has seen nobody: its own training cases may be held out.
    turned = {"case_5": "training", "case_0": ""}
    unseen = tuple(replace(case, split=turned.get(case.name, "")) for case in cohort.cases)
    write_manifest(replace(cohort, cases=unseen), project / "unseen.csv")
    assert train_transferred(
        as_dict(settings(project / "unseen.csv", **quick)), moved, session(project), path=project / "x.yaml"
    ).run


def test_whom_a_file_was_trained_on_is_said_to_be_unknown(project: Path, manifest: Path, source: str) -> None:
    save_file(weights(project, source), project / "w.safetensors")
    values = raw(manifest, source)
    values["transfer"] = {"sources": {"source": {"file": "w.safetensors"}}}
    moved = transfer(values, session(project), path=project / "x.yaml").run
    assert moved.tags["dmx.source_file"] == "w.safetensors"
    assert open_store(root=project).get_run(moved.id).params["source.file"] == "w.safetensors"
    teller = Teller()
    quick = settings(manifest, training={"epochs": 1}, validation={"volumes_every_epochs": 0})
    train_transferred(as_dict(quick), moved.id, session(project, teller), path=project / "x.yaml")
    assert any("which subjects the network in 'w.safetensors' was trained on" in said for said in teller.sentences)


def test_what_differs_from_the_default_is_a_param(project: Path, manifest: Path, source: str) -> None:
    plain = transfer(raw(manifest, source), session(project), path=project / "x.yaml").run.id
    options = {"head": "copy", "classes_from": "names", "match_channels": "position", "adapt_kernels": True}
    values = raw(manifest, source, transfer={**options, "map": [{"source": "fc.*", "target": "fc.*"}]})
    values["optimizer"]["lr_scale"] = {"received": 0.5}
    values["regularization"]["l2_to_source"] = 0.01
    rare = transfer(values, session(project), path=project / "x.yaml").run.id
    store = open_store(root=project)
    usual, params = store.get_run(plain).params, store.get_run(rare).params
    total = int(params["network.parameters"])
    new = {key: value for key, value in params.items() if key not in usual}
    assert new == {
        "transfer.classes_from": "names",
        "transfer.match_channels": "position",
        "transfer.adapt_kernels": "true",
        "transfer.map": "fc.* → fc.*",
        "optimizer.lr_scale": f"received=0.5 (0.5 on {total} parameters)",
        "regularization.l2_to_source": "0.01",
    }
    assert params["network.received_parameters"] == params["transfer.received"] == str(total)
    head = total - int(usual["network.received_parameters"])
    assert head > 0
    quick = settings(
        manifest,
        training={"epochs": 1},
        validation={"volumes_every_epochs": 0},
        optimizer={"lr_scale": {"received": 0.1, "fc": 2}},
    )
    trained = train_transferred(as_dict(quick), plain, session(project), path=project / "x.yaml").run.id
    said = store.get_run(trained).params["optimizer.lr_scale"]
    assert said.startswith("received=0.1, fc=2 (0.1 on ")
    assert said.endswith(" parameters)")
    assert store.get_run(trained).params["network.received_parameters"] == usual["network.received_parameters"]
    assert store.get_run(source).params["network.received_parameters"] == "0"


def test_the_mode_of_the_source_is_named_where_it_is_in_the_way(project: Path, manifest: Path) -> None:
    model = {"normalization": {"name": "batch_rolling"}, "subsampled": [{"factor": 3}]}
    exact = replace(settings(manifest, model=model, training={"epochs": 1}), compatibility="deepmedic")
    theirs = train(exact, session(project)).run.id
    values = raw(manifest, theirs)
    del values["compatibility"]
    values["model"]["activation"] = "selu"
    with pytest.raises(ModelError, match=r"taken over from the source; .*possible with 'compatibility: none'"):
        prepare_transfer(values, session(project), path=project / "x.yaml")
    with pytest.raises(ModelError) as error:
        prepare_transfer({**values, "compatibility": "deepmedic"}, session(project), path=project / "x.yaml")
    assert "taken over" not in str(error.value)
    done = prepare_transfer({**values, "compatibility": "none"}, session(project), path=project / "x.yaml")
    assert any(note.startswith("Not exact: ") for note in done.plan.notes)
    values["sampling"]["segment"] = 3
    with pytest.raises(ModelError) as error:
        prepare_transfer(values, session(project), path=project / "x.yaml")
    assert "taken over" not in str(error.value), "without the mode it is impossible too"


def test_strict_refuses_to_freeze_what_a_transfer_leaves_initialized(
    project: Path, manifest: Path, source: str
) -> None:
    values = raw(manifest, source, transfer={"layers": [1]}, freeze={"fc": [1]})
    done = transfer(values, session(project), path=project / "x.yaml")
    assert any("as they were initialized: fc.block_1" in note for note in done.notes)
    local = open_store(root=project).local_artifacts(done.run.id)
    assert local is not None
    lines = (local / "log.txt").read_text().splitlines()
    assert any("as they were initialized: fc.block_1" in line for line in lines)
    assert "parameters received" in lines[-1]
    with pytest.raises(ConfigError, match="With --strict"):
        transfer(values, session(project), path=project / "x.yaml", strict=True)
    kept = raw(manifest, source, transfer={"layers": [1]}, freeze={"normal": [1]})
    assert transfer(kept, session(project), path=project / "x.yaml", strict=True).run


def test_the_probe_measures_what_was_really_copied(project: Path, manifest: Path, source: str) -> None:
    values = raw(manifest, source, transfer={"head": "copy"})
    done = prepare_transfer(values, session(project), path=project / "x.yaml")
    theirs = open_trained(open_store(root=project), source, checkpoint=None, root=project).network
    assert equivalence_error(done.plan, done.checked.network, {"source": theirs}) == done.error == 0.0
    with torch.no_grad():
        done.checked.network.get_parameter("normal.block_1.conv.weight").mul_(2)
    wrong = equivalence_error(done.plan, done.checked.network, {"source": theirs})
    assert wrong is not None
    assert wrong > 0.1
    nothing_equal = replace(done.plan, equal=())
    assert equivalence_error(nothing_equal, done.checked.network, {"source": theirs}) is None
    quick = {**values, "training": {**values["training"], "epochs": 1}}
    trained = transfer_and_train(
        quick, session(project), path=project / "x.yaml", name=None, strict=False, allow_leak=False
    )
    assert open_store(root=project).get_run(trained.run.id).metrics["transfer/equivalence_error"] == 0.0
