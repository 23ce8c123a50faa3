"""The command that brings in DeepMedic's networks, held against what DeepMedic itself computed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dmx.cohort.case import Case, Cohort
from dmx.cohort.manifest import write_manifest
from dmx.cohort.volume import read_volume
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.trained import open_trained

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN = SHARED / "golden"
PREFIX = GOLDEN / "ckpt_tiny" / "tinyCnn.final.model.ckpt"
CASE = SHARED / "data" / "brats2015" / "validation" / "brats_2013_pat0003_1"

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no reference arrays of DeepMedic at {GOLDEN}")


def dmx(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dmx", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


def imported(
    project: Path, config: Path = GOLDEN / "ckpt_tiny" / "modelConfig.cfg"
) -> subprocess.CompletedProcess[str]:
    words = ("--checkpoint", PREFIX, "--channels", "flair, t1c", "--name", "first")
    return dmx("model", "import", "deepmedic", "--config", config, *words, folder=project)


def test_the_imported_network_gives_deepmedics_logits(project: Path) -> None:
    done = imported(project)
    assert done.returncode == 0, done.stderr
    assert "35 variables, 3,291 parameters, trained for 2 epochs" in " ".join(done.stdout.split())
    network = open_trained(open_store(root=project), "tinyCnn/first", checkpoint=None, root=project).network
    with np.load(GOLDEN / "ckpt_tiny" / "io.npz") as arrays, torch.no_grad():
        for kind in ("real", "rand"):
            logits = network([torch.from_numpy(arrays[f"{kind}/x{k}"]) for k in (0, 1)])
            assert np.abs(logits.numpy() - arrays[f"{kind}/logits"]).max() <= 1e-5


def test_another_configuration_is_one_sentence_and_exit_code_2(project: Path) -> None:
    text = (GOLDEN / "ckpt_tiny" / "modelConfig.cfg").read_text().replace("[4,5,6]", "[4,5,7]")
    (project / "other.cfg").write_text(text)
    done = imported(project, project / "other.cfg")
    assert done.returncode == 2
    assert "net/W_2 [6, 5, 3, 3, 3] instead of [7, 5, 3, 3, 3]" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_whole_scan_is_segmented_as_deepmedic_did(project: Path) -> None:
    assert imported(project).returncode == 0
    files = {"flair": CASE / "Flair_subtrMeanDivStd.nii.gz", "t1c": CASE / "T1c_subtrMeanDivStd.nii.gz"}
    case = Case(name="pat0003", subject="pat0003", channels=files, label_map=None, roi=CASE / "brainmask.nii.gz")
    write_manifest(Cohort("brats", (), ("flair", "t1c"), (case,)), project / "cohort.csv")
    done = dmx("predict", "cohort.csv", "--from-run", "tinyCnn/first", "-o", "out", folder=project)
    assert done.returncode == 0, done.stderr
    with np.load(GOLDEN / "e2e_tiny_pat0003.npz") as arrays:
        same = read_volume(project / "out" / "pat0003_segmentation.nii.gz").array == arrays["segm"]
    assert same.mean() >= 0.9999
