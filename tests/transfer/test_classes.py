"""Layers whose size follows the classes are the head, whatever their place: old rows come into a new one on request."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmx.config.model import ModelSection
from dmx.errors import TransferError
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.model.sketch import sketch_module, sketch_network
from dmx.transfer.apply import apply_plan
from dmx.transfer.describe import TensorInfo
from dmx.transfer.layout import sketch_tensors
from dmx.transfer.options import MapRule, TransferOptions
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer

DYNUNET = {
    "kernel_size": [3, 3, 3, 3],
    "strides": [1, 2, 2, 2],
    "upsample_kernel_size": [2, 2, 2],
    "filters": [4, 8, 16, 16],
    "deep_supervision": True,
    "deep_supr_num": 2,
}
NNUNET: dict[str, Any] = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "kernel_sizes": [3, 3, 3],
    "strides": [1, 2, 2],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.InstanceNorm3d",
    "norm_op_kwargs": {"affine": True},
    "nonlin": "torch.nn.LeakyReLU",
}
NETWORKS: list[tuple[str, dict[str, Any], int]] = [
    ("DynUNet", DYNUNET, 3),
    ("MedNeXt", {"init_filters": 4, "deep_supervision": True}, 5),
    ("SegResNetVAE", {"input_image_size": [16, 16, 16], "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, 1),
    ("SegResNetDS", {"init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 2}, 2),
    ("UNet", {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 2}, 2),
    ("VNet", {}, 2),
    ("BasicUNetPlusPlus", {"features": [4, 4, 8, 8, 8, 4], "deep_supervision": True}, 4),
    ("AttentionUnet", {"channels": [4, 8, 16], "strides": [2, 2]}, 1),
    ("HighResNet", {}, 1),
    ("SwinUNETR", {"feature_size": 12}, 1),
    ("PlainConvUNet", NNUNET, 2),
]


def make(name: str, arguments: dict[str, Any], *, classes: int, seed: int) -> Network:
    if name == "SwinUNETR":
        pytest.importorskip("einops")
    return build_network(ModelSection(name=name, arguments=arguments), num_channels=1, num_classes=classes, seed=seed)


def moved(theirs: Network, ours: Network, **options: Any) -> TransferPlan:
    names = {"classes": options.pop("classes", ((), ()))}
    plan = plan_transfer(
        sketch_network(theirs, name="a", classes=names["classes"][0]),
        sketch_network(ours, name="b", classes=names["classes"][1]),
        TransferOptions(**options),
    )
    apply_plan(plan, {"a": theirs.state_dict()}, ours.state_dict())
    return plan


@torch.no_grad()
def filled(network: nn.Module, value: float) -> dict[str, Tensor]:
    """Give all parameters one value; return the state."""
    for parameter in network.parameters():
        parameter.fill_(value)
    return dict(network.named_parameters())


@pytest.mark.parametrize(("name", "arguments", "kernels"), NETWORKS)
@pytest.mark.parametrize("classes", [3, 5])
def test_no_row_of_an_old_class_comes_into_a_new_head(
    name: str, arguments: dict[str, Any], kernels: int, classes: int
) -> None:
    theirs, ours = (make(name, arguments, classes=number, seed=seed) for seed, number in enumerate((3, classes)))
    filled(theirs, 7.0)
    state = filled(ours, 0.0)
    moved(theirs, ours)
    other = make(name, arguments, classes=classes + 2, seed=0)
    sized = {key for key, value in other.named_parameters() if value.shape != state[key].shape}
    assert sum(value.ndim > 1 for key, value in state.items() if key in sized) == kernels
    assert {key for key, value in state.items() if (value == 0).all()} >= sized
    assert all((state[key] == 7).all() for key in state if key not in sized and ".vae_" not in key)


@pytest.mark.parametrize(("name", "arguments", "kernels"), NETWORKS)
def test_a_head_is_copied_as_a_whole_on_request(name: str, arguments: dict[str, Any], kernels: int) -> None:
    theirs, ours = (make(name, arguments, classes=3, seed=seed) for seed in (0, 1))
    moved(theirs, ours, head="copy")
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    more = make(name, arguments, classes=4, seed=1)
    with pytest.raises(TransferError, match="gives 3 classes, that of b 4"):
        moved(theirs, more, head="copy")
    names = (("background", "x", "y"), ("background", "Y", "z", "x"))
    moved(theirs, more, head="copy", classes_from="names", classes=names)
    found = more.network.get_submodule(more.head_name)  # type: ignore[union-attr, arg-type]
    old = theirs.network.get_submodule(theirs.head_name)  # type: ignore[union-attr, arg-type]
    bias, before = ([p for key, p in part.named_parameters() if key.endswith("bias")] for part in (found, old))
    if bias:
        assert torch.equal(bias[-1][[0, 3, 1]], before[-1])


def test_all_but_the_head_leaves_all_outputs_of_classes_to_train() -> None:
    from dmx.config.freeze import FreezeSection
    from dmx.transfer.freeze_parts import network_parts
    from dmx.transfer.freeze_planning import plan_freeze

    network = make("DynUNet", DYNUNET, classes=3, seed=0)
    plan = plan_freeze(FreezeSection(layers="all_but_head"), network_parts(network))
    free = {name.rpartition(".")[0] for name in plan_parameters(network) if name not in plan.parameters}
    assert free == {
        "network.output_block.conv.conv",
        "network.deep_supervision_heads.0.conv.conv",
        "network.deep_supervision_heads.1.conv.conv",
    }


def plan_parameters(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_parameters()]


class Deep(nn.Module):
    """A module of somebody's own with two outputs of classes, of which nothing says that they are."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 6, 3)
        self.aux = nn.Conv3d(6, classes, 1)
        self.last = nn.Conv3d(6, classes, 3)


