"""What a training takes from its source where its experiment says nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmx.config.load import apply_overrides, as_dict
from dmx.errors import ConfigError, ModelError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.finetune import FinetuneRequest, finetune, settings_for
from dmx.workflows.inherited import difference_table
from dmx.workflows.train import train
from dmx.workflows.trained import TrainedNetwork, open_network
from dmx.workflows.transfer import prepare_transfer, train_transferred, transfer
from tests.workflows.conftest import Teller, session, settings

RECIPE: dict[str, Any] = {
    "optimizer": {"name": "adamw", "lr": 0.003, "weight_decay": 0.02, "lr_scale": {"fc": 0.5}},
    "losses": {"soft_dice": 1.0},
    "schedule": {"name": "cosine", "final_lr": 1e-5, "warmup": 0.5},
    "preprocess": {"spacing": "median", "normalize": {"method": "range", "percentiles": [1, 99]}},
    "prediction": {"overlap": 0.25, "mirror": [0]},
    "augmentation": {"intensity": {"shift_std": 0.1}},
    "freeze": {"normal": [1]},
    "training": {"gradient_clip": 1.0},
}


@pytest.fixture
def source(project: Path, manifest: Path) -> str:
    return train(settings(manifest, **RECIPE), session(project)).run.id


@pytest.fixture
def trained(project: Path, source: str) -> TrainedNetwork:
    return open_network(open_store(root=project), source, checkpoint=None, root=project)


def settled(trained: TrainedNetwork, *words: str, **given: Any) -> dict[str, Any]:
    raw = apply_overrides({"name": "next", "cohort": {"manifest": "other.csv"}, **given}, words)
    return as_dict(settings_for(raw, trained, path=Path("next.yaml"))[0])


def test_a_setting_given_alone_leaves_the_rest_of_its_section_as_in_the_source(trained: TrainedNetwork) -> None:
    known = as_dict(trained.experiment)
    cropped = settled(trained, "preprocess.crop_to_roi=true")["preprocess"]
    assert cropped == {**known["preprocess"], "spacing": [1.0, 1.0, 2.0], "crop_to_roi": True}
    dropping = settled(trained, "model.fc.dropout=0.5")["model"]
    assert dropping == {**known["model"], "fc": {**known["model"]["fc"], "dropout": 0.5}}
    factor = settled(trained, "model.subsampled.0.factor=4")["model"]["subsampled"]
    assert factor == [{**known["model"]["subsampled"][0], "factor": 4}]


def test_three_lines_inherit_the_recipe(trained: TrainedNetwork) -> None:
    known, here = as_dict(trained.experiment), settled(trained)
    for section in ("losses", "prediction", "augmentation", "model", "validation", "checkpoints", "training"):
        assert here[section] == known[section], section
    assert here["sampling"]["segment"] == 11
    assert here["optimizer"] == {**known["optimizer"], "lr_scale": {}}
    # What belongs to how the source itself began.
    assert here["freeze"]["normal"] == []
    assert here["schedule"] == {**known["schedule"], "warmup": 1.0}


def test_an_explicit_default_and_null_count_as_given(trained: TrainedNetwork) -> None:
    here = settled(trained, "training.moving_average=null", losses={"soft_dice": 0}, prediction={"mirror": []})
    assert here["training"]["moving_average"] is None
    assert here["training"]["gradient_clip"] == 1.0
    assert here["losses"]["soft_dice"] == 0
    assert here["prediction"]["mirror"] == []
    assert here["prediction"]["overlap"] == 0.25


def test_another_choice_leaves_what_belonged_to_the_sources(trained: TrainedNetwork) -> None:
    here = settled(
        trained,
        "optimizer.name=sgd",
        "schedule.name=polynomial",
        preprocess={"normalize": {"method": "window", "window": [0, 9]}},
    )
    assert (here["optimizer"]["name"], here["optimizer"]["weight_decay"]) == ("sgd", 0.0)
    assert here["schedule"]["final_lr"] is None
    assert here["preprocess"]["normalize"]["percentiles"] is None
    assert here["preprocess"]["spacing"] == [1.0, 1.0, 2.0]


def test_the_default_recipe_keeps_the_network_and_what_it_sees(trained: TrainedNetwork) -> None:
    known, here = as_dict(trained.experiment), settled(trained, recipe="default")
    assert here["model"] == known["model"]
    assert here["preprocess"]["normalize"] == known["preprocess"]["normalize"]
    assert here["optimizer"]["name"] == "rmsprop"
    assert here["losses"]["soft_dice"] == 0.0
    assert here["sampling"]["segment"] == 37
    with pytest.raises(ConfigError, match="recipe must be inherited or default, got 'mine'"):
        settled(trained, recipe="mine")


def test_the_differences_are_a_table_within_80_columns_without_a_false_alarm(
    project: Path, source: str, other: Path
) -> None:
    path = project / "next.yaml"
    path.write_text(yaml.safe_dump({"name": "next", "cohort": {"manifest": other.name}, "training": {"epochs": 1}}))
    teller = Teller()
    request = FinetuneRequest(experiment=path, run=source, allow_leak=True)
    run = finetune(request, session(project, teller)).run
    start = teller.sentences.index("What differs from the source's settings:")
    table = teller.sentences[start : start + 20]
    assert max(map(len, table)) <= 80
    assert any(line.split() == ["training.epochs", "2", "1"] for line in table)
    assert not any("median" in sentence or "adamw" in sentence for sentence in teller.sentences)
    assert not any("preprocess" in sentence and "here and was" in sentence for sentence in teller.sentences)
    folder = open_store(root=project).local_artifacts(run.id)
    assert folder is not None
    kept = json.loads((folder / "config_diff.json").read_text())
    assert kept["training.epochs"] == {"source": 2, "here": 1}
    assert set(kept) == {
        "cohort.manifest",
        "training.epochs",
        "freeze.normal",
        "optimizer.lr_scale.fc",
        "optimizer.lr_scale",
        "schedule.warmup",
    }
    assert open_store(root=project).get_run(run.id).params["recipe"] == "inherited"
    said = Teller()
    finetune(FinetuneRequest(experiment=path, run=source, allow_leak=True, recipe="default"), session(project, said))
    assert any(line.split() == ["optimizer.name", "adamw", "rmsprop"] for line in said.sentences)


def test_long_values_are_wrapped_into_their_column() -> None:
    long = "/a/very/long/folder/" * 6 + "cohort.csv"
    lines = difference_table({"cohort.manifest": (long, long[::-1]), "training.channels_last": (False, True)})
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["training.channels_last", "false", "true"] for line in lines)


def test_a_section_transfer_is_refused_by_a_fine_tuning(trained: TrainedNetwork) -> None:
    with pytest.raises(ConfigError, match=r"section 'transfer' has no place.*dmx train"):
        settled(trained, transfer={"sources": {"a": {"run": "balls/last"}}})


def test_a_transfer_inherits_what_the_network_is_and_sees_at_any_depth(
    project: Path, source: str, manifest: Path
) -> None:
    raw = {
        "name": "moved",
        "cohort": {"manifest": str(manifest)},
        "training": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 2},
        "transfer": {"sources": {"a": {"run": source}}},
    }
    planned = prepare_transfer(raw, session(project), path=project / "t.yaml", allow_leak=True).checked.experiment
    assert planned.model.normal.widths == (4, 4)
    assert planned.sampling.segment == 11
    assert planned.prediction.overlap == 0.25
    assert planned.optimizer.name == "rmsprop"
    wider = {
        **raw,
        "model": {"normal": {"widths": [6, 6]}},
        "preprocess": {"crop_margin": 3},
        "sampling": {"segment": 13},
    }
    planned = prepare_transfer(wider, session(project), path=project / "t.yaml", allow_leak=True).checked.experiment
    assert (planned.model.normal.widths, planned.model.fc.widths) == ((6, 6), (6,))
    assert planned.preprocess.normalize.method == "range"
    assert planned.prediction.overlap == 0.0


def test_the_training_of_a_transfer_inherits_the_transfers_settings(project: Path, source: str, manifest: Path) -> None:
    raw = {
        "name": "moved",
        "cohort": {"manifest": str(manifest)},
        "training": {"epochs": 1, "steps_per_epoch": 1, "batch_size": 2},
        "validation": {"volumes_every_epochs": 0, "segments": 4},
    }
    given = {**raw, "transfer": {"sources": {"a": {"run": source}}}, "freeze": {"fc": [1]}, "optimizer": {"lr": 0.02}}
    moved = transfer(given, session(project), path=project / "t.yaml", allow_leak=True).run.id
    teller = Teller()
    lines = {"name": "moved", "cohort": raw["cohort"], "optimizer": {"name": "rmsprop"}}
    done = train_transferred(lines, moved, session(project, teller), path=project / "t.yaml", allow_leak=True).run
    params = open_store(root=project).get_run(done.id).params
    assert (params["lr"], params["freeze.fc"], params["batch_size"]) == ("0.02", "1", "2")
    trained = open_network(open_store(root=project), done.id, checkpoint=None, root=project)
    assert trained.experiment.preprocess.normalize.method == "range"
    with pytest.raises(ModelError, match="Leave 'model' out, or transfer again"):
        train_transferred(
            {**lines, "model": {"fc": {"widths": [8]}}},
            moved,
            session(project),
            path=project / "t.yaml",
            allow_leak=True,
        )


def test_the_source_may_be_in_another_store(project: Path, source: str, other: Path, migrated: Path) -> None:
    mine = project / "mine/mlruns/mlflow.db"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(migrated.read_bytes())
    path = project / "next.yaml"
    path.write_text(yaml.safe_dump({"name": "balls", "cohort": {"manifest": other.name}, "training": {"epochs": 1}}))
    theirs = open_store(root=project)
    request = FinetuneRequest(experiment=path, run=source, allow_leak=True, source_uri=theirs.uri)
    run = finetune(request, session(project), uri=f"sqlite:///{mine}").run
    assert len(theirs.list_runs()) == 1
    tags = open_store(f"sqlite:///{mine}", project).get_run(run.id).tags
    assert (tags["dmx.source_run_id"], tags["dmx.source_store"]) == (source, theirs.uri)
    assert "mlflow.parentRunId" not in tags
