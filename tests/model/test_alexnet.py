"""AlexNet: torchvision's names and shapes, and what it computes."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmx.config.model import ModelSection
from dmx.model.alexnet import ALIASES, AlexNet
from dmx.model.image_network import ImageNetwork, build_image_network, plain_state

# Keys and shapes of the state dict that torchvision publishes (alexnet-owt-7be5be79).
PUBLISHED = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "classifier.1.weight": (4096, 9216),
    "classifier.1.bias": (4096,),
    "classifier.4.weight": (4096, 4096),
    "classifier.4.bias": (4096,),
    "classifier.6.weight": (1000, 4096),
    "classifier.6.bias": (1000,),
}


@pytest.fixture(scope="module")
def network() -> ImageNetwork:
    return build_image_network(ModelSection(name="alexnet"), num_outputs=2, seed=3)


def independent(state: Mapping[str, Tensor], image_NCHW: Tensor) -> Tensor:
    """Compute AlexNet from its published description."""

    def conv(x: Tensor, number: int, **options: int) -> Tensor:
        name = f"features.{number}"
        return functional.relu(functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options))

    x = functional.max_pool2d(conv(image_NCHW, 0, stride=4, padding=2), 3, 2)
    x = functional.max_pool2d(conv(x, 3, padding=2), 3, 2)
    x = conv(conv(conv(x, 6, padding=1), 8, padding=1), 10, padding=1)
    x = functional.adaptive_avg_pool2d(functional.max_pool2d(x, 3, 2), 6).reshape(len(x), -1)
    for number in (1, 4, 6):
        x = x @ state[f"classifier.{number}.weight"].T + state[f"classifier.{number}.bias"]
        x = x if number == 6 else x.clamp(min=0)
    return x


def test_names_shapes_and_size_are_the_published_ones() -> None:
    with torch.device("meta"):
        module = AlexNet()
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == PUBLISHED
    assert list(module.state_dict()) == list(PUBLISHED)
    assert sum(value.numel() for value in module.parameters()) == 61_100_840


def test_a_state_dict_in_this_layout_loads_and_gives_the_outputs_of_an_independent_pass(network: ImageNetwork) -> None:
    state = plain_state(network.state_dict())
    with torch.device("meta"):
        module = AlexNet(2)
    module.load_state_dict(state, assign=True)
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = module.eval()(image)
        wanted = independent(state, image)
        wrapped = network.eval()([image])
    assert torch.allclose(scores, wanted, atol=1e-5)
    assert torch.equal(scores, wrapped)
    assert scores.std() > 1e-4


def test_dropout_acts_in_training_only(network: ImageNetwork) -> None:
    image = torch.ones(1, 3, 64, 64)
    with torch.no_grad():
        network.train()
        assert not torch.equal(network([image]), network([image]))
        network.eval()
        assert torch.equal(network([image]), network([image]))


def test_layers_are_named_the_last_is_the_head_and_short_names_stand_for_modules(network: ImageNetwork) -> None:
    groups = network.layer_groups()
    assert [group.name for group in groups] == [
        f"network.{name.removesuffix('.weight')}" for name in PUBLISHED if name.endswith("weight")
    ]
    assert [group.is_head for group in groups] == [False] * 7 + [True]
    assert len(network.kernel_parameters()) == 8
    assert len(ALIASES) == 18
    kinds = {short: type(network.get_submodule(name)).__name__ for short, name in network.aliases.items()}
    words = {"relu": "ReLU", "maxpool": "MaxPool2d"}
    for short, kind in kinds.items():
        assert kind == words.get(short.partition("_")[2], "Conv2d" if short.startswith("conv") else "Linear")
