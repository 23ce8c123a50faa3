"""Networks of MONAI, by name."""

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from dmx.config.model import ModelSection
from dmx.errors import ModelError
from dmx.model.build import build_network
from dmx.model.network import Network

UNET = {"channels": [4, 8, 16], "strides": [2, 2]}
DYNUNET = {
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 16],
    "deep_supervision": True,
    "deep_supr_num": 1,
}
UNETR = {"img_size": [16, 16, 16], "hidden_size": 12, "num_heads": 2, "mlp_dim": 16, "feature_size": 4}


def make(name: str, arguments: Mapping[str, Any], **others: Any) -> Network:
    section = ModelSection(name=name, arguments=arguments, head=others.pop("head", None))
    return build_network(section, **{"num_channels": 2, "num_classes": 3, **others})


@pytest.mark.parametrize(
    ("name", "arguments", "head"),
    [
        ("UNet", UNET, "model.2.conv"),
        ("DynUNet", DYNUNET, "output_block.conv.conv deep_supervision_heads.0.conv.conv"),
        ("SegResNet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, "conv_final.2.conv"),
        (
            "SegResNetDS",
            {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2},
            "up_layers.0.head up_layers.1.head",
        ),
        ("BasicUNet", {"features": [4, 4, 8, 8, 8, 4]}, "final_conv"),
        (
            "BasicUNetPlusPlus",
            {"features": [4, 4, 8, 8, 8, 4], "deep_supervision": True},
            "final_conv_0_1 final_conv_0_2 final_conv_0_3 final_conv_0_4",
        ),
        ("VNet", {}, "out_tr.conv_block.conv out_tr.conv_block.adn.N out_tr.conv2"),
        ("AttentionUnet", UNET, "model.2.conv"),
        ("UNETR", UNETR, "out.conv.conv"),
    ],
)
def test_a_network_of_monai_trains_and_names_its_layers(name: str, arguments: dict[str, Any], head: str) -> None:
    pytest.importorskip("einops")
    network = make(name, arguments)
    size = 32 if name in ("BasicUNet", "BasicUNetPlusPlus") else 16
    plan = network.segment_plan((size,) * 3)
    assert plan.output_shape == plan.patches[0].shape == (size,) * 3
    for training in (True, False):
        logits = network.train(training)([torch.rand(2, 2, size, size, size)])
        assert logits.shape == (2, 3, size, size, size)
    logits.mean().backward()
    groups = network.layer_groups()
    assert [group.name for group in groups if group.is_head] == [f"network.{name}" for name in head.split()]
    named = [key for group in groups for key in group.parameters]
    assert sorted(named) == sorted(key for key, _ in network.named_parameters())
    assert [group.position for group in groups] == list(range(1, len(groups) + 1))
    kernels = network.kernel_parameters()
    assert kernels
    assert all(kernel.ndim > 1 for kernel in kernels)
    network.after_step()


def test_weights_are_a_function_of_the_seed_and_leave_the_global_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (make("UNet", UNET, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


def test_a_size_that_does_not_fit_names_the_nearest_that_does() -> None:
    network = make("UNet", UNET)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.get_submodule("network.model.0").eval()
    with pytest.raises(ModelError, match=r"UNet cannot take a segment of 17x16x16 .* nearest .* 16x16x16"):
        network.segment_plan((17, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.get_submodule("network.model.0").training
    assert network.training


def test_a_network_that_gives_no_map_is_refused() -> None:
    network = make("DenseNet121", {"init_features": 4, "growth_rate": 2, "block_config": [1]})
    with pytest.raises(ModelError, match=r"its output has the shape \(2, 3\) where .* No size nearby fits"):
        network.segment_plan((32, 32, 32))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("UNett", {}, ["model.name", "'UNett'", "Did you mean 'UNet'?"]),
        ("UNet", {"channels": [4, 8]}, ["lacks strides", "UNet needs"]),
        ("UNet", {**UNET, "kernel": 3}, ["'kernel'", "Did you mean 'kernel_size'?"]),
        ("UNet", {**UNET, "in_channels": 3}, ["must not hold 'in_channels'"]),
        ("UNet", {"channels": [4], "strides": []}, ["UNet cannot be built", "length of `channels`"]),
    ],
)
def test_a_wrong_name_or_argument_is_one_sentence(name: str, arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        make(name, arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_head_can_be_named() -> None:
    network = make("UNet", UNET, head="model.0")
    heads = [group.name for group in network.layer_groups() if group.is_head]
    assert heads == ["network.model.0.conv", "network.model.0.adn.A", "network.model.2.conv"]
    with pytest.raises(ModelError, match=r"'model\.3'.*Did you mean"):
        make("UNet", UNET, head="model.3")


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_a_missing_package_is_one_sentence(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.networks import nets

    @functools.wraps(getattr(nets.UNet, method))
    def lacks(*_: object, **__: object) -> None:
        raise ImportError("required package `einops` is not installed")

    monkeypatch.setattr(nets.UNet, method, lacks)
    with pytest.raises(ModelError, match=r"UNet needs a package .*einops.*dmx-transfer\[networks\]"):
        make("UNet", UNET).segment_plan((16, 16, 16))


def test_one_patch_is_read() -> None:
    with pytest.raises(ModelError, match="reads 1 patch of a segment, got 2"):
        make("UNet", UNET)([torch.rand(1, 2, 16, 16, 16)] * 2)
