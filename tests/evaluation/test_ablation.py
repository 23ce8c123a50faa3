"""Channels that are switched off for a while."""

import pytest
import torch
from torch import Tensor, nn

from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection
from dmx.errors import ModelError
from dmx.evaluation.ablation import ablated
from dmx.evaluation.layer_outputs import layer_outputs
from dmx.model.build import build_network
from dmx.model.image_network import ImageNetwork


class Small(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = norm
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.up(self.norm(self.conv(x))).mean((2, 3)))
        return scores


def network(norm: nn.Module | None = None) -> ImageNetwork:
    torch.manual_seed(0)
    norm = norm or nn.BatchNorm2d(4)
    for tensor in (*norm.parameters(), *(b for b in norm.buffers() if b.is_floating_point())):
        nn.init.uniform_(tensor, 0.5, 1.5)
    return ImageNetwork(Small(norm), "small", num_channels=3, num_classes=2)


IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def outputs(of: ImageNetwork, layer: str) -> Tensor:
    return next(layer_outputs(of, [[IMAGES]], [layer]))[layer]


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)],
    ids=["batch", "batch without scale", "group", "instance"],
)
def test_channels_are_exactly_zero_behind_the_normalization_too_and_come_back_bit_for_bit(norm: nn.Module) -> None:
    small = network(norm)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    whole = outputs(small, "norm")
    with ablated(small, "conv", [4, 2]) as changed:
        for layer in ("conv", "norm"):
            given = outputs(small, layer)
            assert not given[:, [3, 1]].any()
            assert given[:, [0, 2]].any()
    assert {"network.conv.weight", "network.conv.bias"} < set(changed)
    assert whole[:, [1, 3]].any()
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_a_whole_layer_and_other_kernels() -> None:
    small = network()
    for layer, axis in (("up", 1), ("fc", 0)):
        with ablated(small, layer):
            weight = small.get_parameter(f"network.{layer}.weight")
            assert not weight.any()
            assert not small.get_parameter(f"network.{layer}.bias").any()
            assert not outputs(small, layer).any()
        with ablated(small, layer, [2]):
            parts = weight.unbind(axis)
            assert [bool(part.any()) for part in parts] == [index != 1 for index in range(len(parts))]
    with ablated(small, "fc", []):
        assert outputs(small, "fc").all()


def test_all_comes_back_after_an_error() -> None:
    small = network()
    before = small.get_parameter("network.conv.weight").clone()
    with pytest.raises(ValueError, match="stop"), ablated(small, "conv"):
        raise ValueError("stop")
    assert torch.equal(small.get_parameter("network.conv.weight"), before)


def test_a_multi_scale_network_switches_off_the_shift_of_the_next_block() -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(2, 3, 3), residual=(3,)),
        subsampled=(SubsampledSection(widths=(2, 2), residual=()),),
        fc=FCSection(widths=(4,)),
        normalization=NormalizationSection(name="batch_rolling"),
    )
    multiscale = build_network(section, num_channels=1, num_classes=2)
    with ablated(multiscale, "normal.block_1", [1]) as changed:
        assert changed == ("normal.block_1.conv.weight", "normal.block_2.norm.weight", "normal.block_2.norm.bias")
    # Its output is joined with that of the other pathway before it is normalized, and a shortcut is added.
    with ablated(multiscale, "normal.block_3", [1]) as changed:
        assert changed == ("normal.block_3.conv.weight",)


@pytest.mark.parametrize(
    ("layer", "channels", "words"),
    [
        ("conv", [5], "'conv' has 4 channels, counted from 1, got channel 5"),
        ("conv", [0], "got channel 0"),
        ("norm", None, "holds 0 convolutions and linear layers"),
        ("network", None, "holds 3 convolutions"),
        ("conw", None, "no layer 'conw'.*Did you mean 'conv'"),
    ],
)
def test_what_cannot_be_ablated_is_one_sentence(layer: str, channels: list[int] | None, words: str) -> None:
    with pytest.raises(ModelError, match=words), ablated(network(), layer, channels):
        pass


def test_transposed_convolutions_in_groups_are_refused() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with (
        pytest.raises(ModelError, match="in groups"),
        ablated(ImageNetwork(module, "x", num_channels=4, num_classes=4), "0"),
    ):
        pass
