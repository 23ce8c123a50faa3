import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import read_grid, read_volume, write_volume
from dmx.errors import CohortError, ConfigError, ModelError, RunError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.loose_files import case_name, in_order
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.train import train
from dmx.workflows.trained import changed_prediction
from tests.workflows.conftest import session, settings


@pytest.fixture
def run_id(project: Path, manifest: Path) -> str:
    long = {"epochs": 2, "steps_per_epoch": 25, "batch_size": 6, "moving_average": None}
    return train(settings(manifest, training=long), session(project)).run.id


def test_predictions_lie_on_the_grid_of_their_scans(project: Path, manifest: Path, run_id: str) -> None:
    request = PredictRequest(
        run=run_id, inputs=[manifest], output=project / "out", split="evaluation", probabilities=True
    )
    done = predict(request, session(project))
    assert [row["case"] for row in done.rows] == ["case_4", "case_5"]
    for case in read_manifest(manifest).in_split("evaluation"):
        file = project / "out" / f"{case.name}_segmentation.nii.gz"
        scan = case.channels["t1"]
        assert scan is not None
        assert read_grid(file).as_dict() == read_grid(scan).as_dict()
        parts = [project / "out" / f"{case.name}_probability_{name}.nii.gz" for name in ("background", "ball")]
        maps = np.stack([read_volume(part).array for part in parts])
        assert np.allclose(maps.sum(0), 1, atol=1e-5)
        assert np.array_equal(maps.argmax(0), read_volume(file).array)
    store = open_store(root=project)
    run = store.get_run(done.run.id)
    assert run.tags["dmx.kind"] == "predict"
    assert run.tags["dmx.source_run_id"] == run_id
    assert run.params["source.checkpoint"] == "best"


def test_a_single_scan_is_predicted_as_in_its_cohort(project: Path, manifest: Path, run_id: str) -> None:
    together = PredictRequest(run="balls/last", inputs=[manifest], output=project / "together")
    predict(together, session(project))
    scan = project / "scans/t1_4.nii.gz"
    predict(PredictRequest(run=run_id, inputs=[scan], output=project / "alone"), session(project))
    alone = read_volume(project / "alone/t1_4_segmentation.nii.gz").array
    assert np.array_equal(alone, read_volume(project / "together/case_4_segmentation.nii.gz").array)
    assert alone.any()


def test_feature_maps_of_a_layer_become_volumes(project: Path, manifest: Path, run_id: str) -> None:
    scan = project / "scans/t1_4.nii.gz"
    request = PredictRequest(
        run=run_id, inputs=[scan], output=project / "out", features={"subsampled_1.block_2": (1, 2)}
    )
    predict(request, session(project))
    files = sorted(path.name for path in (project / "out").glob("*features*"))
    assert files == [f"t1_4_features_subsampled_1.block_2_{channel:03d}.nii.gz" for channel in (1, 2)]
    assert read_volume(project / "out" / files[0]).array.std() > 0


def test_what_does_not_fit_is_refused_and_nothing_is_written(project: Path, manifest: Path, run_id: str) -> None:
    scan = project / "scans/t1_4.nii.gz"
    out = project / "out"
    cohort = read_manifest(manifest)
    other = replace(
        cohort,
        channels=("flair",),
        cases=tuple(replace(case, channels={"flair": case.channels["t1"]}) for case in cohort.cases),
    )
    write_manifest(other, project / "other.csv")
    for error, part, request in (
        (CohortError, "channels t1; cohort 'balls' has flair and lacks 't1'", {"inputs": [project / "other.csv"]}),
        (ConfigError, "one manifest", {"inputs": [project / "scan.dcm"]}),
        (CohortError, "does not exist", {"inputs": [project / "none.nii.gz"]}),
        (CohortError, "no case in split 'test'", {"inputs": [manifest], "split": "test"}),
        (ModelError, "no layer 'normal.block_9'", {"inputs": [scan], "features": {"normal.block_9": (0, 1)}}),
        (RunError, "checkpoint 'epoch=9'", {"inputs": [scan], "checkpoint": "epoch=9"}),
        (RunError, "nobody", {"inputs": [scan], "run": "nobody"}),
    ):
        words = {"run": run_id, "output": out, **request}
        with pytest.raises(error, match=part):
            predict(PredictRequest(**words), session(project))  # type: ignore[arg-type]
    assert not out.exists()
    assert len(open_store(root=project).list_runs()) == 1


def test_predictions_are_replaced_only_on_request(project: Path, manifest: Path, run_id: str) -> None:
    scan = project / "scans/t1_4.nii.gz"
    request = PredictRequest(run=run_id, inputs=[scan], output=project / "out")
    predict(request, session(project))
    with pytest.raises(ConfigError, match="--overwrite"):
        predict(request, session(project))
    predict(replace(request, overwrite=True), session(project))


