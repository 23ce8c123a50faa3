"""Networks of nnU-Net by name."""

import copy
import functools
import sys
from typing import Any

import pytest
import torch

from dmx.config.model import ModelSection
from dmx.errors import ModelError
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.model.nnunet_plans import read_plans
from dmx.model.show import describe
from tests.model import nnunet_folder

pytest.importorskip("dynamic_network_architectures", reason="the package with nnU-Net's networks is not installed")


def section(name: str = "PlainConvUNet", **changes: Any) -> ModelSection:
    plans = nnunet_folder.plans("PlainConvUNet" if name == "PlainConvUNet" else "ResidualEncoderUNet")
    arguments = read_plans(plans, nnunet_folder.dataset(), configuration="3d_fullres").section.arguments
    return ModelSection(name=name, arguments={**arguments, **changes})


def make(name: str = "PlainConvUNet", *, seed: int = 0, **changes: Any) -> Network:
    return build_network(section(name, **changes), num_channels=2, num_classes=3, seed=seed)


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet"])
def test_it_trains_and_names_its_layers(name: str) -> None:
    network = make(name)
    logits = network.train()([torch.rand(2, 2, 16, 12, 8)])
    assert logits.shape == (2, 3, 16, 12, 8)
    logits.mean().backward()
    groups = network.layer_groups()
    assert [group.name for group in groups if group.is_head] == [
        "network.decoder.seg_layers.0",
        "network.decoder.seg_layers.1",
    ]
    named = [key for group in groups for key in group.parameters]
    assert sorted(named) == sorted(key for key, _ in network.named_parameters())
    report = describe(network, section(name), (16, 12, 8))
    assert report.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert report.layers[-1].output_shape == (16, 12, 8)


def test_a_size_that_it_cannot_take_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"PlainConvUNet cannot take a segment of 16x12x7 .* is 16x12x6\."):
        make().segment_plan((16, 12, 7))


def test_each_tensor_stands_in_the_state_dict_once() -> None:
    network, other = make(seed=0), make(seed=1)
    state = network.state_dict()
    assert sorted(state) == sorted(name for name, _ in network.named_parameters())
    assert len(network.network.state_dict()) > 2 * len(state)
    x = [torch.rand(1, 2, 16, 12, 8)]
    assert not torch.equal(network(x), other(x))
    other.load_state_dict(state)
    assert torch.equal(network(x), other(x))
    twin = copy.deepcopy(network)
    assert twin.state_dict().keys() == state.keys()
    first = next(iter(state))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in state.items() if name != first})


def test_weights_follow_the_seed_alone_and_are_drawn_as_nnunet_draws_them() -> None:
    before = torch.random.get_rng_state()
    network, same, other = make(), make(), make(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    kernel = "network.encoder.stages.2.0.convs.0.conv.weight"
    assert not torch.equal(network.state_dict()[kernel], other.state_dict()[kernel])
    fan_in = network.state_dict()[kernel][0].numel()
    # He et al. 2015 for a slope of 0.01: variance 2 / fan-in.
    assert network.state_dict()[kernel].std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
    assert network.state_dict()["network.decoder.seg_layers.1.bias"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_op": "os.system"}, "must name layers of torch.nn among .* got 'os.system'"),
        ({"nonlin": "torch.nn.Linear"}, "got 'torch.nn.Linear'"),
        ({"nonlin": "torch.nn.modules.activation.os.ReLU"}, "must name layers"),
        ({"feature_per_stage": 3}, "holds 'feature_per_stage'.* Did you mean 'features_per_stage'"),
        ({"num_classes": 3}, "holds 'num_classes'"),
        ({"n_stages": 4}, "PlainConvUNet cannot be built from model.arguments"),
    ],
)
def test_wrong_arguments_are_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        make(**changes)


def test_layers_and_blocks_are_named_as_in_plans() -> None:
    block = "dynamic_network_architectures.building_blocks.residual"
    network = make("ResidualEncoderUNet", block=f"{block}.BottleneckD", bottleneck_channels=2, nonlin="torch.nn.ELU")
    names = {type(module).__name__ for module in network.modules()}
    assert {"BottleneckD", "ELU"} <= names
    with pytest.raises(ModelError, match="block must be"):
        make("ResidualEncoderUNet", block="subprocess.Popen")
    arguments = {name: value for name, value in section().arguments.items() if name != "kernel_sizes"}
    with pytest.raises(ModelError, match="lacks kernel_sizes"):
        build_network(ModelSection(name="PlainConvUNet", arguments=arguments), num_channels=1, num_classes=2)
    with pytest.raises(ModelError, match="compatibility"):
        build_network(section(), num_channels=1, num_classes=2, compatibility="deepmedic")


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures", None)
    with pytest.raises(ModelError, match="pip install --no-deps dynamic-network-architectures"):
        make()


def test_nothing_but_torch_numpy_and_einops_is_needed() -> None:
    make()
    assert not {"timm", "torchvision", "huggingface_hub"} & set(sys.modules)


def test_old_and_new_plans_describe_the_same_network() -> None:
    read = functools.partial(read_plans, dataset=nnunet_folder.dataset(), configuration="3d_fullres")
    new = nnunet_folder.plans()
    old = copy.deepcopy(new)
    settings = old["configurations"]["3d_fullres"]
    del settings["architecture"]
    settings |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [1, 2, 1],
        "n_conv_per_stage_decoder": [1, 2],
        "num_pool_per_axis": [1, 2, 1],
        "pool_op_kernel_sizes": nnunet_folder.STRIDES,
        "conv_kernel_sizes": nnunet_folder.KERNELS,
    }
    new["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8]

    def shapes(plans: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        network = build_network(read(plans).section, num_channels=2, num_classes=3)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    assert shapes(old) == shapes(new)
    for missing in ("conv_kernel_sizes", "UNet_class_name"):
        broken = copy.deepcopy(old)
        del broken["configurations"]["3d_fullres"][missing]
        with pytest.raises(ModelError, match=f"do not describe their network.*{missing}"):
            read(broken)
