"""Regions that overlap and voxels that nobody annotated, from the manifest to the scores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.case import Cohort
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.regions import Regions
from dmx.cohort.volume import read_grid, read_volume, write_volume
from dmx.errors import ConfigError, DmxError, TransferError
from dmx.evaluation.metrics import score_case
from dmx.tracking.mlflow_store import open_store
from dmx.training.events import EpochEnded, StepEnded
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.finetune import FinetuneRequest, finetune
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from dmx.workflows.trained import open_trained
from dmx.workflows.transfer import transfer
from tests.workflows.conftest import Teller, make_manifest, session, settings

REGIONS = Regions({"whole": (1, 2), "core": (2,)}, (1, 2))


def change_labels(path: Path, change) -> Cohort:
    """Rewrite the label maps of a cohort of balls; return it without classes."""
    cohort = read_manifest(path)
    for case in cohort.cases:
        volume = read_volume(case.label_map)
        write_volume(case.label_map, change(volume.array.astype(np.uint8)), read_grid(case.label_map), dtype=np.uint8)
    return replace(cohort, classes=())


def with_core(labels):
    middle = np.argwhere(labels).mean(axis=0).round().astype(int)
    core = np.linalg.norm(np.moveaxis(np.indices(labels.shape), 0, -1) - middle, axis=-1) < 2
    return np.where(core & (labels > 0), 2, labels).astype(np.uint8)


def every_third_slice(labels):
    sparse = np.full_like(labels, 9)
    sparse[:, :, ::3] = labels[:, :, ::3]
    return sparse


@pytest.fixture
def nested(project: Path) -> Path:
    path = make_manifest(project)
    write_manifest(replace(change_labels(path, with_core), regions=REGIONS), path)
    return path


@pytest.fixture
def sparse(project: Path) -> Path:
    path = make_manifest(project)
    cohort = change_labels(path, every_third_slice)
    write_manifest(replace(cohort, classes=("background", "ball"), ignore=9), path)
    return path


def test_a_network_learns_regions_and_writes_them_as_labels(project: Path, nested: Path) -> None:
    teller = Teller()
    ours = settings(
        nested, losses={"soft_dice": 1.0}, sampling={"categories": "per_class"}, training={"epochs": 4}, seed=3
    )
    done = train(ours, session(project, teller))
    last = [event for event in teller.events if isinstance(event, EpochEnded)][-1].metrics
    assert {"val/dice/whole", "val/dice/core", "val_volume/dice/whole", "val_volume/dice/core"} <= set(last)
    trained = open_trained(open_store(root=project), done.run.id, checkpoint=None, root=project)
    assert trained.contract.outputs == ("whole", "core")
    assert trained.network.num_classes == 2
    assert trained.contract.regions == REGIONS
    out = project / "out"
    cohort = read_manifest(nested)
    request = PredictRequest(run=done.run.id, inputs=[nested], output=out, split="evaluation", probabilities=True)
    rows = predict(request, session(project)).rows
    found = evaluate(EvaluateRequest(run=done.run.id), session(project))
    assert found.classes == ("whole", "core")
    for row, case, scores in zip(rows, cohort.in_split("evaluation"), found.rows, strict=True):
        maps = [read_volume(out / f"{case.name}_probability_{name}.nii.gz").array for name in ("whole", "core")]
        labels = read_volume(out / str(row["file"])).array
        # The later region counts; each is above a half on its own.
        np.testing.assert_array_equal(labels, np.where(maps[1] > 0.5, 2, np.where(maps[0] > 0.5, 1, 0)))
        truth = read_volume(case.label_map)
        by_hand = score_case(
            truth.array.astype(int), labels.astype(int), spacing=truth.spacing, classes=REGIONS.members
        )
        assert scores["dice/whole"] == by_hand["dice/whole"] == scores["dice/foreground"]
        assert scores["dice/core"] == by_hand["dice/core"]
        voxel = float(np.prod(truth.spacing)) / 1000
        assert row["volume_ml/whole"] == pytest.approx((labels > 0).sum() * voxel, abs=1e-3)
    assert found.summary["dice/whole"].mean > 0.5


def test_a_resumed_training_of_regions_equals_an_uninterrupted_one(project: Path, nested: Path) -> None:
    def losses(teller: Teller) -> list[float]:
        return [event.loss for event in teller.events if isinstance(event, StepEnded)]

    whole, first, second = Teller(), Teller(stop_after=5), Teller()
    train(settings(nested), session(project, whole))
    run = train(settings(nested), session(project, first)).run
    resume(run.id, session(project, second))
    assert losses(first) + losses(second) == losses(whole)


def test_regions_of_the_experiment_win_and_can_be_turned_off(project: Path, nested: Path) -> None:
    ours = {"manifest": str(nested), "regions": {"core": 2}, "regions_class_order": [2]}
    done = train(settings(nested, cohort=ours, training={"epochs": 1}), session(project))
    trained = open_trained(open_store(root=project), done.run.id, checkpoint="last", root=project)
    assert (trained.contract.outputs, trained.network.num_classes) == (("core",), 1)
    classes = {"manifest": str(nested), "regions": {}, "classes": ["background", "rim", "core"]}
    done = train(settings(nested, cohort=classes, training={"epochs": 1}), session(project))
    trained = open_trained(open_store(root=project), done.run.id, checkpoint="last", root=project)
    assert trained.contract.outputs == ("background", "rim", "core")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"compatibility": "deepmedic"}, "cannot be combined with cohort.regions"),
        ({"cohort": {"regions": {"a": [1]}, "regions_class_order": [1], "classes": ["b"]}}, "at least two classes"),
        (
            {"cohort": {"regions": {"a": [1, 5]}, "regions_class_order": [1], "classes": ["b", "c"]}},
            r"names the label 5, the classes are 0 to 1",
        ),
        ({"cohort": {"ignore": 1}}, "is 1, which is the class 'label_1'"),
    ],
)
def test_what_cannot_be_combined_is_one_sentence(project: Path, nested: Path, changes, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        train(settings(nested, **changes), session(project))
    assert not [p for p in (project / "mlruns").iterdir() if p.name.isdigit()]


def test_voxels_that_nobody_annotated_count_nowhere(project: Path, sparse: Path) -> None:
    teller = Teller()
    ours = settings(sparse, losses={"soft_dice": 1.0}, training={"epochs": 4}, seed=2)
    done = train(ours, session(project, teller))
    assert [event for event in teller.events if isinstance(event, EpochEnded)][-1].metrics["val_volume/dice/ball"] > 0
    found = evaluate(EvaluateRequest(run=done.run.id), session(project))
    out = project / "out"
    predict(PredictRequest(run=done.run.id, inputs=[sparse], output=out, split="evaluation"), session(project))
    for case, scores in zip(read_manifest(sparse).in_split("evaluation"), found.rows, strict=True):
        truth = read_volume(case.label_map).array
        predicted = read_volume(out / f"{case.name}_segmentation.nii.gz").array
        assert set(np.unique(predicted)) <= {0, 1}
        kept = truth != 9
        both = (truth[kept] == 1) & (predicted[kept] == 1)
        assert scores["dice/ball"] == pytest.approx(2 * both.sum() / ((truth[kept] == 1).sum() + predicted[kept].sum()))
        assert scores["hd95_mm/ball"] is None
        assert scores["surface_dice/ball"] is None
    assert found.summary["dice/ball"].mean > 0.5


def test_an_ignored_label_of_another_cohort_is_ignored_there(project: Path, sparse: Path, tmp_path: Path) -> None:
    cohort = read_manifest(sparse)
    plain = {"manifest": str(sparse), "labels": {9: 0}}
    done = train(settings(sparse, cohort=plain, training={"epochs": 1}), session(project))
    trained = open_trained(open_store(root=project), done.run.id, checkpoint="last", root=project)
    assert trained.contract.ignore is None
    moved = project / "other.csv"
    write_manifest(replace(cohort, name="other", ignore=7), moved)
    for case in cohort.cases:
        volume = read_volume(case.label_map)
        changed = np.where(volume.array == 9, 7, volume.array)
        write_volume(case.label_map, changed, read_grid(case.label_map), dtype=np.uint8)
    found = evaluate(EvaluateRequest(run=done.run.id, cohort=moved, allow_leak=True), session(project))
    total = read_volume(cohort.cases[-1].label_map).array
    assert found.rows[-1]["volume_truth_ml/ball"] == pytest.approx((total == 1).sum() * 2.0 / 1000)


def test_losses_of_shapes_cannot_leave_voxels_out(project: Path, sparse: Path) -> None:
    ours = settings(sparse, losses={"monai": [{"name": "SoftDiceclDiceLoss"}]})
    with pytest.raises(ConfigError, match="measures shapes and cannot leave out voxels that nobody annotated"):
        train(ours, session(project))


def test_the_run_says_what_was_learned(project: Path, nested: Path) -> None:
    done = train(settings(nested, training={"epochs": 1}), session(project))
    store = open_store(root=project)
    files = store.local_artifacts(done.run.id)
    summary = json.loads((files / "cohort" / "summary.json").read_text())
    assert summary["classes"] == ["whole", "core"]


def test_a_head_of_classes_is_never_one_of_regions_without_a_word(project: Path, nested: Path) -> None:
    classes = {"manifest": str(nested), "regions": {}, "classes": ["background", "ball"], "labels": {2: 1}}
    source = train(settings(nested, cohort=classes, training={"epochs": 1}), session(project)).run
    raw = {"name": "child", "cohort": {"manifest": str(nested)}, "sampling": {"segment": 11}}
    with pytest.raises(ConfigError, match=r"has learned classes \(background, ball\), the cohort has regions"):
        finetune(FinetuneRequest(experiment=project / "x.yaml", run=source.id, settings=raw), session(project))
    words = {**raw, "transfer": {"sources": {"source": {"run": source.id}}, "head": "copy"}}
    with pytest.raises(TransferError, match=r"source scores classes .* target regions \(whole, core\)"):
        transfer(words, session(project), path=project / "x.yaml")
    words["transfer"]["head"] = "initialized"
    done = transfer(words, session(project), path=project / "x.yaml")
    given = open_trained(open_store(root=project), done.run.id, checkpoint="initial", root=project)
    assert given.contract.outputs == ("whole", "core")
    assert 0 < done.plan.share < 1


def test_finetuning_keeps_the_regions_of_the_source(project: Path, nested: Path) -> None:
    source = train(settings(nested, training={"epochs": 1}), session(project)).run
    raw = {"name": "child", "cohort": {"manifest": str(nested)}, "sampling": {"segment": 11}}
    raw |= {"training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2}}
    request = FinetuneRequest(experiment=project / "x.yaml", run=source.id, settings=raw, allow_leak=True)
    child = finetune(request, session(project)).run
    trained = open_trained(open_store(root=project), child.id, checkpoint="last", root=project)
    assert trained.contract.regions == REGIONS
    turned = {"regions": {"core": [2], "whole": [1, 2]}, "regions_class_order": [2, 1]}
    raw["cohort"] |= turned
    with pytest.raises(ConfigError, match="must be in the order of the source, whole, core"):
        finetune(replace(request, settings=raw), session(project))


def test_a_training_goes_on_only_with_the_same_regions(project: Path, nested: Path) -> None:
    run = train(settings(nested), session(project, Teller(stop_after=5))).run
    text = nested.read_text()
    nested.write_text(
        text.replace("core = 2", "core = 1").replace("regions_class_order: 1, 2", "regions_class_order: 2, 1")
    )
    with pytest.raises(DmxError):
        resume(run.id, session(project))
    nested.write_text(text)
    assert resume(run.id, session(project)).reason == "finished"
