"""Tables of places, index buffers and kernels that stack several things: nothing is cut that has no channels."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from dmx.config.model import ModelSection
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.model.sketch import sketch_module, sketch_network
from dmx.transfer.apply import apply_plan
from dmx.transfer.describe import TensorInfo
from dmx.transfer.layout import sketch_tensors
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer

VIT = {"hidden_size": 12, "num_heads": 2, "mlp_dim": 16, "feature_size": 4}


def make(name: str, *, seed: int = 0, **arguments: Any) -> Network:
    pytest.importorskip("einops")
    return build_network(ModelSection(name=name, arguments=arguments), num_channels=1, num_classes=2, seed=seed)


def moved(theirs: nn.Module, ours: nn.Module) -> TransferPlan:
    sketches = [
        sketch_network(one, name=name) if isinstance(one, Network) else sketch_module(one, name=name)
        for one, name in ((theirs, "a"), (ours, "b"))
    ]
    plan = plan_transfer(*sketches)
    apply_plan(plan, {"a": theirs.state_dict()}, ours.state_dict())
    return TransferPlan.from_dict(plan.as_dict())


def action(plan: TransferPlan, end: str) -> set[tuple[str, str, bool]]:
    return {(tensor.action, tensor.rule, tensor.exact) for tensor in plan.tensors if tensor.name.endswith(end)}


@pytest.mark.parametrize("window", [5, (3, 7, 5)])
def test_another_window_interpolates_the_biases_and_keeps_the_indices(window: int | Sequence[int]) -> None:
    theirs = make("SwinUNETR", feature_size=12, window_size=7)
    ours = make("SwinUNETR", seed=1, feature_size=12, window_size=window)
    fresh = make("SwinUNETR", seed=1, feature_size=12, window_size=window).state_dict()
    plan = moved(theirs, ours)
    state = ours.state_dict()
    for name, value in state.items():
        if name.endswith("relative_position_index"):
            assert torch.equal(value, fresh[name])
    name = "network.swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"
    sizes = [2 * size - 1 for size in ((window,) * 3 if isinstance(window, int) else window)]
    old = theirs.state_dict()[name].T.reshape(1, -1, 13, 13, 13)
    wanted = functional.interpolate(old, size=sizes, mode="trilinear", align_corners=False).flatten(2)[0].T
    assert torch.equal(state[name], wanted)
    [(kind, rule, exact)] = action(plan, "relative_position_bias_table")
    assert (kind, exact) == ("adapted", False)
    assert rule == f"13x13x13 places interpolated to {'x'.join(map(str, sizes))} (trilinear)"
    assert not [tensor for tensor in plan.unused if tensor.learned and ".out." not in tensor.name]
    ours.eval()([torch.zeros(1, 1, 64, 64, 64)])


def test_the_same_window_copies_the_biases() -> None:
    theirs, ours = (make("SwinUNETR", seed=seed, feature_size=12, window_size=3) for seed in (0, 1))
    assert action(moved(theirs, ours), "relative_position_bias_table") == {("copied", "", True)}


@pytest.mark.parametrize("size", [48, 16])
def test_another_size_of_the_image_interpolates_the_position_embeddings(size: int) -> None:
    theirs = make("UNETR", img_size=[32] * 3, **VIT)
    ours = make("UNETR", seed=1, img_size=[size] * 3, **VIT)
    plan = moved(theirs, ours)
    name = "network.vit.patch_embedding.position_embeddings"
    old = theirs.state_dict()[name].movedim(1, 2).reshape(1, 12, 2, 2, 2)
    wanted = functional.interpolate(old, size=(size // 16,) * 3, mode="trilinear", align_corners=False)
    assert torch.equal(ours.state_dict()[name], wanted.flatten(2).movedim(1, 2))
    assert action(plan, name) == {
        ("adapted", f"2x2x2 places interpolated to {size // 16}x{size // 16}x{size // 16} (trilinear)", False)
    }


def test_grids_of_other_proportions_are_known_by_the_network() -> None:
    theirs = make("UNETR", img_size=[64, 32, 32], **VIT)
    ours = make("UNETR", seed=1, img_size=[32, 64, 32], **VIT)
    plan = moved(theirs, ours)
    assert {rule for _, rule, _ in action(plan, "position_embeddings")} == {
        "4x2x2 places interpolated to 2x4x2 (trilinear)"
    }


def test_positions_that_are_computed_stay_as_they_are() -> None:
    pytest.importorskip("einops")
    from monai.networks.blocks.patchembedding import PatchEmbeddingBlock

    def block(size: int, kind: str) -> nn.Module:
        return PatchEmbeddingBlock(1, size, 8, 12, 2, pos_embed_type=kind, spatial_dims=2)

    plan = moved(
        nn.ModuleDict({"embed": block(32, "sincos"), "head": nn.Conv2d(12, 2, 1)}),
        nn.ModuleDict({"embed": block(48, "sincos"), "head": nn.Conv2d(12, 2, 1)}),
    )
    assert action(plan, "position_embeddings") == {("initialized", "", True)}
    learned = moved(
        nn.ModuleDict({"embed": block(32, "learnable"), "head": nn.Conv2d(12, 2, 1)}),
        nn.ModuleDict({"embed": block(48, "learnable"), "head": nn.Conv2d(12, 2, 1)}),
    )
    assert {rule for _, rule, _ in action(learned, "position_embeddings")} == {
        "4x4 places interpolated to 6x6 (bicubic)"
    }


class Vision(nn.Module):
    """A vision transformer's embedding: a class token before the places."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.cls_token = nn.Parameter(torch.rand(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.rand(1, side * side + 1, 8))
        self.head = nn.Linear(8, 2)


