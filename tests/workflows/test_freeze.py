"""Freezing in runs: params, the plan with its hashes, warnings, and a resume across an unfreezing."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dmx.cli.main import app
from dmx.config.load import as_yaml
from dmx.errors import ConfigError
from dmx.tracking.mlflow_store import open_store
from dmx.training.checkpoint import read_checkpoint
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, session, settings
from tests.workflows.test_train import artifacts, assert_same, final_state

FREEZE = {"normal": [1], "fc": [1], "unfreeze": {1: {"fc": [1]}}}
QUICK = {"segments": 4, "volumes_every_epochs": 0, "overlays": 0}


def plan_of(project: Path, run: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((artifacts(open_store(root=project), run) / "freeze/plan.json").read_text())
    return content


def test_a_run_tells_what_was_frozen(project: Path, manifest: Path) -> None:
    teller = Teller()
    run = train(settings(manifest, freeze=FREEZE, validation=QUICK), session(project, teller)).run
    store = open_store(root=project)
    params = store.get_run(run.id).params
    assert {key: value for key, value in params.items() if key.startswith("freeze.")} == {
        "freeze.normal": "1",
        "freeze.subsampled": "1",
        "freeze.fc": "1",
        "freeze.layers": "",
        "freeze.norm_statistics": "frozen",
        "freeze.unfreeze": params["freeze.unfreeze"],
        "freeze.num_frozen_parameters": params["freeze.num_frozen_parameters"],
    }
    assert params["freeze.unfreeze"].startswith("1: ")
    frozen = int(params["freeze.num_frozen_parameters"])
    assert int(params["network.trainable_parameters"]) == int(params["network.parameters"]) - frozen
    plan = plan_of(project, run)
    assert plan["epochs"]["0"]["num_frozen_parameters"] == frozen > plan["epochs"]["1"]["num_frozen_parameters"]
    assert [(check["occasion"], check["changed"]) for check in plan["checks"]] == [
        ("start", []),
        ("unfreeze", []),
        ("end", []),
    ]
    assert set(plan["epochs"]["0"]["parameters"]) <= set(plan["sha256"])
    said = " ".join(teller.sentences)
    assert f"Frozen: {frozen:,} of" in said
    assert "frozen although they are, at least in part, as they were initialized: normal.block_1" in said
    first, last = (
        read_checkpoint(artifacts(store, run) / f"checkpoints/step_{step:09d}").model_state for step in (0, 8)
    )
    same = {name for name in first if first[name].equal(last[name])}
    assert {name for name in first if name.startswith(("normal.block_1", "subsampled_1.block_1"))} <= same
    assert not [name for name in same if name.startswith(("fc.block_1.conv", "head.conv", "normal.block_2.conv"))]


def test_a_resume_across_an_unfreezing_equals_an_uninterrupted_training(project: Path, manifest: Path) -> None:
    experiment = settings(manifest, freeze=FREEZE, validation=QUICK)
    whole = train(experiment, session(project)).run
    broken = train(experiment, session(project, Teller(stop_after=3))).run
    resume(broken.id, session(project))
    store = open_store(root=project)
    assert plan_of(project, broken)["sha256"] == plan_of(project, whole)["sha256"]
    occasions = [check["occasion"] for check in plan_of(project, broken)["checks"]]
    assert occasions[:1] == ["start"]
    assert occasions[-3:] == ["resume", "unfreeze", "end"]
    ours, theirs = final_state(store, broken), final_state(store, whole)
    for state in (ours, theirs):
        del state["training"]["origin"]["checks"]
    assert_same(ours, theirs)


def test_what_cannot_be_frozen_is_said_before_there_is_a_run(project: Path, manifest: Path) -> None:
    for sections, sentence in (
        ({"freeze": {"normal": [7]}}, "freeze.normal names position 7"),
        ({"optimizer": {"lr_scale": {"nothing": 0.1}}}, "optimizer.lr_scale names 'nothing'"),
        ({"optimizer": {"lr_scale": {"received": 0.1}}}, "begins with initialized weights"),
        ({"regularization": {"l2_to_source": 0.1}}, "no tensor comes whole from a source"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            train(settings(manifest, **sections), session(project))
    with pytest.raises(ConfigError, match=r"With --strict, these layers are frozen although"):
        train(settings(manifest, freeze={"fc": [1]}), session(project), strict=True)
    assert open_store(root=project).list_runs() == []


def test_the_command_line_freezes(project: Path, manifest: Path) -> None:
    experiment = settings(manifest, training={"epochs": 1, "steps_per_epoch": 1}, validation=QUICK)
    (project / "balls.yaml").write_text(as_yaml(experiment))
    words = ["--freeze", "normal=1-2", "--freeze", "subsampled=none", "--freeze", "fc=1"]
    result = CliRunner().invoke(app, ["train", "balls.yaml", *words, "--set", "freeze.unfreeze.7.fc=1"])
    assert result.exit_code == 0, result.output
    (run,) = open_store(root=project).list_runs()
    assert run.params["freeze.normal"] == "1,2"
    assert run.params["freeze.subsampled"] == ""
    assert run.params["freeze.fc"] == "1"
    assert "names epoch 7, but the last epoch of this training is 0" in " ".join(result.output.split())
