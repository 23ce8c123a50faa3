"""A network of nnU-Net as a run: it predicts what it predicted there, and one goes on from it."""

import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmx.cohort.case import Case, Cohort
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.manifest import write_manifest
from dmx.cohort.volume import read_volume, write_volume
from dmx.config.load import as_dict
from dmx.errors import CheckpointError, ConfigError, DmxError
from dmx.sampling.patches import cut_patches
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.finetune import FinetuneRequest, finetune
from dmx.workflows.import_nnunet import NnUNetImportRequest, import_nnunet_model
from dmx.workflows.model import describe_experiment
from dmx.workflows.predict import PredictRequest, predict
from dmx.workflows.trained import Trained, open_trained
from dmx.workflows.transfer import transfer
from dmx.workflows.weights_file import open_weights_file
from tests.model import nnunet_folder
from tests.workflows.conftest import Teller, session

pytest.importorskip("dynamic_network_architectures", reason="the package with nnU-Net's networks is not installed")

TRAINED = "nnUNetTrainer__nnUNetPlans__3d_fullres"
NAME = "Dataset123_Balls"


def imported(project: Path, teller: Teller | None = None, **options: Any) -> Trained:
    request = NnUNetImportRequest(**{"folder": project / TRAINED, "name": "one", **options})
    import_nnunet_model(request, session(project, teller))
    return open_trained(open_store(root=project), f"{NAME}/one", checkpoint=None, root=project)


def differences(trained: Trained, module: torch.nn.Module, axes: tuple[int, ...]) -> float:
    """Return the largest difference of the logits on one patch, given to nnU-Net's network in its own axes."""
    module.decoder.deep_supervision = False  # type: ignore[union-attr]
    patch = trained.experiment.sampling.segment
    assert isinstance(patch, tuple)
    x = torch.rand(1, 2, *patch)
    with torch.no_grad():
        ours = trained.network([x])
        theirs = module.eval()(x.permute(0, 1, *(2 + axis for axis in axes)))
    back = [axes.index(axis) for axis in range(3)]
    assert theirs.std() > 0.1
    return float((ours - theirs.permute(0, 1, *(2 + axis for axis in back))).abs().max())


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("transposed", [(0, 1, 2), (2, 0, 1)])
def test_the_run_gives_nnunets_logits(project: Path, name: str, transposed: tuple[int, ...]) -> None:
    plans = {**nnunet_folder.plans(name), "transpose_forward": list(transposed)}
    module = nnunet_folder.write(project / TRAINED, plans)
    trained = imported(project)
    # nnU-Net's axis m is axis transposed[m] of (k, j, i).
    axes = tuple(2 - axis for axis in transposed)
    patch = dict(zip(axes, (8, 12, 16), strict=True))
    assert trained.experiment.sampling.segment == tuple(patch[axis] for axis in range(3))
    assert differences(trained, module, axes) < 1e-5
    # Kernels in nnU-Net's own order of axes, where that fits at all, give something else.
    state = trained.network.state_dict()
    for tensor in state.values():
        if tensor.ndim == 5 and len(set(tensor.shape[2:])) == 1:
            tensor.copy_(tensor.permute(0, 1, *(2 + axes.index(axis) for axis in range(3))).clone())
    assert differences(trained, module, axes) > 0.01


def test_the_run_says_where_it_comes_from(project: Path) -> None:
    teller = Teller()
    nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    trained = imported(project, teller, folder=project / TRAINED / "fold_0")
    run = trained.run
    assert (run.kind, run.status, run.params["source.epochs"]) == ("import", "FINISHED", "3")
    assert run.tags["dmx.source_file"] == "checkpoint_final.pth"
    assert trained.manifest["source"]["format"] == "nnunet"
    contract = trained.contract
    assert (contract.channels, contract.classes) == (("T1", "FLAIR"), ("background", "ball", "shell"))
    assert (contract.spacing, contract.preprocess.orientation) == ((1.0, 1.0, 2.0), "native")
    prediction = trained.experiment.prediction
    assert (prediction.tile, prediction.overlap, prediction.mirror) == ((16, 12, 8), 0.5, (0, 2))
    assert teller.sentences[0].startswith(
        "nnU-Net's 3d_fullres of Dataset123_Balls from checkpoint_final.pth, fold 0, trained by nnUNetTrainer: patches"
    )
    assert any("Axes stay as they are in the file" in sentence for sentence in teller.sentences)


def test_a_network_of_regions_keeps_them(project: Path) -> None:
    nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    labels = {"background": 0, "whole": [1, 2], "core": 2, "edge": 1, "ignore": 3}
    described = nnunet_folder.dataset(labels=labels, regions_class_order=[1, 2, 1])
    (project / "dataset.json").write_text(json.dumps(described))
    contract = imported(project, dataset=project / "dataset.json").contract
    assert contract.outputs == ("whole", "core", "edge")
    assert (contract.regions.members["whole"], contract.regions.order) == ((1, 2), (1, 2, 1))
    assert (contract.classes, contract.ignore) == (("background", "label_1", "label_2"), 3)