def test_the_entry_of_a_class_token_is_no_place() -> None:
    theirs, ours = Vision(4), Vision(6)
    file = sketch_tensors([TensorInfo(key, tuple(value.shape)) for key, value in theirs.state_dict().items()], name="a")
    plan = plan_transfer(file, sketch_module(ours, name="b"))
    apply_plan(plan, {"a": theirs.state_dict()}, ours.state_dict())
    assert torch.equal(ours.pos_embed[:, 0], theirs.pos_embed[:, 0])
    assert {rule for _, rule, _ in action(plan, "pos_embed")} == {
        "4x4 places interpolated to 6x6 (bicubic, all but the leading 1)"
    }


def test_a_table_that_is_no_grid_stays_as_initialized_and_is_named() -> None:
    theirs, ours = Vision(4), Vision(6)
    theirs.pos_embed = nn.Parameter(torch.rand(1, 21, 8))
    before = ours.pos_embed.clone()
    plan = moved(theirs, ours)
    assert torch.equal(ours.pos_embed, before)
    assert any("pos_embed of b stays as initialized: its 37 entries here (6x6 and 1" in one for one in plan.warnings)


def test_query_key_and_value_of_a_wider_attention_keep_their_places() -> None:
    def attention(width: int) -> nn.Module:
        return nn.ModuleDict(
            {
                "qkv": nn.Linear(width, 3 * width),
                "own": nn.MultiheadAttention(width, 2),
                "words": nn.Embedding(width // 2, 4),
                "head": nn.Linear(width, 2),
            }
        )

    theirs, ours = attention(4), attention(8)
    before = ours.state_dict()["words.weight"].clone()
    plan = moved(theirs, ours)
    state, old = ours.state_dict(), theirs.state_dict()
    for name in ("qkv.weight", "own.in_proj_weight"):
        for part in range(3):
            assert torch.equal(state[name][8 * part : 8 * part + 4, :4], old[name][4 * part : 4 * part + 4]), name
    assert torch.equal(state["words.weight"], before)
    assert any("words.weight of b stays as initialized" in warning for warning in plan.warnings)


def test_a_transposed_convolution_gives_its_second_axis() -> None:
    sketch = sketch_module(nn.Sequential(nn.ConvTranspose3d(4, 6, 2), nn.Conv3d(6, 2, 1)), name="a")
    assert (sketch.layers[0].in_channels, sketch.layers[0].out_channels) == (4, 6)


def test_patches_flattened_by_einops_are_not_cut_as_channels() -> None:
    pytest.importorskip("einops")
    from einops.layers.torch import Rearrange

    def embed(channels: int) -> nn.Module:
        turn = Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4)
        return nn.Sequential(turn, nn.Linear(16 * channels, 8), nn.Linear(8, 8), nn.Linear(8, 2))

    plan = moved(embed(1), embed(3))
    assert action(plan, "1.weight") == {("initialized", "", True)}
    assert any("keep random weights: 1." in warning for warning in plan.warnings)
