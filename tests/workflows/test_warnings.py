"""A warning of a check reaches the terminal once, and the run: its log, its artifacts and its summary."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import dmx
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.manifest import read_manifest
from dmx.cohort.volume import read_grid, write_volume
from dmx.errors import CohortError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunInfo
from dmx.tracking.summary import WARNINGS
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, session, settings
from tests.workflows.tiny_images import image_settings, make_images

BLANK = "'case_0'"
LACKS = "No label map for training holds class 'ball' (1), so it cannot be learned."
NOTHING = "label_map holds background only."
SHARE = "No training case has a voxel of foreground; the share goes to the other sampling categories."


def blank(manifest: Path, *names: str) -> None:
    """Let the label maps of cases hold background only."""
    for case in read_manifest(manifest).cases:
        if case.name in names and case.label_map is not None:
            grid = read_grid(case.label_map)
            write_volume(case.label_map, np.zeros(grid.shape), grid, dtype=np.uint8)


def kept(project: Path, run: RunInfo) -> tuple[list[str], str, str]:
    """Return the warnings of a run, its summary and its log."""
    store = open_store(root=project)
    files = store.local_artifacts(run.id)
    assert files is not None
    tags = store.get_run(run.id).tags
    lines = (files / WARNINGS).read_text().splitlines()
    assert tags["dmx.warnings"] == str(len(lines))
    log = files / "log.txt"
    return lines, tags["mlflow.note.content"], log.read_text() if log.is_file() else ""


def test_blank_label_maps_are_a_warning_in_the_terminal_the_run_and_its_summary(project: Path, manifest: Path) -> None:
    blank(manifest, *(f"case_{n}" for n in range(6)))
    teller = Teller()
    done = train(settings(manifest), session(project, teller))
    shown = [sentence for sentence in teller.sentences if sentence.startswith("Warning: ")]
    assert len(shown) == len(set(shown))
    lines, note, log = kept(project, done.run)
    assert [f"Warning: {line}" for line in lines] == shown
    assert any(BLANK in line and line.endswith(NOTHING) for line in lines)
    assert {LACKS, SHARE} <= set(lines)
    for line in lines:
        assert f"- {line}" in note
        assert f"Warning: {line}" in log
    assert "| training | finished after" in note


def test_a_sound_training_has_no_warnings(project: Path, manifest: Path) -> None:
    teller = Teller()
    done = train(settings(manifest), session(project, teller))
    assert not [sentence for sentence in teller.sentences if "Warning" in sentence]
    tags = open_store(root=project).get_run(done.run.id).tags
    assert "dmx.warnings" not in tags
    assert "Warnings" not in tags["mlflow.note.content"]


def test_a_resume_shows_a_warning_again_and_keeps_it_once(project: Path, manifest: Path) -> None:
    blank(manifest, "case_0")
    first = train(settings(manifest), session(project, Teller(stop_after=3)))
    teller = Teller()
    resume(first.run.id, session(project, teller))
    assert sum("Warning: Case 'case_0': label_map holds" in sentence for sentence in teller.sentences) == 1
    lines, note, _ = kept(project, first.run)
    assert lines == [f"Case 'case_0': {NOTHING}"]
    assert note.count(NOTHING) == 1


def test_evaluation_and_prediction_keep_their_warnings(project: Path, manifest: Path) -> None:
    done = train(settings(manifest), session(project))
    blank(manifest, "case_4")
    teller = Teller()
    scored = evaluate(EvaluateRequest(run=done.run.id), session(project, teller))
    assert f"Warning: Case 'case_4': {NOTHING}" in teller.sentences
    lines, note, _ = kept(project, scored.run)
    assert f"Case 'case_4': {NOTHING}" in lines
    assert NOTHING in note
    large = project / "large.nii.gz"
    grid = read_grid(project / "scans/t1_4.nii.gz")
    huge = NiftiGrid.from_affine(grid.shape, np.diag([25.0, 25.0, 25.0, 1.0]))
    write_volume(large, np.random.default_rng(0).normal(size=grid.shape), huge, dtype=np.float32)
    told = Teller()
    predicted = predict(PredictRequest(run=done.run.id, inputs=[large], output=project / "out"), session(project, told))
    lines, _, _ = kept(project, predicted.run)
    assert [f"Warning: {line}" for line in lines] == [line for line in told.sentences if "Warning" in line]
    assert "has an unusual voxel size of 25 x 25 x 25 mm." in lines[0]


def test_the_python_function_logs_its_warnings_and_keeps_them(
    project: Path, manifest: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blank(manifest, "case_0")
    tiny = {"training": {"steps_per_epoch": 2}, "sampling": {"segment": 9, "workers": 0}, "validation": {"segments": 8}}
    done = dmx.train(
        torch.nn.Conv3d(1, 2, 1), manifest, epochs=1, batch_size=2, settings=tiny, store=project / "mlruns"
    )
    assert [record.message for record in caplog.records] == [f"Warning: Case 'case_0': {NOTHING}"]
    assert done.run is not None
    assert kept(project, done.run)[0] == [f"Case 'case_0': {NOTHING}"]


def test_images_are_checked_before_they_train(project: Path) -> None:
    table = make_images(project)
    twice = project / "gray/training_0.png"
    (project / "gray/training_2.png").write_bytes(twice.read_bytes())
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not (",light," in line and line.endswith("validation\n"))))
    teller = Teller()
    done = train(image_settings(table), session(project, teller))
    shown = [sentence for sentence in teller.sentences if sentence.startswith("Warning: ")]
    assert any("Class 'light' has no images in validation." in sentence for sentence in shown)
    assert any("holds the same picture as" in sentence for sentence in shown)
    assert [f"Warning: {line}" for line in kept(project, done.run)[0]] == shown
    (project / "gray/validation_0.png").write_bytes(twice.read_bytes())
    with pytest.raises(CohortError, match=r"holds the same picture as .* in training"):
        train(image_settings(table), session(project))


def test_what_resampling_takes_from_a_class_is_a_warning_before_the_first_step(project: Path, manifest: Path) -> None:
    case = read_manifest(manifest).cases[1]
    assert case.label_map is not None
    grid = read_grid(case.label_map)
    thin = np.zeros(grid.shape)
    thin[4:12, 9, 6] = 1
    write_volume(case.label_map, thin, grid, dtype=np.uint8)
    teller = Teller()
    coarse = settings(manifest, preprocess={"spacing": [3.0, 3.0, 3.0]}, sampling={"segment": 9})
    done = train(coarse, session(project, teller))
    begun = next(n for n, sentence in enumerate(teller.sentences) if sentence.startswith("Run "))
    gains = "At voxels of 3 x 3 x 3 mm class 'ball' gains more than 25 % of its volume in "
    assert any(sentence.startswith(f"Warning: {gains}") for sentence in teller.sentences[:begun])
    files = open_store(root=project).local_artifacts(done.run.id)
    assert files is not None
    with (files / "cohort/kept_volumes.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert len(rows) == 4
    assert float(rows["case_1"]["share"]) > 1.3
    assert 0.85 < float(rows["case_0"]["share"]) < 1.15