def test_the_layers_can_be_shown_and_zeros_surround_a_small_scan(project: Path) -> None:
    nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    trained = imported(project)
    report = describe_experiment(trained.experiment)
    assert report.plan.shape == (16, 12, 8)
    assert [layer.name for layer in report.layers if layer.is_head] == [
        "network.decoder.seg_layers.0",
        "network.decoder.seg_layers.1",
    ]
    (patch,) = cut_patches(torch.ones(2, 10, 12, 8), (0, 0, 0), trained.network.segment_plan((16, 12, 8)))
    assert patch[:, :10].min() == 1
    assert patch[:, 10:].max() == 0


def test_the_checkpoint_alone_is_enough(project: Path) -> None:
    module = nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    alone = project / "moved" / "weights.pth"
    alone.parent.mkdir()
    (project / TRAINED / "fold_0" / "checkpoint_final.pth").rename(alone)
    trained = imported(project, folder=None, checkpoint=alone, overrides=("prediction.mirror=[]",))
    assert differences(trained, module, (2, 1, 0)) < 1e-5
    assert trained.experiment.prediction.mirror == ()


def test_a_compiled_network_and_copied_tensors_come_in_as_well(project: Path) -> None:
    plans = nnunet_folder.plans()
    module = nnunet_folder.write(project / TRAINED, plans)
    content = nnunet_folder.checkpoint(module, plans, nnunet_folder.dataset())
    content["network_weights"] = {
        f"module._orig_mod.{name}": value.clone() for name, value in content["network_weights"].items()
    }
    torch.save(content, project / TRAINED / "fold_0" / "checkpoint_final.pth")
    teller = Teller()
    assert differences(imported(project, teller), module, (2, 1, 0)) < 1e-5
    assert "names without 'module._orig_mod.'" in teller.sentences[0]


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)


def test_a_checkpoint_with_code_is_refused_and_leaves_nothing(project: Path) -> None:
    nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    file = project / TRAINED / "fold_0" / "checkpoint_final.pth"
    trace = project / "trace"
    content = torch.load(file, weights_only=False)
    torch.save({**content, "_best_ema": Payload(trace)}, file)
    with pytest.raises(CheckpointError, match="cannot be opened without executing code"):
        imported(project)
    assert not trace.exists()
    assert open_store(root=project).list_runs() == []
    # The payload is a real one.
    torch.load(file, weights_only=False)
    assert trace.exists()
    with zipfile.ZipFile(file) as archive:
        assert any(name.endswith("data.pkl") for name in archive.namelist())


def other(**changes: Any) -> dict[str, Any]:
    return {**nnunet_folder.plans(), **changes}


