"""A network that has learned with rois is not asked to do without, unless the user says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import read_grid, read_volume, write_volume
from dmx.errors import CohortError, ConfigError
from dmx.preprocess.contract import Contract
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.train import train
from dmx.workflows.trained import open_trained
from tests.workflows.conftest import Teller, session, settings


@pytest.fixture
def plain(project: Path, manifest: Path) -> Path:
    """The cohort without rois."""
    path = project / "plain.csv"
    write_manifest(read_manifest(manifest), path)
    return path


@pytest.fixture
def with_roi(project: Path, plain: Path) -> Path:
    """The cohort in folders of subjects, each with a file of its channel and a roi."""
    cases = []
    cohort = read_manifest(plain)
    for case in cohort.cases:
        folder = project / "subjects" / case.subject
        folder.mkdir(parents=True)
        source = case.channels["t1"]
        assert source is not None
        grid, values = read_grid(source), read_volume(source).array
        write_volume(folder / "T1.nii.gz", values, grid, dtype=np.float32)
        roi = np.zeros(values.shape, dtype=np.uint8)
        roi[2:-2, 2:-2, 2:-2] = 1
        write_volume(folder / "brain.nii.gz", roi, grid, dtype=np.uint8)
        cases.append(replace(case, channels={"t1": folder / "T1.nii.gz"}, roi=folder / "brain.nii.gz"))
    path = project / "with_roi.csv"
    write_manifest(replace(cohort, cases=tuple(cases)), path)
    return path


def request(run: str, project: Path, *inputs: Path, **options: object) -> PredictRequest:
    return PredictRequest(**{"run": run, "inputs": inputs, "output": project / "out", "device": "cpu", **options})


def test_a_missing_roi_is_an_error_unless_it_is_to_be_left_out(project: Path, plain: Path, with_roi: Path) -> None:
    run = train(settings(with_roi), session(project)).run.id
    assert open_trained(open_store(root=project), run, checkpoint=None, root=project).contract.roi is True
    with pytest.raises(CohortError, match=r"6 of 6 cases have no roi, first 'case_0'.*--no-roi"):
        predict(request(run, project, plain), session(project))
    with pytest.raises(CohortError, match="2 of 2 cases have no roi"):
        evaluate(EvaluateRequest(run=run, cohort=plain, device="cpu", allow_leak=True), session(project))
    assert not (project / "out").exists()

    teller = Teller()
    done = predict(request(run, project, plain, no_roi=True, split="evaluation"), session(project, teller))
    assert open_store(root=project).get_run(done.run.id).params["roi"] == "ignored"
    assert any("trained on scans with a roi" in warning for warning in teller.sentences)


def test_the_roi_beside_a_scan_is_found_and_one_that_is_named_comes_first(project: Path, with_roi: Path) -> None:
    run = train(settings(with_roi), session(project)).run.id
    folder = project / "subjects/s4"
    teller = Teller()
    found = predict(request(run, project, folder / "T1.nii.gz"), session(project, teller))
    # Named after the folder, as each scan is called like its channel.
    assert [row["case"] for row in found.rows] == ["s4"]
    assert any("brain.nii.gz" in sentence for sentence in teller.sentences)
    known = predict(request(run, project, with_roi, split="evaluation"), session(project))
    first = read_volume(project / "out/s4_segmentation.nii.gz").array
    assert np.array_equal(first, read_volume(project / f"out/{known.rows[0]['case']}_segmentation.nii.gz").array)

    empty = project / "other_roi.nii.gz"
    roi = np.zeros(first.shape, dtype=np.uint8)
    roi[:3, :3, :3] = 1
    write_volume(empty, roi, read_grid(folder / "T1.nii.gz"), dtype=np.uint8)
    named = request(run, project, folder / "T1.nii.gz", rois=[empty], overwrite=True)
    predict(named, session(project))
    assert not read_volume(project / "out/s4_segmentation.nii.gz").array[4:].any()
    with pytest.raises(ConfigError, match="--roi must be given once per case, got 2 for 1"):
        predict(replace(named, rois=[empty, empty]), session(project))
    with pytest.raises(ConfigError, match="--roi is for single files"):
        predict(replace(named, inputs=[with_roi]), session(project))


def test_a_network_that_knew_no_roi_needs_none(project: Path, plain: Path) -> None:
    run = train(settings(plain), session(project)).run.id
    assert open_trained(open_store(root=project), run, checkpoint=None, root=project).contract.roi is False
    assert predict(request(run, project, plain, split="evaluation"), session(project)).rows


def test_contracts_from_before_rois_were_noted_claim_nothing() -> None:
    contract = Contract(channels=("t1",), classes=("background", "ball"))
    assert "roi" not in contract.as_dict()
    assert Contract.from_dict(contract.as_dict()).roi is None
    noted = replace(contract, roi=True)
    assert Contract.from_dict(noted.as_dict()).roi is True
    # What was prepared before is found again.
    assert noted.key() == contract.key()
