"""Activations, ablation and probe of a segmentation run."""

import csv
import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.cohort.volume import read_volume
from dmx.errors import CohortError, ConfigError, ModelError
from dmx.evaluation.activations import read_activations, read_stimulus_names
from dmx.evaluation.layer_masks import LayerMask
from dmx.tracking.family import find_family
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunInfo
from dmx.workflows.ablate import AblateRequest, ablate
from dmx.workflows.activations import ActivationsRequest, activations
from dmx.workflows.evaluate import EvaluateRequest, evaluate
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.probe import ProbeRequest, probe
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, make_manifest, session, settings

QUICK = {"segments": 4, "volumes_every_epochs": 0, "overlays": 0}


@dataclass(frozen=True)
class Place:
    """A project with a trained network."""

    root: Path
    manifest: Path
    run: str

    def stored(self, run: RunInfo) -> tuple[RunInfo, Path]:
        store = open_store(root=self.root)
        files = store.local_artifacts(run.id)
        assert files is not None
        return store.get_run(run.id), files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Place]:
    """Train once for all tests of the file: they only read what the run holds."""
    root = tmp_path_factory.mktemp("inside")
    (root / "mlruns").mkdir()
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(root / "mlruns/mlflow.db")) as target:
        source.backup(target)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DMX_CACHE_DIR", str(root / "facts"))
        cohort = read_manifest(make_manifest(root))
        cases = [
            # What a case is can be seen: large ones are bright.
            replace(case, label=number % 2, targets={"age": 20.0 + number})
            for number, case in enumerate(cohort.cases)
        ]
        write_manifest(replace(cohort, cases=tuple(cases), label_classes=("left", "right")), root / "cohort.csv")
        quick = {"epochs": 1, "steps_per_epoch": 12, "moving_average": None}
        run = train(settings(root / "cohort.csv", training=quick, validation=QUICK), session(root)).run.id
        yield Place(root, root / "cohort.csv", run)


def test_activations_of_a_cohort_are_means_over_its_volumes(place: Place) -> None:
    layers = ["normal.block_2", "subsampled_1.block_1", "fc.block_1"]
    file = place.root / "a.act.h5"
    request = ActivationsRequest(run=place.run, inputs=[place.manifest], layers=layers, output=file)
    done = activations(request, session(place.root))
    found = read_activations(file)
    assert {layer: values.shape for layer, values in found.items()} == {
        "normal.block_2": (6, 4, 1, 1),
        "subsampled_1.block_1": (6, 4, 1, 1),
        "fc.block_1": (6, 6, 1, 1),
    }
    assert read_stimulus_names(file) == tuple(f"case_{number}" for number in range(6))
    # Another way to the same numbers: the layer's maps as volumes, here on the grid of the scan.
    features = dict.fromkeys(layers, (0, 3))
    wanted = PredictRequest(
        run=place.run, inputs=[place.manifest], output=place.root / "maps", features=features, split="validation"
    )
    predict(wanted, session(place.root))
    for layer in layers:
        maps = [read_volume(place.root / f"maps/case_3_features_{layer}_{k:03d}.nii.gz").array for k in range(4)]
        means = np.array([volume.mean() for volume in maps])
        assert np.allclose(found[layer][3, :4, 0, 0], means, atol=1e-5)
    run, files = place.stored(done.run)
    assert (run.kind, run.tags["dmx.source_run_id"]) == ("activations", place.run)
    assert run.params["pool"] == "mean"
    assert run.params["layers"] == ", ".join(layers)
    rows = list(csv.DictReader((files / "activations/layers.csv").open()))
    assert rows[2] == {"layer": "fc.block_1", "shape": "6x6x1x1", "file": "a.act.h5"}


def test_masks_choose_channels_and_files_are_not_replaced_unasked(place: Place) -> None:
    file = place.root / "b.act.h5"
    request = ActivationsRequest(
        run=place.run,
        inputs=[place.manifest],
        layers={"fc.block_1": LayerMask(channels=(6, 1))},
        pool="none",
        split="validation",
        output=file,
    )
    activations(request, session(place.root))
    values = read_activations(file)["fc.block_1"]
    # The grid of the scan, cut to nothing here: 16 x 18 x 14 voxels.
    assert values.shape == (1, 2, 16, 18, 14)
    with pytest.raises(ConfigError, match="exists"):
        activations(request, session(place.root))
    before = file.read_bytes()
    assert activations(replace(request, overwrite=True), session(place.root)).file.count == 1
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"layers": ["normal.blok_2"]}, ModelError, "Did you mean 'normal.block_2'"),
        ({"output": Path("x.h5")}, ConfigError, "act.h5"),
        ({"split": "nowhere"}, CohortError, "no case in split"),
        ({"inputs": [Path("none.csv")]}, CohortError, "does not exist"),
    ],
)
def test_what_cannot_be_read_makes_no_run(
    place: Place, changes: dict[str, object], error: type[Exception], sentence: str
) -> None:
    request = ActivationsRequest(run=place.run, inputs=[place.manifest], layers=["head"], output=Path("c.act.h5"))
    before = len(open_store(root=place.root).list_runs())
    with pytest.raises(error, match=sentence):
        activations(replace(request, **changes), session(place.root))  # type: ignore[arg-type]
    assert len(open_store(root=place.root).list_runs()) == before
    assert not list(place.root.glob("*.part"))


