from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dmx
from dmx.config.model import ModelSection, PathwaySection
from dmx.model.build import build_network
from dmx.tracking.mlflow_store import open_store
from tests.api.conftest import changed, classifier, images, small, state, volumes
from tests.workflows.conftest import SPLITS

TINY = {"training": {"steps_per_epoch": 3}, "sampling": {"segment": 9, "workers": 0}, "validation": {"segments": 8}}


def test_without_a_store_nothing_is_written(project: Path) -> None:
    before = sorted(project.rglob("*"))
    model = small()
    done = dmx.train(model, volumes(), epochs=2, lr=0.01, validation=volumes(1), score_train=True)
    assert sorted(project.rglob("*")) == before
    assert (done.run, done.model, done.reason) == (None, model, "finished")
    assert not model.training
    history = done.history
    assert [len(steps) for steps in history.step_loss] == [4, 4]
    assert history.epoch_loss == pytest.approx([np.mean(steps) for steps in history.step_loss])
    assert history.epoch_loss[1] < history.epoch_loss[0]
    assert len(history.score_train) == len(history.score_validation) == 2
    assert "no run" in str(done)
    assert str(done).splitlines()[-1].split()[0] == "1"


def test_the_score_on_the_training_data_is_that_of_an_inference_pass() -> None:
    model, data = small(), volumes()
    done = dmx.train(model, data, epochs=1, lr=0.01, score_train=True)
    with torch.no_grad():
        found = torch.cat([model(scan).argmax(1) for scan, _ in data])
    truth = torch.cat([labels for _, labels in data])
    dice = 2 * ((found == 1) & (truth == 1)).sum() / ((found == 1).sum() + (truth == 1).sum())
    assert done.history.score_train == pytest.approx([float(dice)])
    assert done.history.score_validation == []


def test_a_ready_optimizer_updates_its_own_and_nothing_else(project: Path) -> None:
    model = small()
    before = state(model)
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
    done = dmx.train(model, volumes(), epochs=2, optimizer=optimizer)
    assert changed(model, before) == {"head.weight", "head.bias"}
    assert all(p.requires_grad for p in model.parameters())
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert done.history.step_loss[0][0] > done.history.step_loss[-1][-1]


def test_all_of_the_network_moves_without_one() -> None:
    model = small()
    before = state(model)
    dmx.train(model, volumes(), epochs=1, lr=0.01)
    assert changed(model, before) == set(before)


def test_what_is_frozen_stays_frozen_bit_for_bit() -> None:
    model = small()
    frozen = dmx.freeze(model, layers=["conv1", "norm"], unfreeze={1: {"layers": ["norm"]}})
    before = state(model)
    dmx.train(model, volumes(), epochs=1, lr=0.01, freeze=frozen)
    assert not {name for name in changed(model, before) if name.startswith(("conv1", "norm"))}
    assert not model.conv1.weight.requires_grad
    dmx.train(model, volumes(), epochs=2, lr=0.01, freeze=frozen)
    assert {"norm.weight", "norm.running_mean"} <= changed(model, before)
    assert "conv1.weight" not in changed(model, before)


def test_what_requires_no_gradient_counts_as_frozen(project: Path) -> None:
    model = small()
    model.conv1.requires_grad_(False)
    model.norm.requires_grad_(False)
    before = state(model)
    done = dmx.train(model, volumes(), epochs=1, lr=0.01, store=project / "mlruns")
    assert not {name for name in changed(model, before) if name.startswith(("conv1", "norm"))}
    assert "head.weight" in changed(model, before)
    assert not model.conv1.weight.requires_grad
    assert done.run is not None
    run = open_store(root=project).get_run(done.run.id)
    frozen = sum(value.numel() for layer in (model.conv1, model.norm) for value in layer.parameters())
    assert run.params["freeze.num_frozen_parameters"] == str(frozen)
    assert run.params["freeze.layers"] == "network.conv1,network.norm"
    folder = open_store(root=project).local_artifacts(run.id)
    assert folder is not None
    assert "Frozen by requires_grad=False: network.conv1, network.norm." in (folder / "log.txt").read_text()
    assert (folder / "freeze/plan.json").is_file()


