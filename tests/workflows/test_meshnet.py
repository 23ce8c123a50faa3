"""A network that nobody here trained: it comes in whole, segments its scan, and takes a new head."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional
from typer.testing import CliRunner

from dmx.cli.main import app
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.volume import read_volume, write_volume
from dmx.config import trust
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import checkpoint_path
from dmx.training.checkpoint import read_checkpoint
from dmx.training.weights import WeightsFile
from dmx.transfer.header import read_header
from tests.workflows.test_train import artifacts

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared/data/meshnet"
PARAMETERS = 96_408
# Classes by index in the manifest of the experiment.
THALAMUS, HIPPOCAMPUS = 7, 14
# Plausible volumes of both sides together in an adult, in ml.
VOLUMES = {1: (350, 600), 2: (400, 650), 7: (11, 22), 8: (5, 10), 9: (7, 14), 13: (15, 30), 14: (5, 11), 15: (2, 5)}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the trained network is not in {DATA.parent.name}/meshnet")


@pytest.fixture(autouse=True)
def experiments(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The experiment's folder in a project of its own, whose code is trusted."""
    folder = project / "experiments/meshnet"
    shutil.copytree(ROOT / "experiments/meshnet", folder)
    manifest = (folder / "scan.csv").read_text()
    (folder / "scan.csv").write_text(manifest.replace("../../../shared/data/meshnet", str(DATA)))
    monkeypatch.setattr(trust, "_named", set())
    monkeypatch.setenv(trust.VARIABLE, "experiments.meshnet.network:dilated")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "experiments"]:
        del sys.modules[name]


