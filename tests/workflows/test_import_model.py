"""A network of DeepMedic as a run: it predicts what it predicted there, and the run says where it comes from."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dmx.cohort.case import Case, Cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.manifest import write_manifest
from dmx.cohort.volume import read_volume, write_volume
from dmx.config.sections import PredictionSection
from dmx.errors import CheckpointError, CohortError, ConfigError, RunError
from dmx.model.deepmedic_config import read_model_config
from dmx.model.deepmedic_weights import deepmedic_variables
from dmx.sampling.patches import cut_patches
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunStore
from dmx.training.checkpoint import read_checkpoint
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.import_model import ImportRequest, import_deepmedic_model
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.resume import resume
from dmx.workflows.trained import Trained, changed_prediction, open_trained
from tests.model import bundle
from tests.workflows.conftest import Teller, session

CONFIG = """
modelName = "small lesions"
folderForOutput = "/home/somebody/output"
numberOfOutputClasses = 3
numberOfInputChannels = 2
numberFMsPerLayerNormal = [4, 5]
kernelDimPerLayerNormal = [[3, 3, 3], [3, 3, 3]]
useSubsampledPathway = True
segmentsDimTrain = [11, 11, 11]
segmentsDimInference = [13, 13, 13]
"""
TRAINING = "norm_zscore_prms = {'apply_per_channel': [True, False], 'cutoff_percents': [5., 95.]}\n"


@pytest.fixture
def files(project: Path) -> Path:
    """Folder with a configuration and a checkpoint of random weights, trained for 35 epochs."""
    (project / "model.cfg").write_text(CONFIG)
    (project / "train.cfg").write_text(TRAINING)
    section = read_model_config(CONFIG, source="model.cfg").section
    rng = np.random.default_rng(0)
    variables = deepmedic_variables(section, num_channels=2, num_classes=3)
    arrays = {v.source: rng.normal(0, 0.5, v.shape).astype(np.float32) for v in variables}
    arrays |= {name: abs(array) + 0.1 for name, array in arrays.items() if "varBns" in name}
    bundle.write(project / "small.ckpt", {**arrays, "trainer/num_epochs_trained": np.array(35, np.int64)})
    return project


def request(files: Path, **options: object) -> ImportRequest:
    defaults: dict[str, object] = {"config": files / "model.cfg", "checkpoint": files / "small.ckpt", "name": "one"}
    return ImportRequest(**{**defaults, **options})  # type: ignore[arg-type]


def opened(store: RunStore, project: Path, checkpoint: str | None = None) -> Trained:
    return open_trained(store, "small lesions/one", checkpoint=checkpoint, root=project)


def test_the_run_holds_the_network_and_says_where_it_comes_from(files: Path) -> None:
    teller = Teller()
    done = import_deepmedic_model(request(files, channels=("flair", "t1c")), session(files, teller))
    store = open_store(root=files)
    run = store.find_run(done.run.id)
    assert (run.kind, run.status, run.experiment) == ("import", "FINISHED", "small lesions")
    data = (files / "small.ckpt.data-00000-of-00001").read_bytes()
    assert run.tags["dmx.source_file"] == "small.ckpt.data-00000-of-00001"
    assert run.tags["dmx.source_sha256"] == hashlib.sha256(data).hexdigest()
    assert (run.params["source.epochs"], run.params["network.widths"]) == ("35", "4,5")
    assert (done.epochs, done.parameters) == (35, int(run.params["network.parameters"]))
    trained = opened(store, files)
    assert trained.manifest["source"] == {
        "format": "deepmedic",
        "file": "small.ckpt.data-00000-of-00001",
        "sha256": hashlib.sha256(data).hexdigest(),
        "epochs": 35,
    }
    contract = trained.contract
    assert (contract.channels, contract.classes) == (("flair", "t1c"), ("background", "class_1", "class_2"))
    assert (contract.pad_before, contract.pad_after, contract.compatibility) == ((2, 2, 2), (2, 2, 2), "deepmedic")
    assert (contract.preprocess.orientation, contract.preprocess.normalize.method) == ("native", "none")
    assert trained.experiment.prediction.tile == (13, 13, 13)
    assert trained.experiment.sampling.segment == (11, 11, 11)
    assert [opened(store, files, name).folder for name in ("initial", "last")] == [trained.folder] * 2
    assert any("Intensities go in as they are" in sentence for sentence in teller.sentences)
    table = list(csv.DictReader((store.local_artifacts(run.id) / "import" / "variables.csv").open()))  # type: ignore[operator]
    assert len(table) == done.tensors
    assert {"source": "net/W_1", "target": "normal.block_2.conv.weight", "shape": "5x4x3x3x3"} in table
    artifacts = (store.local_artifacts(run.id) / "config.yaml").read_text()  # type: ignore[operator]
    assert "somebody" not in artifacts
    assert str(files) not in artifacts


def test_the_training_configuration_says_how_intensities_go_in(files: Path) -> None:
    teller = Teller()
    options = {"channels": ("flair", "t1c"), "train_config": files / "train.cfg"}
    import_deepmedic_model(request(files, **options), session(files, teller))
    normalize = opened(open_store(root=files), files).contract.preprocess.normalize
    assert (normalize.method, normalize.channels, normalize.percentiles) == ("zscore", ("flair",), (5, 95))
    assert not any("Intensities" in sentence for sentence in teller.sentences)


def test_settings_of_preprocessing_and_prediction_may_be_set(files: Path) -> None:
    words = ("preprocess.normalize.method=zscore", "prediction.tile=15", "name=renamed")
    done = import_deepmedic_model(request(files, overrides=words), session(files))
    assert done.run.experiment == "renamed"
    trained = open_trained(open_store(root=files), "renamed/one", checkpoint=None, root=files)
    assert trained.contract.preprocess.normalize.method == "zscore"
    assert trained.experiment.prediction == PredictionSection(tile=15)
    assert trained.contract.channels == ("channel_0", "channel_1")
    assert changed_prediction("renamed/one", ["prediction.batch_size=2"], uri=None, root=files).batch_size == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": ("t1",)}, r"has 2 channels: name as many, got 1 \(t1\)"),
        ({"classes": ("a", "b")}, "has 3 classes"),
        ({"channels": ("t1", "t1")}, "same name"),
        ({"channels": ("t1", "t(2)")}, "cannot be part of a metric's name"),
        ({"overrides": ("model.activation=relu",)}, "An import may change"),
        ({"overrides": ("preprocess.spacing_mm=1",)}, "unknown setting"),
        ({"config": Path("nothing.cfg")}, "'nothing.cfg' cannot be read"),
    ],
)
def test_what_does_not_fit_is_said_before_a_run_exists(files: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        import_deepmedic_model(request(files, **options), session(files))
    assert open_store(root=files).list_runs() == []


def test_a_damaged_checkpoint_leaves_no_run(files: Path) -> None:
    path = files / "small.ckpt.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum of tensor 'net/W' does not fit"):
        import_deepmedic_model(request(files), session(files))
    (files / "model.cfg").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        import_deepmedic_model(request(files), session(files))
    assert open_store(root=files).list_runs() == []


@pytest.fixture
def scans(files: Path) -> Cohort:
    grid = NiftiGrid.from_affine((20, 17, 15), np.diag([-1.0, 1, 1, 1]))
    rng = np.random.default_rng(1)
    paths = {name: files / f"{name}.nii.gz" for name in ("flair", "t1c", "roi", "label")}
    for name in ("flair", "t1c"):
        write_volume(paths[name], rng.normal(size=grid.shape).astype(np.float32), grid, dtype=np.float32)
    write_volume(paths["roi"], np.ones(grid.shape, np.uint8), grid, dtype=np.uint8)
    write_volume(paths["label"], rng.integers(0, 3, grid.shape, dtype=np.uint8), grid, dtype=np.uint8)
    channels = {name: paths[name] for name in ("flair", "t1c")}
    case = Case(name="one", subject="one", channels=channels, label_map=paths["label"], roi=paths["roi"])
    return Cohort("pair", ("background", "class_1", "class_2"), ("flair", "t1c"), (case,))


def test_an_imported_network_predicts_and_is_scored_like_any_other(files: Path, scans: Cohort) -> None:
    write_manifest(scans, files / "pair.csv")
    done = import_deepmedic_model(request(files, channels=("flair", "t1c")), session(files))
    inputs = (files / "flair.nii.gz", files / "t1c.nii.gz")
    predict(PredictRequest(run=done.run.id, inputs=inputs, output=files / "out", device="cpu"), session(files))
    found = read_volume(files / "out" / f"{files.name}_segmentation.nii.gz").array
    trained = opened(open_store(root=files), files)
    padded = [np.pad(read_volume(path).array, 2, mode="reflect") for path in inputs]
    patch = torch.from_numpy(np.stack(padded).astype(np.float32))
    patches = cut_patches(patch, (0, 0, 0), trained.network.segment_plan((13, 13, 13)))
    with torch.no_grad():
        labels = trained.network([entry[None] for entry in patches])[0].argmax(0).numpy()
    # The first tile, as far as the last one of an axis, which ends with the scan, does not overlap it.
    assert np.array_equal(found[:9, :8, :6], labels[:9, :8, :6])
    assert len(np.unique(labels)) == 3
    scored = evaluate(EvaluateRequest(run=done.run.id, cohort=files / "pair.csv", device="cpu"), session(files))
    assert scored.rows
    with pytest.raises(CohortError, match="no cohort, because its network was imported"):
        evaluate(EvaluateRequest(run=done.run.id, device="cpu"), session(files))


def test_an_import_has_no_training_to_go_on_with(files: Path) -> None:
    done = import_deepmedic_model(request(files), session(files))
    with pytest.raises(RunError, match="no training"):
        resume(done.run.id, session(files))
    folder = opened(open_store(root=files), files).folder
    assert read_checkpoint(folder).training_state == {"optimizer": {}}