def test_an_evaluation_scores_the_held_out_cases(project: Path, manifest: Path, run_id: str) -> None:
    done = evaluate(EvaluateRequest(run=run_id), session(project))
    assert (done.split, [row["case"] for row in done.rows]) == ("evaluation", ["case_4", "case_5"])
    store = open_store(root=project)
    run = store.get_run(done.run.id)
    folder = store.local_artifacts(run.id)
    assert folder is not None
    with (folder / "evaluation/cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    assert float(cases[0]["dice/ball"]) == done.rows[0]["dice/ball"]
    summary = json.loads((folder / "evaluation/summary.json").read_text())
    assert summary["metrics"]["dice/ball"]["mean"] == pytest.approx(run.metrics["evaluation/dice/ball"])
    assert (folder / "figures/dice_per_case.png").is_file()
    assert run.tags["dmx.source_run_id"] == run_id


def test_the_means_of_an_evaluation_stand_at_the_run_that_was_scored(
    project: Path, manifest: Path, run_id: str
) -> None:
    done = evaluate(EvaluateRequest(run=run_id), session(project))
    store = open_store(root=project)
    scored, run = store.get_run(run_id), store.get_run(done.run.id)
    for key in ("evaluation/dice", "evaluation/dice/ball", "evaluation/cases", "evaluation/missed"):
        assert scored.metrics[key] == run.metrics[key], key
    points = store.metric_history(run_id, "evaluation/dice")
    assert [point.step for point in points] == [store.metric_history(run_id, "epoch")[-1].step]
    assert f"{run.experiment}/{run.name}" in scored.tags["mlflow.note.content"]

    # Another split or cohort has a key of its own.
    evaluate(EvaluateRequest(run=run_id, split="validation"), session(project))
    other = project / "other.csv"
    write_manifest(replace(read_manifest(manifest), name="other"), other)
    evaluate(EvaluateRequest(run=run_id, cohort=other), session(project))
    again = store.get_run(run_id)
    assert again.metrics["evaluation/dice"] == run.metrics["evaluation/dice"]
    assert {"evaluation/validation/dice", "evaluation/other/dice"} <= set(again.metrics)


def test_a_perfect_prediction_scores_one_and_a_shifted_one_less(project: Path, manifest: Path, run_id: str) -> None:
    predict(PredictRequest(run=run_id, inputs=[manifest], output=project / "out"), session(project))
    cohort = read_manifest(manifest)
    cases = []
    for case in cohort.cases:
        file = project / "out" / f"{case.name}_segmentation.nii.gz"
        cases.append(replace(case, label_map=file))
    write_manifest(replace(cohort, cases=tuple(cases)), project / "self.csv")
    perfect = evaluate(EvaluateRequest(run=run_id, cohort=project / "self.csv"), session(project))
    assert [row["dice/ball"] for row in perfect.rows] == [1.0, 1.0]
    for case in cases:
        assert case.label_map is not None
        volume = read_volume(case.label_map)
        write_volume(case.label_map, np.roll(volume.array, 1, 0), read_grid(case.label_map), dtype=np.uint8)
    shifted = evaluate(EvaluateRequest(run=run_id, cohort=project / "self.csv"), session(project))
    assert all(isinstance(row["dice/ball"], float) and row["dice/ball"] < 0.95 for row in shifted.rows)


def test_prediction_settings_can_be_changed_and_no_others(project: Path, manifest: Path, run_id: str) -> None:
    section = changed_prediction(run_id, ["prediction.mirror=[0]"], uri=None, root=project)
    assert section.mirror == (0,)
    with pytest.raises(ConfigError, match="settings of 'prediction'"):
        changed_prediction(run_id, ["training.epochs=3"], uri=None, root=project)


def test_a_fold_of_the_training_is_the_fold_that_is_scored(project: Path, manifest: Path) -> None:
    cohort = read_manifest(manifest)
    write_manifest(replace(cohort, cases=tuple(replace(case, split="") for case in cohort.cases)), manifest)
    done = train(settings(manifest, cohort={"fold": 0, "folds": 3}, training={"epochs": 1}), session(project))
    scored = evaluate(EvaluateRequest(run=done.run.id), session(project))
    store = open_store(root=project)
    folder = store.local_artifacts(done.run.id)
    assert folder is not None
    held_out = {case.name for case in read_manifest(folder / "cohort/manifest.csv").in_split("validation")}
    assert len(held_out) == 2
    assert (scored.split, {row["case"] for row in scored.rows}) == ("validation", held_out)


@pytest.mark.parametrize(
    ("files", "channels", "name"),
    [
        (("p1/FLAIR.nii.gz", "p1/DWI.nii.gz"), ("FLAIR", "DWI"), "p1"),
        (("p1/sub-01_T1.nii.gz", "p1/sub-01_T1c.nii.gz"), ("T1", "T1c"), "sub-01"),
        (("case_007_0000.nii.gz", "case_007_0001.nii.gz"), ("FLAIR", "DWI"), "case_007"),
        (("t1_0.nii.gz",), ("t1",), "t1_0"),
        (("p1/T1.nii.gz",), ("t1",), "p1"),
    ],
)
def test_a_case_of_single_files_is_called_as_its_folder_or_its_files(
    files: tuple[str, ...], channels: tuple[str, ...], name: str
) -> None:
    assert case_name([Path("/scans", file) for file in files], channels) == name


def test_files_whose_names_say_their_channels_are_putin_order() -> None:
    flair, dwi = Path("p/FLAIR.nii.gz"), Path("p/sub-1_dwi.nii")
    assert in_order([dwi, flair], ("FLAIR", "DWI")) == [flair, dwi]
    silent = [Path("p/a.nii"), Path("p/b.nii")]
    assert in_order(silent, ("FLAIR", "DWI")) == silent
    with pytest.raises(CohortError, match="Two of the files say that they are channel 'DWI'"):
        in_order([dwi, Path("p/DWI.nii")], ("FLAIR", "DWI"))