def test_the_same_seed_gives_the_same_bits_also_with_a_shuffling_loader() -> None:
    models = []
    for noise in (0, 1):
        torch.rand(noise)
        models.append(classifier())
        with torch.random.fork_rng([]):
            torch.manual_seed(noise)
            dmx.train(models[-1], images(shuffle=True), epochs=2, lr=0.01, seed=3)
    with torch.random.fork_rng([]):
        other = classifier()
        dmx.train(other, images(shuffle=True), epochs=2, lr=0.01, seed=4)
    assert not changed(models[0], state(models[1]))
    assert changed(models[0], state(other))


def test_the_global_random_state_is_as_before() -> None:
    model = classifier()
    before = torch.get_rng_state()
    dmx.train(model, images(shuffle=True), epochs=1, score_train=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_with_a_label_each_and_a_score_that_is_accuracy() -> None:
    model, data = classifier(), images()
    done = dmx.train(model, data, epochs=3, lr=0.02, validation=data, score_train=True)
    with torch.no_grad():
        right = torch.cat([model(pictures).argmax(1) == labels for pictures, labels in data])
    assert done.history.score_validation[-1] == pytest.approx(float(right.float().mean()))
    assert done.history.score_train == done.history.score_validation


def test_images_with_label_maps() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1))
    pictures = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    done = dmx.train(model, [(pictures, (pictures > 0).float())], epochs=4, lr=0.05, loss="soft_dice")
    assert done.history.epoch_loss[-1] < done.history.epoch_loss[0]


def test_a_network_of_dmx_reads_patches() -> None:
    network = build_network(ModelSection(normal=PathwaySection(widths=(3, 3))), num_channels=1, num_classes=2)
    plan = network.segment_plan((9, 9, 9))
    patches = [torch.randn(2, 1, *patch.shape, generator=torch.Generator().manual_seed(0)) for patch in plan.patches]
    labels = torch.zeros(2, *plan.output_shape, dtype=torch.int64)
    before = state(network)
    dmx.train(network, [(patches, labels)], epochs=2, freeze=dmx.freeze(network, normal=[1]))
    names = changed(network, before)
    assert "normal.block_2.conv.weight" in names
    assert not any(name.startswith("normal.block_1") for name in names)


def test_a_manifest_without_a_store_and_with_one(project: Path, manifest: Path) -> None:
    before = sorted(project.rglob("*"))
    alone = dmx.train(small(), manifest, epochs=2, lr=0.01, batch_size=2, settings=TINY)
    assert sorted(project.rglob("*")) == before
    model = small()
    kept = dmx.train(model, "cohort.csv", epochs=2, lr=0.01, batch_size=2, settings=TINY, store="mlruns", name="one")
    assert kept.history == alone.history
    assert kept.run is not None
    assert (kept.run.experiment, kept.run.name) == ("python", "one")
    assert len(kept.history.score_validation) == 2
    assert dmx.history("python/one") == kept.history
    loaded = dmx.load_model(f"runs:/{kept.run.id}", checkpoint="last", into=small(seed=9))
    assert not changed(loaded, state(model))
    with pytest.raises(dmx.DmxError, match=r"dmx.load_model\(run, into=model\)"):
        dmx.load_model(kept.run.id)
    assert len(SPLITS) == 6


