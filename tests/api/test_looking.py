"""Looking inside modules from Python, and inside the networks of runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dmx
from dmx.errors import ConfigError, ModelError
from dmx.evaluation.layer_masks import LayerMask, write_masks
from dmx.model.alexnet import AlexNet
from dmx.workflows.train import train
from tests.api.conftest import classifier, images, small, volumes
from tests.workflows.conftest import session, settings


def test_layers_of_a_module_over_batches() -> None:
    model = classifier()
    model.train()
    found = dmx.activations(model, images(), layers=["0", "5"])
    pictures = torch.cat([batch for batch, _ in images()])
    assert model.training
    with torch.no_grad():
        assert np.allclose(found["0"], model[0](pictures), atol=1e-6)
        assert np.allclose(found["5"][:, :, 0, 0], model.eval()(pictures), atol=1e-6)
    pooled = dmx.activations(model, images(), layers="0", pool="max")
    assert np.array_equal(pooled["0"][:, :, 0, 0], found["0"].max(axis=(2, 3)))
    scans = dmx.activations(small(), (scan for scan, _ in volumes(1)), layers="conv?")
    assert {layer: values.shape for layer, values in scans.items()} == dict.fromkeys(
        ("conv1", "conv2"), (2, 4, 6, 6, 6)
    )


def test_short_names_and_masks_choose_parts(tmp_path: Path) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        alexnet = AlexNet(2)
        pictures = torch.randn(1, 3, 64, 64)
    masks = {"conv1": LayerMask(channels=(3, 1)), "fc3": LayerMask()}
    write_masks(masks, tmp_path / "some.dmask.csv")
    found = dmx.activations(alexnet, [pictures], layers=tmp_path / "some.dmask.csv")
    with torch.no_grad():
        assert np.allclose(found["conv1"], alexnet.features[0](pictures)[:, [2, 0]], atol=1e-6)
    assert found["fc3"].shape == (1, 2, 1, 1)
    with pytest.raises(ModelError, match="Did you mean 'conv1'"):
        dmx.activations(alexnet, [pictures], layers="comv1")


def test_a_module_without_channels_and_with_them_again() -> None:
    model = small().eval()
    scan = volumes(1)[0][0]
    with torch.no_grad():
        before = model(scan)
        with dmx.ablated(model, "conv1", [2, 4]) as tensors:
            silent = dmx.activations(model, [scan], layers=["conv1", "norm"])
            changed = model(scan)
        after = model(scan)
    assert set(tensors) == {"conv1.weight", "conv1.bias", "norm.weight", "norm.bias"}
    for layer in ("conv1", "norm"):
        assert not silent[layer][:, [1, 3]].any()
        assert silent[layer][:, [0, 2]].any()
    assert not torch.equal(changed, before)
    assert torch.equal(after, before)


def test_what_cannot_be_looked_into_is_said() -> None:
    with pytest.raises(ModelError, match="no convolution and no linear layer"), dmx.ablated(nn.ReLU(), "x"):
        pass
    with pytest.raises(ConfigError, match="output belongs to a run"):
        dmx.activations(classifier(), images(), layers="0", output="x.act.h5")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="needs output"):
        dmx.activations("balls/last", layers="0")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="Batches must be tensors"):
        dmx.activations(classifier(), [{"image": 1}], layers="0")


def test_a_run_is_looked_into_as_on_the_command_line(project: Path, manifest: Path) -> None:
    quick = {"segments": 4, "volumes_every_epochs": 0, "overlays": 0}
    run = train(settings(manifest, training={"epochs": 1}, validation=quick), session(project)).run.id
    wrote = dmx.activations(run, split="validation", layers="head", output="h.act.h5")
    assert wrote.shapes == {"head": (1, 2, 1, 1)}
    assert wrote.read()["head"].shape == (1, 2, 1, 1)
    done = dmx.ablate(run, "head", [1])
    assert done.split == "evaluation"
    assert "dice/ball" in done.changes
    with pytest.raises(dmx.DmxError, match="says in its column 'label'"):
        dmx.probe(run, layers=["head"])