def test_ablation_stands_beside_the_evaluation_of_the_whole_network(place: Place) -> None:
    whole = evaluate(EvaluateRequest(run=place.run), session(place.root))
    done = ablate(AblateRequest(run=place.run, layer="fc.block_1", channels=[1, 2]), session(place.root))
    assert done.tensors[:1] == ("fc.block_1.conv.weight",)
    run, files = place.stored(done.run)
    assert (run.kind, run.tags["dmx.source_run_id"], run.params["split"]) == ("ablate", place.run, "evaluation")
    assert (run.params["layer"], run.params["channels"]) == ("fc.block_1", "1-2")
    change = done.changes["dice/ball"]
    assert change is not None
    mean = whole.summary["dice/ball"].mean
    assert mean == pytest.approx(change.first)
    assert run.metrics["unablated/dice/ball"] == pytest.approx(mean)
    assert run.metrics["ablation/dice/ball"] == pytest.approx(change.second)
    unablated = list(csv.DictReader((files / "ablation/unablated.csv").open()))
    assert [float(row["dice/ball"]) for row in unablated] == pytest.approx([row["dice/ball"] for row in whole.rows])
    rows = {(row["metric"], row["class"]): row for row in csv.DictReader((files / "ablation/changes.csv").open())}
    assert float(rows["dice", "ball"]["difference"]) == pytest.approx(change.difference)
    assert (files / "figures/dice_ablated.png").is_file()
    # Without the last hidden layer all voxels look alike, so the scores are those of nothing or of everything.
    blind = ablate(AblateRequest(run=place.run, layer="fc.block_1"), session(place.root))
    assert blind.changes["sensitivity/ball"] is not None
    assert blind.changes["sensitivity/ball"].second in (0.0, 1.0)


def test_ablation_refuses_what_is_not_there(place: Place) -> None:
    before = len(open_store(root=place.root).list_runs())
    with pytest.raises(ModelError, match="4 channels, counted from 1, got channel 5"):
        ablate(AblateRequest(run=place.run, layer="normal.block_2", channels=[5]), session(place.root))
    with pytest.raises(ModelError, match="Did you mean 'head'"):
        ablate(AblateRequest(run=place.run, layer="heat"), session(place.root))
    with pytest.raises(CohortError, match="were in the training"):
        ablate(AblateRequest(run=place.run, layer="head", split="training"), session(place.root))
    assert len(open_store(root=place.root).list_runs()) == before


def test_a_probe_scores_layers_as_a_run(place: Place) -> None:
    teller = Teller()
    request = ProbeRequest(run=place.run, inputs=[place.manifest], layers=["normal.block_?", "head"], folds=3)
    done = probe(request, session(place.root, teller))
    report = done.report
    assert [(score.layer, score.features) for score in report.layers] == [
        ("normal.block_1", 4),
        ("normal.block_2", 4),
        ("head", 2),
    ]
    run, files = place.stored(done.run)
    assert (run.kind, run.tags["dmx.source_run_id"], run.params["target"]) == ("probe", place.run, "label")
    table = list(csv.DictReader((files / "probe/layers.csv").open()))
    assert [float(row["mean"]) for row in table] == pytest.approx([score.mean for score in report.layers])
    assert run.metrics["probe/best"] == pytest.approx(max(score.mean for score in report.layers))
    assert run.metrics["probe/chance"] == 0.5
    summary = json.loads((files / "probe/summary.json").read_text())
    assert summary["target"] == "label"
    assert (files / "figures/probe.png").is_file()
    assert any("3 of 6 cases were in the training" in sentence for sentence in teller.sentences)
    family = find_family(open_store(root=place.root), run)
    assert family.children(place.run)
    assert family.members[done.run.id].kind == "probe"


def test_a_probe_reads_numbers_and_leaves_out_cases_that_have_none(place: Place) -> None:
    cohort = read_manifest(place.manifest)
    cases = tuple(
        replace(case, targets={} if number == 0 else case.targets) for number, case in enumerate(cohort.cases)
    )
    manifest = place.root / "some.csv"
    write_manifest(replace(cohort, cases=cases), manifest)
    teller = Teller()
    request = ProbeRequest(run=place.run, inputs=[manifest], layers=["head"], target="age", folds=2)
    done = probe(request, session(place.root, teller))
    assert (done.report.task, done.report.cases) == ("regression", 5)
    assert "1 of 6 cases have no age and are left out." in teller.sentences
    with pytest.raises(CohortError, match="Did you mean 'age'"):
        probe(replace(request, target="aeg"), session(place.root))
    with pytest.raises(ConfigError, match="folds must be from 2 to the number of groups, 5, got 9"):
        probe(replace(request, folds=9), session(place.root))


def test_what_is_not_installed_is_said_before_there_is_a_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(open_store(root=place.root).list_runs())
    monkeypatch.setitem(sys.modules, "h5py", None)
    file = place.root / "d.act.h5"
    with pytest.raises(
        ConfigError, match=r"need h5py, which is not installed\. Run: pip install 'dmx-transfer\[inside\]'"
    ):
        activations(ActivationsRequest(run=place.run, layers=["head"], output=file), session(place.root))
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn, which is not installed\."):
        probe(ProbeRequest(run=place.run, layers=["head"]), session(place.root))
    assert len(open_store(root=place.root).list_runs()) == before


def test_a_file_that_cannot_be_written_is_said_before_there_is_a_run(place: Place) -> None:
    (place.root / "taken").write_text("no folder")
    request = ActivationsRequest(run=place.run, layers=["head"], output=place.root / "taken/e.act.h5")
    before = len(open_store(root=place.root).list_runs())
    with pytest.raises(ConfigError, match="cannot be written"):
        activations(request, session(place.root))
    assert len(open_store(root=place.root).list_runs()) == before