def test_batches_with_a_store_are_a_run_like_any_other(project: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    done = dmx.train(
        model, volumes(), epochs=2, optimizer=optimizer, validation=volumes(1), store="mlruns", classes=("none", "some")
    )
    assert done.run is not None
    opened, _ = __import__("dmx.api.places", fromlist=["x"]).open_place(None)
    run = opened.get_run(done.run.id)
    assert (run.status, run.kind, run.params["optimizer"]) == ("FINISHED", "train", "SGD of torch")
    assert run.params["network"] == "python:tests.api.conftest.Small"
    assert run.params["classes"] == "none,some"
    assert "val/dice/some" in run.metrics
    assert dmx.history(done.run.id) == done.history
    with pytest.raises(dmx.DmxError, match="given in Python"):
        dmx.resume(done.run.id)
    wider = small(6)
    plan = dmx.plan_transfer(done.run.id, wider)
    assert plan.apply(wider).conv1.weight[:4].equal(dmx.load_model(done.run.id, into=small()).conv1.weight)
    file = dmx.export(done.run.id, project / "net.pth")
    small().load_state_dict(torch.load(file, weights_only=True))


WRONG = [
    ({"data": iter(volumes())}, "can be gone through only once"),
    ({"data": []}, "at least one batch"),
    ({"data": 3}, "must be batches to iterate over, e.g. a list, got int"),
    ({"data": [volumes()[0][0]]}, r"pairs .* got Tensor"),
    ({"data": [(1, 2)]}, "as tensors, got int"),
    ({"data": [(torch.ones(2, 1, 4, 4, 4), torch.rand(2, 4, 4, 4))]}, "whole numbers"),
    ({"data": [(torch.ones(2, 1, 4, 4, 4), torch.ones(3, 4, 4, 4))]}, "the same N"),
    ({"data": [(torch.ones(2, 1, 4, 4, 4), torch.full((2, 4, 4, 4), 2))]}, "from 0 to 1 .* got 2 to 2"),
    ({"data": [(torch.ones(2, 1, 4, 4, 4), torch.ones(2))]}, "labels must have 4 axes"),
    ({"data": [(torch.ones(2, 1, 4, 4, 4), torch.ones(2, 3, 3, 3))]}, "must have the size of the labels"),
    ({"data": [(torch.ones(2, 3, 4, 4, 4), torch.ones(2, 4, 4, 4))]}, "cannot take inputs"),
    ({"settings": {"sampling": {}}}, "settings may hold training"),
    ({"settings": {"training": {"steps_per_epoch": 3}}}, "steps_per_epoch must be left out"),
    ({"settings": {"training": {"accumulate": 9}}}, "at most the number of batches, 4, got 9"),
    ({"settings": {"training": {"epoch": 9}}}, "Did you mean 'epochs'"),
    ({"settings": {"freeze": {}}}, "give what dmx.freeze returns"),
    ({"settings": {"seed": 1}}, "follows from the arguments"),
    ({"loss": "dice"}, "losses"),
    ({"batch_size": 3}, "batch_size belongs to a manifest"),
    ({"classes": ["a", "b", "c"]}, "must name the 2 classes"),
    ({"name": "x"}, "give a store"),
    ({"store": "somewhere"}, "a folder called 'mlruns'"),
    ({"data": "missing.csv"}, "'missing.csv' does not exist|missing.csv"),
    ({"data": "missing.csv", "score_train": True}, "belong to batches"),
]


@pytest.mark.parametrize(("words", "part"), WRONG, ids=[part for _, part in WRONG])
def test_what_does_not_fit_is_one_sentence(project: Path, words: dict[str, object], part: str) -> None:
    with pytest.raises(dmx.DmxError, match=part):
        dmx.train(small(), **{"data": volumes(), "epochs": 1, **words})


def test_optimizer_and_freeze_must_be_those_of_the_network() -> None:
    model, other = small(), small()
    ready = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(dmx.DmxError, match="this very network"):
        dmx.train(model, volumes(), epochs=1, freeze=dmx.freeze(other, layers=["conv1"]))
    with pytest.raises(dmx.DmxError, match="has its own learning rates"):
        dmx.train(model, volumes(), epochs=1, optimizer=ready, lr=0.1)
    with pytest.raises(dmx.DmxError, match="that the network lacks"):
        dmx.train(other, volumes(), epochs=1, optimizer=ready)


def test_one_score_is_no_classification() -> None:
    with pytest.raises(dmx.DmxError, match="at least 2 classes"):
        dmx.train(small(classes=1), volumes(), epochs=1)


def test_without_a_store_the_logger_says_what_requires_grad_froze(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = small()
    model.conv1.requires_grad_(False)
    dmx.train(model, volumes(), epochs=1, lr=0.01)
    said = [record.getMessage() for record in caplog.records if record.name == "dmx"]
    assert [text for text in said if "Frozen by requires_grad=False: network.conv1" in text]
