"""Activations of layers, by name, as tensors and as files."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmx.errors import ConfigError, ModelError
from dmx.evaluation.activations import read_activations, read_stimulus_names, stream_activations
from dmx.evaluation.layer_masks import LayerMask
from dmx.evaluation.layer_outputs import find_layers, layer_outputs, pooled
from dmx.model.image_network import ImageNetwork

NAMES = tuple(f"picture {index}.png" for index in range(5))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 2)
        self.idle = nn.Linear(2, 2)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        scores: Tensor = self.fc(self.drop(self.relu(self.conv(x)).mean((2, 3))))
        return scores


@pytest.fixture
def network() -> ImageNetwork:
    torch.manual_seed(0)
    return ImageNetwork(Small(), "small", num_channels=3, num_classes=2, head="fc", aliases={"conv1": "conv"})


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 8, 9, generator=torch.Generator().manual_seed(1))


def batches(images: Tensor, size: int = 2) -> Iterator[list[Tensor]]:
    for start in range(0, len(images), size):
        yield [images[start : start + size]]


def test_a_file_holds_what_the_layers_give_whatever_the_batches(
    network: ImageNetwork, images: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "new" / "a.act.h5"
    done = stream_activations(network, batches(images), ["conv1", "fc"], path, names=NAMES)
    assert network.network.passes == 3
    assert network.training
    assert done.shapes == {"conv1": (5, 4, 6, 7), "fc": (5, 2, 1, 1)}
    stored = read_activations(path)
    with torch.no_grad():
        # Before the activation that works in place.
        wanted = network.network.conv(images)
        assert np.allclose(stored["conv1"], wanted, atol=1e-6)
        assert wanted.min() < 0
        assert np.allclose(stored["fc"][:, :, 0, 0], network.eval()([images]), atol=1e-6)
    assert read_stimulus_names(path) == NAMES
    assert [child.name for child in path.parent.iterdir()] == ["a.act.h5"]


def test_the_layout_is_that_of_dnnbrain(network: ImageNetwork, images: Tensor, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.act.h5"
    stream_activations(network, batches(images), ["conv1"], path, names=NAMES)
    with h5py.File(path, "r") as file:
        assert list(file.keys()) == ["conv1"]
        assert file["conv1"].dtype == np.float32
    with h5py.File(path, "w") as file:
        file.create_dataset("fc3", data=np.ones((2, 3, 1, 1)))
    assert read_activations(path)["fc3"].shape == (2, 3, 1, 1)
    assert read_stimulus_names(path) == ()


def test_parts_are_chosen_before_pooling_and_when_a_file_is_read(
    network: ImageNetwork, images: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("h5py")
    mask = LayerMask(channels=(4, 2), rows=(1, 2))
    whole = next(layer_outputs(network, [[images]], ["conv"]))["conv"]
    part = next(layer_outputs(network, [[images]], {"conv": mask}, pool="max"))["conv"]
    assert torch.equal(part[:, :, 0, 0], whole[:, [3, 1], :2].amax((2, 3)))
    starred = next(layer_outputs(network, [[images]], {"co*": mask}, pool="max"))["conv"]
    assert torch.equal(starred, part)
    path = tmp_path / "a.act.h5"
    stream_activations(network, batches(images), ["conv"], path, names=NAMES)
    read = read_activations(path, {"conv": mask})["conv"]
    assert np.allclose(read, whole[:, [3, 1], :2], atol=1e-6)
    with pytest.raises(ConfigError, match=r"holds no layer 'conw'\. Did you mean 'conv'"):
        read_activations(path, {"conw": mask})
    with pytest.raises(ModelError, match="has 4 channels"):
        read_activations(path, {"conv": LayerMask(channels=(5,))})


@pytest.mark.parametrize("pool", ["max", "mean", "median"])
def test_pooling_is_that_of_numpy(pool: str) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    assert np.allclose(pooled(maps, pool)[:, :, 0, 0], getattr(np, pool)(maps.numpy(), axis=(2, 3)), atol=1e-6)  # type: ignore[arg-type]


def test_volumes_keep_their_axes_unless_pooled() -> None:
    network = ImageNetwork(
        nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2)),
        "volumes",
        num_channels=1,
        num_classes=2,
    )
    volumes = [[torch.rand(2, 1, 6, 7, 8)]]
    assert next(layer_outputs(network, volumes, ["0"]))["0"].shape == (2, 2, 4, 5, 6)
    assert next(layer_outputs(network, volumes, ["0"], pool="mean"))["0"].shape == (2, 2, 1, 1)
    with pytest.raises(ModelError, match="volumes, which have no rows"):
        next(layer_outputs(network, volumes, {"0": LayerMask(rows=(1,))}))


def test_layers_are_found_by_any_name_and_by_stars(network: ImageNetwork) -> None:
    assert list(find_layers(network, ["conv1", "network.conv", "f*"])) == ["conv1", "network.conv", "fc"]
    with pytest.raises(ModelError, match=r"no layer 'conv9'\. Did you mean 'conv'\? Its layers: conv, fc, idle"):
        find_layers(network, ["conv9"])


def test_what_a_layer_cannot_give_is_one_sentence(network: ImageNetwork, images: Tensor) -> None:
    with pytest.raises(ModelError, match="'idle' does not run"):
        next(layer_outputs(network, [[images]], ["idle"]))
    twice = nn.Sequential(relu := nn.ReLU(), nn.Conv2d(3, 2, 1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match="'0' runs more than once"):
        next(layer_outputs(ImageNetwork(twice, "t", num_channels=3, num_classes=2), [[images]], ["0"]))
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(72, 2), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(ModelError, match=r"'1' gives \(5, 3, 2\)"):
        next(layer_outputs(ImageNetwork(tokens, "t", num_channels=3, num_classes=2), [[images]], ["1"]))


def test_nothing_is_left_when_it_fails_and_an_older_file_stays(
    network: ImageNetwork, images: Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "a.act.h5"
    stream_activations(network, batches(images), ["fc"], path, names=NAMES)
    before = path.read_bytes()
    for names, words in ((NAMES[:3], "more than the 3"), ((*NAMES, "x"), "5 of the 6")):
        with pytest.raises(ConfigError, match=words):
            stream_activations(network, batches(images), ["conv"], path, names=names)
    other = [[images], [torch.rand(1, 3, 9, 9)]]
    with pytest.raises(ConfigError, match="differ in size"):
        stream_activations(network, other, ["conv"], path, names=(*NAMES, "x"))
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["a.act.h5"]


def test_more_names_than_an_old_format_could_hold(network: ImageNetwork, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    names = [f"folder/a picture with a long name {index}.png" for index in range(3000)]
    path = tmp_path / "a.act.h5"
    stream_activations(network, batches(torch.zeros(3000, 3, 3, 3), 3000), ["fc"], path, names=names)
    assert read_stimulus_names(path) == tuple(names)


def test_files_are_checked(network: ImageNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    with pytest.raises(ConfigError, match=r"must end with \.act\.h5"):
        stream_activations(network, [], ["fc"], tmp_path / "a.h5", names=())
    with pytest.raises(ConfigError, match="does not exist"):
        read_activations(tmp_path / "a.act.h5")
    (tmp_path / "b.act.h5").write_text("no")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_activations(tmp_path / "b.act.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"dmx-transfer\[inside\]"):
        read_activations(tmp_path / "b.act.h5")