@pytest.mark.parametrize(
    ("plans", "described", "words"),
    [
        (nnunet_folder.plans(patch_size=[64, 64]), {}, "is 2D"),
        (nnunet_folder.plans(previous_stage="3d_lowres"), {}, "second step of a cascade"),
        (nnunet_folder.plans("EvilNet"), {}, "The plans name the network 'dynamic.*EvilNet'"),
        (other(configurations={}), {}, "have no configurations"),
        (other(transpose_forward=[0, 0, 1]), {}, "transpose_forward"),
        ({}, {"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions_class_order must name one"),
        ({}, {"labels": {"background": 0, "ball": 2, "shell": 3}}, "count from 0 without gaps"),
        ({}, {"channel_names": ["T1", "FLAIR"]}, "must list channel_names"),
        (
            nnunet_folder.plans(normalization_schemes=["ZScoreNormalization", "Mine"]),
            {},
            "'FLAIR' was normalized by Mine",
        ),
        (nnunet_folder.plans(spacing=[1.0, -1.0, 1.0]), {}, "spacing of positive numbers"),
    ],
)
def test_what_dmx_does_not_have_is_one_sentence(
    project: Path, plans: dict[str, Any], described: dict[str, Any], words: str
) -> None:
    nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    (project / "plans.json").write_text(json.dumps(plans or nnunet_folder.plans()))
    (project / "dataset.json").write_text(json.dumps(nnunet_folder.dataset(**described)))
    with pytest.raises(DmxError, match=words):
        imported(project, plans=project / "plans.json", dataset=project / "dataset.json")
    assert open_store(root=project).list_runs() == []


def test_files_and_options_that_do_not_fit_are_one_sentence(project: Path) -> None:
    plans = nnunet_folder.plans()
    nnunet_folder.write(project / TRAINED, plans)
    wider = json.loads(json.dumps(plans))
    wider["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 10**7]
    for name, text in (("wider.json", json.dumps(wider)), ("broken.json", "{"), ("list.json", "[]")):
        (project / name).write_text(text)
    torch.save({"network_weights": {}}, project / "empty.pth")
    cases: list[tuple[dict[str, Any], str]] = [
        # Ten million channels: found out before memory is taken for them.
        ({"plans": project / "wider.json"}, r"not those of configuration 3d_fullres .* first 'encoder.stages.2"),
        ({"plans": project / "broken.json"}, "is no JSON"),
        ({"plans": project / "list.json"}, "must hold a JSON object"),
        ({"plans": project / "nothing.json"}, "cannot be read"),
        ({"configuration": "3d_lowres"}, "trained with the configuration '3d_fullres', got --configuration 3d_lowres"),
        ({"channels": ("a",)}, "has 2 channels"),
        ({"classes": ("a", "a", "b")}, "same name"),
        ({"overrides": ("model.name=UNet",)}, "An import may change"),
        ({"checkpoint": project / "empty.pth"}, "is no checkpoint of nnU-Net"),
        ({"checkpoint": project / "nothing.pth"}, "does not exist"),
        ({"folder": None}, "Name a folder"),
        ({"folder": project / "nothing"}, "is no folder"),
        ({"folder": project / "mlruns"}, "has no checkpoint_final.pth"),
    ]
    for options, words in cases:
        with pytest.raises(DmxError, match=words):
            imported(project, **options)
    (project / TRAINED / "fold_1").mkdir()
    (project / TRAINED / "fold_1" / "checkpoint_best.pth").touch()
    with pytest.raises(ConfigError, match=r"has 2 folds \(fold_0, fold_1\)"):
        imported(project)
    assert open_store(root=project).list_runs() == []


@pytest.fixture
def cohort(project: Path) -> Path:
    """Six scans of two channels, of the spacing of the plans, stored left-to-right reversed."""
    cases = []
    for index, split in enumerate(("training", "training", "validation", "evaluation")):
        rng = np.random.default_rng(index)
        shape = (20, 18, 14)
        grid = NiftiGrid.from_affine(shape, np.diag([-1.0, 1.0, 2.0, 1.0]))
        files = {name: project / f"scans/{name}_{index}.nii.gz" for name in ("T1", "FLAIR", "label")}
        files["T1"].parent.mkdir(exist_ok=True)
        labels = (rng.uniform(size=shape) < 0.2).astype(np.uint8)
        labels[0] = 2
        for name in ("T1", "FLAIR"):
            scan = (labels * 50 + rng.normal(100, 10, shape)).astype(np.float32)
            # A frame of zeros, which nnU-Net cuts off.
            scan[:2], scan[:, -1] = 0, 0
            write_volume(files[name], scan, grid, dtype=np.float32)
        write_volume(files["label"], labels, grid, dtype=np.uint8)
        channels = {name: files[name] for name in ("T1", "FLAIR")}
        cases.append(
            Case(name=f"case_{index}", subject=f"s{index}", channels=channels, label_map=files["label"], split=split)
        )
    path = project / "cohort.csv"
    write_manifest(Cohort("balls", ("background", "ball", "shell"), ("T1", "FLAIR"), tuple(cases)), path)
    return path


def by_hand(module: torch.nn.Module, case: int, project: Path, *, masked: bool) -> np.ndarray:
    """Return probabilities of a scan as nnU-Net's steps say: axes turned, cut to nonzero, z-score, one patch."""
    scans = [read_volume(project / f"scans/{name}_{case}.nii.gz").array for name in ("T1", "FLAIR")]
    volume = np.stack([scan.transpose(2, 1, 0) for scan in scans])[:, :, :-1, 2:].astype(np.float64)
    inside = volume.any(axis=0) if masked else np.ones(volume.shape[1:], bool)
    for scan in volume:
        scan[inside] = (scan[inside] - scan[inside].mean()) / scan[inside].std()
    module.decoder.deep_supervision = False  # type: ignore[union-attr]
    x = torch.from_numpy(volume).float()[None]
    with torch.no_grad():
        passes = [
            module.eval()(x.flip(axes)).flip(axes).softmax(1)
            for axes in ([a for a in some if a] for some in itertools.product((0, 2), (0, 4)))
        ]
    result = np.zeros((3, 14, 18, 20), np.float32)
    result[0] = 1
    result[:, :, :-1, 2:] = torch.stack(passes).mean(0)[0].numpy()
    return result.transpose(0, 3, 2, 1)


@pytest.mark.parametrize("masked", [False, True])
def test_a_scan_is_segmented_as_nnunets_steps_say(project: Path, cohort: Path, masked: bool) -> None:
    plans = nnunet_folder.plans(use_mask_for_norm=[masked, masked], patch_size=[14, 17, 18])
    architecture = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    # Strides that divide the volume, which is one patch.
    architecture["strides"] = [[1, 1, 1], [2, 1, 2], [1, 1, 3]]
    architecture["kernel_sizes"] = [[3, 3, 3]] * 3
    if masked:
        # A corner of zeros, which is not measured in and stays 0.
        for name in ("T1", "FLAIR"):
            volume = read_volume(project / f"scans/{name}_3.nii.gz")
            scan = volume.array.copy()
            scan[2:6, :4, :3] = 0
            write_volume(project / f"scans/{name}_3.nii.gz", scan, volume.header, dtype=np.float32)
    module = nnunet_folder.write(project / TRAINED, plans)
    imported(project)
    predict(
        PredictRequest(
            run=f"{NAME}/one", inputs=(cohort,), output=project / "out", split="evaluation", probabilities=True
        ),
        session(project),
    )
    files = [project / f"out/case_3_probability_{name}.nii.gz" for name in ("background", "ball", "shell")]
    ours = np.stack([read_volume(file).array for file in files])
    theirs = by_hand(module, 3, project, masked=masked)
    assert theirs.std(axis=(1, 2, 3)).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    if masked:
        assert np.abs(ours - by_hand(module, 3, project, masked=False)).max() > 0.01


def test_it_is_fine_tuned(project: Path, cohort: Path) -> None:
    nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    before = imported(project)
    experiment = project / "next.yaml"
    experiment.write_text(
        f"name: next\ncohort: {{manifest: {cohort}}}\nsampling: {{segment: [16, 12, 8], workers: 0}}\n"
        "training: {epochs: 1, steps_per_epoch: 2, batch_size: 2}\nvalidation: {segments: 4, volumes_every_epochs: 0}\n"
    )
    finetune(FinetuneRequest(experiment=experiment, run=f"{NAME}/one", name="two"), session(project))
    after = open_trained(open_store(root=project), "next/two", checkpoint="last", root=project)
    assert after.contract.preprocess == before.contract.preprocess
    moved = [
        name
        for name, tensor in after.network.state_dict().items()
        if not torch.equal(tensor, before.network.state_dict()[name])
    ]
    # The segmentation layers of coarser resolutions take no part.
    resting = {"network.decoder.seg_layers.0.weight", "network.decoder.seg_layers.0.bias"}
    assert "network.decoder.seg_layers.1.weight" in moved
    assert "network.encoder.stages.0.0.convs.0.conv.weight" in moved
    assert not resting & set(moved)


@pytest.mark.parametrize("origin", ["run", "file"])
def test_it_gives_its_weights_to_a_network_with_other_classes(project: Path, cohort: Path, origin: str) -> None:
    nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    trained = imported(project)
    file = project / TRAINED / "fold_0" / "checkpoint_final.pth"
    known = as_dict(trained.experiment)
    raw = {
        "name": "target",
        "cohort": {"manifest": str(cohort), "classes": ["background", "any"], "labels": {2: 1}},
        "sampling": {"segment": [16, 12, 8]},
        "model": known["model"],
        "transfer": {"sources": {"old": {"run": f"{NAME}/one"} if origin == "run" else {"file": str(file)}}},
    }
    teller = Teller()
    done = transfer(raw, session(project, teller), path=project / "x.yaml")
    store = open_store(root=project)
    ours = open_trained(store, done.run.id, checkpoint="initial", root=project).network.state_dict()
    theirs = trained.network.state_dict()
    heads = {name for name in ours if ".seg_layers." in name}
    assert len(heads) == 4
    for name, tensor in ours.items():
        assert name in heads or torch.equal(tensor, theirs[name]), name
    assert {entry.name for entry in done.plan.tensors if entry.action == "initialized"} == heads
    if origin == "file":
        said = " ".join(teller.sentences)
        assert "The state dict of 'old' was found inside of 'network_weights'." in said
        assert "kernels were turned from (z, y, x)" in said


def test_a_file_for_another_module_keeps_its_axes_and_all_of_its_names(project: Path) -> None:
    module = nnunet_folder.write(project / TRAINED, nnunet_folder.plans())
    file = project / TRAINED / "fold_0" / "checkpoint_final.pth"
    plain, turned = (open_weights_file(file, name="old", for_scans=flag) for flag in (False, True))
    assert {tensor.name for tensor in plain.sketch.tensors} == set(module.state_dict())
    assert {tensor.name for tensor in turned.sketch.tensors} == {name for name, _ in module.named_parameters()}
    kernel = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(plain.reader[kernel], module.state_dict()[kernel])
    assert torch.equal(turned.reader[kernel], module.state_dict()[kernel].permute(0, 1, 4, 3, 2))
    assert plain.sentences() == ["The state dict of 'old' was found inside of 'network_weights'."]
