"""A run goes on only with what it has read, wherever that lies by now."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.case import Case, Cohort
from dmx.cohort.image import read_image, write_image
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import read_grid, read_volume, write_volume
from dmx.config.load import build_experiment
from dmx.config.sections import Experiment
from dmx.errors import CohortError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.identity import IDENTITY
from dmx.workflows.resume import resume
from dmx.workflows.session import Session
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, make_manifest, session, settings
from tests.workflows.test_label_volumes import raw
from tests.workflows.test_train import artifacts, assert_same, final_state
from tests.workflows.tiny_images import image_settings, make_images

QUICK = {"segments": 4, "volumes_every_epochs": 0, "overlays": 0}
SHORT = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2}


def stopped(project: Path, experiment: Experiment) -> str:
    """Return the run of a training that was stopped after its first step."""
    return train(experiment, session(project, Teller(stop_after=1))).run.id


def refusal(project: Path, run: str) -> str:
    with pytest.raises(CohortError) as caught:
        resume(run, session(project))
    return str(caught.value)


def shifted(path: Path) -> None:
    """Rewrite a label map, roi or weight map, moved by a voxel; the header stays."""
    volume = read_volume(path)
    write_volume(path, np.roll(volume.array, 1, axis=0), read_grid(path), dtype=volume.array.dtype)


def full_manifest(project: Path) -> Path:
    """Make a manifest whose cases have a roi and a weight map each."""
    cohort = read_manifest(make_manifest(project))
    cases = []
    for case in cohort.cases:
        assert case.label_map is not None
        grid, array = read_grid(case.label_map), read_volume(case.label_map).array
        roi, weight = (project / f"scans/{kind}_{case.name}.nii.gz" for kind in ("roi", "weight"))
        inside = np.zeros(array.shape, dtype=np.uint8)
        inside[1:-1, 1:-1, 1:-1] = 1
        write_volume(roi, inside, grid, dtype=np.uint8)
        write_volume(weight, (1.0 + array).astype(np.float32), grid, dtype=np.float32)
        cases.append(replace(case, roi=roi, weight_maps={"near": weight}))
    path = project / "cohort.csv"
    write_manifest(replace(cohort, cases=tuple(cases)), path)
    return path


def changed_cases(path: Path, change: Callable[[Case], Case]) -> None:
    cohort = read_manifest(path)
    write_manifest(replace(cohort, cases=tuple(change(case) for case in cohort.cases)), path)


def test_a_segmentation_goes_on_only_with_all_it_has_read(project: Path) -> None:
    manifest = full_manifest(project)
    run = stopped(project, settings(manifest, training=SHORT, validation=QUICK))
    kept = project.parent / "kept"
    shutil.copytree(project / "scans", kept)
    text = manifest.read_text()
    for column, name, file in (
        ("label_map", "case_1", "label_1"),
        ("roi", "case_0", "roi_case_0"),
        ("weight_near", "case_2", "weight_case_2"),
        # Of a validation case.
        ("label_map", "case_3", "label_3"),
        ("channel_t1", "case_3", "t1_3"),
    ):
        shifted(project / f"scans/{file}.nii.gz")
        said = refusal(project, run)
        assert f"{column} of case '{name}' ('{project}/scans/{file}.nii.gz') was changed" in said
        assert "Restore this, or begin a new run" in said
        shutil.copytree(kept, project / "scans", dirs_exist_ok=True)
    changed_cases(manifest, lambda case: replace(case, roi=None) if case.name == "case_0" else case)
    assert "roi of case 'case_0' is missing" in refusal(project, run)
    changed_cases(manifest, lambda case: replace(case, split="validation") if case.name == "case_2" else case)
    assert "case 'case_2' has moved to split 'validation'; 1 of the 3" in refusal(project, run).replace(
        "1 of the 3 cases of split 'training' are missing; case 'case_2' has moved to split 'validation'",
        "case 'case_2' has moved to split 'validation'; 1 of the 3",
    )
    manifest.write_text(text)
    lines = text.splitlines()
    manifest.write_text("\n".join([*lines[:3], lines[4], lines[3], *lines[5:]]) + "\n")
    assert "the cases of split 'training' are in another order" in refusal(project, run)
    manifest.write_text(text.replace("# classes: background, ball", "# classes: background, sphere"))
    assert "its outputs were background, ball and are background, sphere" in refusal(project, run)
    # What no training reads may change.
    manifest.write_text(text)
    shifted(project / "scans/label_4.nii.gz")
    assert resume(run, session(project)).reason == "finished"


def test_runs_of_earlier_versions_are_told_by_their_scans(project: Path, manifest: Path) -> None:
    run = stopped(project, settings(manifest, training=SHORT, validation=QUICK))
    store = open_store(root=project)
    file = artifacts(store, store.get_run(run)) / IDENTITY
    known = json.loads(file.read_text())
    del known["reads"]
    file.write_text(json.dumps(known))
    scan = (project / "scans/t1_1.nii.gz").read_bytes()
    shifted(project / "scans/t1_1.nii.gz")
    assert "'case_1' in split 'training' is new or has other scans" in refusal(project, run)
    (project / "scans/t1_1.nii.gz").write_bytes(scan)
    shifted(project / "scans/label_1.nii.gz")
    assert resume(run, session(project)).reason == "finished"


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_volumes_go_on_only_with_their_labels_and_targets(project: Path, manifest: Path, task: str) -> None:
    cohort = read_manifest(manifest)
    cases = [
        replace(case, label=index % 2, targets={"age": 40.0 + index, "height": 1.0})
        for index, case in enumerate(cohort.cases)
    ]
    labeled = replace(cohort, name="sides", cases=tuple(cases), label_classes=("left", "right"))
    write_manifest(labeled, manifest)
    given = raw(manifest, task=task, training={"epochs": 2, "batch_size": 1})
    if task == "regression":
        given["cohort"] = {"manifest": str(manifest), "targets": ["age"]}
    run = stopped(project, build_experiment(given))
    text = manifest.read_text()
    # Neither is read, nor are label maps.
    other = {"label": 0} if task == "regression" else {"targets": {"age": 7.0, "height": 1.0}}
    other["targets"] = {"age": 40.0, "height": 2.0} if task == "regression" else other["targets"]
    changed = {"targets": {"age": 99.0, "height": 1.0}} if task == "regression" else {"label": 1}
    changed_cases(manifest, lambda case: replace(case, **changed) if case.name == "case_0" else case)
    what = "target_age" if task == "regression" else "label"
    assert f"{what} of case 'case_0' was changed" in refusal(project, run)
    manifest.write_text(text)
    changed_cases(manifest, lambda case: replace(case, **other) if case.name == "case_0" else case)
    shifted(project / "scans/label_0.nii.gz")
    assert resume(run, session(project)).reason == "finished"


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_images_go_on_only_with_their_labels_and_targets(project: Path, task: str) -> None:
    table = make_images(project)
    given = {"task": task, "training": {"epochs": 2, "batch_size": 4}}
    if task == "regression":
        given["stimuli"] = {"source": str(table), "targets": ["brightness"]}
    run = stopped(project, image_settings(table, **given))
    text = table.read_text()
    row = next(line for line in text.splitlines() if line.startswith("gray/training_0"))
    path, label, brightness, split = row.split(",")
    cells = (path, label, "0.01", split) if task == "regression" else (path, "light", brightness, split)
    table.write_text(text.replace(row, ",".join(cells)))
    what = "target_brightness" if task == "regression" else "label"
    assert f"{what} of case" in (said := refusal(project, run))
    assert "training_0" in said
    table.write_text(text)
    picture = project / "gray/validation_1.png"
    array = read_image(picture)
    write_image(picture, 255 - array)
    assert "channel_image of case" in (said := refusal(project, run))
    assert "validation_1" in said


def moved_study(project: Path, place: Path) -> Path:
    place.mkdir()
    shutil.move(project / "cohort.csv", place / "cohort.csv")
    shutil.move(project / "scans", place / "scans")
    return place / "cohort.csv"


def other_study(folder: Path) -> Path:
    """Make a cohort with the same names of everything and other scans."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = make_manifest(folder)
    for file in (folder / "scans").glob("t1_*"):
        volume = read_volume(file)
        write_volume(file, np.roll(volume.array, 3, axis=1), read_grid(file), dtype=np.float32)
    return manifest


