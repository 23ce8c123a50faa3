"""Any module of torch as a network."""

import pytest
import torch
from torch import Tensor, nn

from dmx.errors import ModelError
from dmx.model.module import ModuleNetwork, infer_channels, infer_classes


class Halving(nn.Module):
    """A network that can only take even sizes, and gives a second output of half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv3d(2, 4, 2, stride=2)
        self.side = nn.Conv3d(4, 3, 1)
        self.up = nn.ConvTranspose3d(4, 3, 2, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores at full and at half resolution."""
        features = self.down(x)
        return self.up(features), self.side(features)


def make(module: nn.Module, *, head: str | None = None) -> ModuleNetwork:
    return ModuleNetwork(module, type(module).__name__, num_channels=2, num_classes=3, head=head)


def test_a_module_is_a_network_of_one_patch_that_names_its_layers() -> None:
    network = make(Halving())
    assert network.segment_plan((8, 6, 4)).output_shape == (8, 6, 4)
    assert network([torch.rand(1, 2, 8, 6, 4)]).shape == (1, 3, 8, 6, 4)
    assert [(group.name, group.depth, group.is_head) for group in network.layer_groups()] == [
        ("network.down", 1, False),
        ("network.side", 2, False),
        ("network.up", 3, True),
    ]
    assert [tuple(kernel.shape[:2]) for kernel in network.kernel_parameters()] == [(4, 2), (3, 4), (4, 3)]
    assert all(name.startswith("network.") for name in network.state_dict())
    with pytest.raises(ModelError, match=r"Halving cannot take a segment of 7x6x4 .* nearest .* 6x6x4"):
        network.segment_plan((7, 6, 4))


def test_the_head_is_the_module_that_is_named() -> None:
    heads = [group.name for group in make(Halving(), head="side").layer_groups() if group.is_head]
    assert heads == ["network.side"]
    with pytest.raises(ModelError, match=r"got 'sides'\. Did you mean 'side'\? Leave it empty .*'up'"):
        make(Halving(), head="sides")


def test_a_single_kernel_is_a_network() -> None:
    network = make(nn.Conv3d(2, 3, 3, padding=1))
    assert [(group.name, group.is_head) for group in network.layer_groups()] == [("network", True)]
    network.segment_plan((5, 5, 5))


def test_channels_and_classes_are_those_of_the_first_and_the_last_kernel() -> None:
    module = nn.Sequential(nn.InstanceNorm3d(5), nn.Conv3d(5, 7, 1), nn.ConvTranspose3d(7, 2, 2))
    assert (infer_channels(module), infer_classes(module)) == (5, 2)


@pytest.mark.parametrize("call", [infer_channels, infer_classes, make])
def test_a_module_without_kernels_is_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(ModelError, match="InstanceNorm3d has no convolution"):
        call(nn.InstanceNorm3d(2, affine=True))


def test_lazy_layers_are_refused() -> None:
    with pytest.raises(ModelError, match="Sequential has lazy layers"):
        make(nn.Sequential(nn.LazyConv3d(3, 1)))


def test_another_output_shape_or_none_at_all_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"the shape \(2, 4, 8, 8, 8\) where \(2, 3, 8, 8, 8\) is needed\)\. No size nearby fits"
    ):
        make(nn.Conv3d(2, 4, 1)).segment_plan((8, 8, 8))

    class Named(Halving):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"scores": x}

    with pytest.raises(ModelError, match="Named gives dict where class scores are needed"):
        make(Named()).segment_plan((8, 8, 8))