def dmx(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, f"{result.output} {result.exception}"
    return " ".join(result.output.split())


def receive(*words: str) -> str:
    return dmx(
        *("transfer", "experiments/meshnet/transfer.yaml", "--from-file", str(DATA / "model.safetensors")),
        *("--head", "copy", "--name", "received", *words),
    )


def file_weights() -> dict[str, torch.Tensor]:
    path = DATA / "model.safetensors"
    reader = WeightsFile(path)
    return {info.name: reader[info.name] for info in read_header(path)}


def stored(project: Path, run: str, checkpoint: str) -> dict[str, torch.Tensor]:
    store = open_store(root=project)
    info = next(info for info in store.list_runs() if info.name == run)
    return dict(read_checkpoint(checkpoint_path(store, info, checkpoint, root=project)).model_state)


def conformed(path: Path) -> tuple[NDArray[np.float32], NiftiGrid]:
    volume = read_volume(path)
    assert volume.orientation == "LIA"
    return volume.array.astype(np.float32), volume.header


def crop(project: Path, *, size: int, start: tuple[int, int, int] = (96, 100, 96), name: str = "crop") -> Path:
    """Write a part of the scan, turned to RAS."""
    array, grid = conformed(DATA / "t1_crop.nii.gz")
    i, j, k = start
    part = array[i : i + size, j : j + size, k : k + size]
    affine = np.array(grid.affine)
    affine[:3, 3] += affine[:3, :3] @ np.array(start)
    # L I A becomes R A S: the first and the second axis run backwards, the second and the third change places.
    turned = part[::-1, ::-1].transpose(0, 2, 1)
    to_turned = np.array([[-1, 0, 0, size - 1], [0, 0, -1, size - 1], [0, 1, 0, 0], [0, 0, 0, 1]])
    write_volume(
        project / f"{name}.nii.gz", turned, NiftiGrid.from_affine(turned.shape, affine @ to_turned), dtype=np.float32
    )
    return project / f"{name}.nii.gz"


def by_hand(array_IJK: NDArray[np.float32]) -> NDArray[np.int64]:
    """Segment with nothing but the file of weights and the list of layers that comes with it."""
    layers = json.loads((DATA / "model.json").read_text())["layers"]
    x = torch.from_numpy((array_IJK - array_IJK.min()) / (array_IJK.max() - array_IJK.min()))[None, None]
    tensors = file_weights()
    with torch.inference_mode():
        for index, layer in enumerate(layers):
            weight, bias = (tensors[f"model.{2 * index}.{part}"] for part in ("weight", "bias"))
            x = functional.conv3d(x, weight, bias, padding=layer["padding"], dilation=layer["dilation"])
            x = functional.elu(x) if index < len(layers) - 1 else x
    return x.argmax(1)[0].numpy()


def test_all_weights_come_in(project: Path) -> None:
    output = receive()
    assert f"{PARAMETERS:,} of {PARAMETERS:,} parameters received (100.0%)" in output
    ours, theirs = stored(project, "received", "initial"), file_weights()
    assert {name.removeprefix("network.") for name in ours} == {name.removeprefix("model.") for name in theirs}
    assert all(ours[name.replace("model.", "network.")].equal(tensor) for name, tensor in theirs.items())


def test_depths_of_the_file_count_as_the_network_does(project: Path) -> None:
    output = receive("--head", "initialized", "--layers", "1,2,6", "--dry-run")
    assert f"{588 + 11_928 + 11_928:,} of {PARAMETERS:,} parameters received" in output
    assert "network.10 copied from source:model.10" in output


def test_a_scan_in_other_axes_is_segmented_as_by_hand(project: Path) -> None:
    receive()
    scan = crop(project, size=64, start=(64, 90, 96))
    dmx("predict", "--from-run", "meshnet/received", str(scan), "-o", "out", "--device", "cpu")
    predicted = read_volume(project / "out/crop_segmentation.nii.gz")
    turned = read_volume(scan).array.astype(np.float32)
    expected = by_hand(np.ascontiguousarray(turned.transpose(0, 2, 1)[::-1, ::-1]))
    back = expected[::-1, ::-1].transpose(0, 2, 1)
    assert len(np.unique(back)) > 5
    assert (predicted.array == back).mean() > 0.9999
    wrong = by_hand(turned)
    assert (predicted.array == wrong).mean() < 0.9, "axes that it was not trained on do not do"


def test_a_new_head_trains_and_all_else_stays_bit_for_bit(project: Path) -> None:
    receive()
    rows = ["# cohort: parts", "# classes: background, bright", "case,subject,channel_t1,label_map,roi,split"]
    for index, start in enumerate(((96, 100, 96), (100, 60, 60), (120, 110, 120))):
        scan = crop(project, size=24, start=start, name=f"part_{index}")
        volume = read_volume(scan)
        write_volume(project / f"bright_{index}.nii.gz", volume.array > 90, volume.header, dtype=np.uint8)
        split = "validation" if index == 2 else "training"
        rows.append(f"part_{index},p{index},{scan.name},bright_{index}.nii.gz,,{split}")
    (project / "parts.csv").write_text("\n".join(rows) + "\n")
    dmx(
        *("train", "experiments/meshnet/new_head.yaml", "--name", "new-head"),
        *(word for setting in SMALL for word in ("--set", setting)),
    )
    received, trained = stored(project, "received", "initial"), stored(project, "new-head", "last")
    head = {"network.18.weight", "network.18.bias"}
    assert {name for name in received if name not in head and not received[name].equal(trained[name])} == set()
    first = stored(project, "new-head", "initial")
    assert trained["network.18.weight"].shape[0] == 2
    assert {name for name in first if not first[name].equal(trained[name])} == head
    store = open_store(root=project)
    run = next(info for info in store.list_runs() if info.name == "new-head")
    plan = json.loads((artifacts(store, run) / "freeze/plan.json").read_text())
    assert set(plan["sha256"]) == set(received) - head
    assert [(check["occasion"], check["changed"]) for check in plan["checks"]] == [("start", []), ("end", [])]
    assert int(run.params["network.trainable_parameters"]) == 44


SMALL = (
    "cohort.manifest=../../parts.csv",
    "cohort.classes=[background, bright]",
    "cohort.labels={}",
    "sampling.segment=12",
    "sampling.workers=0",
    "training.steps_per_epoch=3",
    "validation.segments=4",
    "validation.volumes_every_epochs=0",
)


@pytest.mark.slow
def test_the_whole_head_is_segmented_into_plausible_structures(project: Path) -> None:
    receive()
    dmx("predict", "--from-run", "meshnet/received", str(DATA / "t1_crop.nii.gz"), "-o", "out", "--device", "cpu")
    volume = read_volume(project / "out/t1_crop_segmentation.nii.gz")
    labels = volume.array
    assert volume.orientation == "LIA"
    milliliters = np.bincount(labels.ravel(), minlength=18) / 1000
    assert {
        name: ml
        for name, ml in enumerate(milliliters)
        if name in VOLUMES and not VOLUMES[name][0] < ml < VOLUMES[name][1]
    } == {}
    middle = round(float(np.argwhere(labels == THALAMUS)[:, 0].mean()))
    for structure in (THALAMUS, 8, 9, 10, HIPPOCAMPUS, 15):
        left, right = (labels[middle:] == structure).sum(), (labels[:middle] == structure).sum()
        assert 0.8 < left / right < 1.25, structure
    # The hippocampus lies below the thalamus; the second axis points down.
    assert np.argwhere(labels == HIPPOCAMPUS)[:, 1].mean() > np.argwhere(labels == THALAMUS)[:, 1].mean() + 5