def test_a_cohort_that_has_moved_is_given_its_new_place(
    project: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = settings(manifest, training=SHORT, validation=QUICK)
    whole, run = train(experiment, session(project)).run, stopped(project, experiment)
    place = moved_study(project, project.parent / "archive")
    # Another study's manifest of the same name lies where the command is called.
    monkeypatch.chdir(other_study(project.parent / "other study").parent)
    assert f"'{manifest}', which is not there" in refusal(project, run)
    with pytest.raises(CohortError, match="which is not there"):
        evaluate(EvaluateRequest(run=whole.id), session(project))
    with pytest.raises(CohortError, match="channel_t1 of case 'case_0'"):
        resume(run, session(project), changes={"cohort": "cohort.csv"})
    assert resume(run, session(project), changes={"cohort": place}).reason == "finished"
    store = open_store(root=project)
    assert_same(final_state(store, store.get_run(run)), final_state(store, whole))
    # From now on it is the place of the run's cohort.
    assert evaluate(EvaluateRequest(run=run), session(project)).cohort == "balls"


def test_a_run_is_scored_on_its_own_cohort_wherever_it_is_called(
    project: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(settings(manifest, training=SHORT, validation=QUICK), session(project)).run
    here = other_study(project / "elsewhere").parent
    monkeypatch.chdir(here)
    address = f"sqlite:///{project}/mlruns/mlflow.db"
    expected = evaluate(EvaluateRequest(run=run.id), session(project))
    for root in (project, here):
        done = evaluate(EvaluateRequest(run=run.id, uri=address), Session(root=root))
        assert done.rows == expected.rows
    # The run's own cohort was replaced by another one of that name.
    shutil.rmtree(project / "scans")
    shutil.copytree(here / "scans", project / "scans")
    with pytest.raises(CohortError, match=r"is not the cohort that run 'balls/.*none of its scans.*--cohort PATH"):
        evaluate(EvaluateRequest(run=run.id), session(project))
    assert evaluate(EvaluateRequest(run=run.id, cohort=here / "cohort.csv"), session(project)).rows != expected.rows


def test_a_fold_of_a_moved_cohort_is_the_fold_of_the_run(project: Path, manifest: Path) -> None:
    cohort = read_manifest(manifest)
    write_manifest(Cohort(**{**vars(cohort), "cases": tuple(replace(c, split="") for c in cohort.cases)}), manifest)
    folded = settings(manifest, cohort={"fold": 0, "folds": 3}, training=SHORT, validation=QUICK)
    run = train(folded, session(project)).run
    own = evaluate(EvaluateRequest(run=run.id, split="validation"), session(project))
    place = moved_study(project, project.parent / "archive")
    there = evaluate(EvaluateRequest(run=run.id, cohort=place, split="validation"), session(project))
    assert [row["case"] for row in there.rows] == [row["case"] for row in own.rows]