@pytest.mark.parametrize("classes", [3, 4])
def test_a_module_of_ones_own_keeps_all_its_outputs_of_classes(classes: int) -> None:
    made = plan_transfer(sketch_module(Deep(3), name="a"), sketch_module(Deep(classes), name="b"))
    assert {tensor.layer for tensor in made.tensors if tensor.action == "initialized"} == {"aux", "last"}


def test_the_network_in_a_lightning_file_is_found_beside_a_loss() -> None:
    theirs, ours = (make("DynUNet", DYNUNET, classes=classes, seed=0) for classes in (3, 4))
    inner = theirs.network.state_dict()  # type: ignore[union-attr]
    infos = [TensorInfo(f"unet.{name}", tuple(value.shape)) for name, value in inner.items()]  # type: ignore[union-attr]
    file = sketch_tensors([*infos, TensorInfo("loss.weight", (3,))], name="file")
    made = plan_transfer(file, sketch_network(ours, name="b"))
    assert "Names of file were compared without their prefix 'unet.'." in made.notes
    head = {tensor.name for tensor in made.tensors if tensor.action == "initialized"}
    assert head == set(ours.class_axes)
    assert not any(tensor.within for tensor in made.unused)
    ruled = plan_transfer(file, sketch_network(ours, name="b"), TransferOptions(map=(MapRule("unet.*", "network.*"),)))
    assert {tensor.name for tensor in ruled.tensors if tensor.action == "initialized"} == head
    named = make("DynUNet", DYNUNET, classes=3, seed=0)
    asked = TransferOptions(map=(MapRule("unet.output_block.*", "network.output_block.*"),))
    assert "network.output_block.conv.conv" in {
        layer for layer, _, _ in plan_transfer(file, sketch_network(named, name="b"), asked).pairs
    }


def test_of_two_networks_that_fit_the_one_that_is_taken_is_named() -> None:
    plain = {f"{who}.{layer}.weight": (4, 4, 3, 3, 3) for who in ("student", "teacher") for layer in "ab"}
    file = sketch_tensors([TensorInfo(name, shape) for name, shape in plain.items()], name="file")
    target = nn.ModuleDict({"a": nn.Conv3d(4, 4, 3, bias=False), "b": nn.Conv3d(4, 4, 3, bias=False)})
    made = plan_transfer(file, sketch_module(target, name="b"), TransferOptions(head="copy"))
    assert any("'teacher.' would fit as well as those with 'student.'" in note for note in made.notes)


def test_a_head_is_copied_where_only_the_target_has_auxiliary_ones() -> None:
    plain = {key: value for key, value in DYNUNET.items() if not key.startswith("deep")}
    theirs, ours = make("DynUNet", plain, classes=3, seed=0), make("DynUNet", DYNUNET, classes=3, seed=1)
    plan = moved(theirs, ours, head="copy")
    reasons = {tensor.reason for tensor in plan.tensors if tensor.layer.startswith("network.deep_supervision_heads")}
    assert all(reason.startswith("the source has no tensor of the name") for reason in reasons)
    assert "network.output_block.conv.conv" in {layer for layer, _, _ in plan.pairs}
