"""Blocks, statistics, weights, names and settings of the multi-scale network."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmx.config.model import (
    FCSection,
    ModelSection,
    NormalizationSection,
    PathwaySection,
    SubsampledSection,
    WeightInitSection,
)
from dmx.errors import ModelError
from dmx.model.blocks import PReLU, pad_mirror
from dmx.model.build import build_network
from dmx.model.dropout import Dropout, UnscaledDropout
from dmx.model.multiscale import MultiScaleNet
from dmx.model.norms import RollingBatchNorm, make_norm
from dmx.model.upsampling import interpolate_linear, repeat_nearest


def make(section: ModelSection, **arguments: Any) -> MultiScaleNet:
    network = build_network(section, **{"num_channels": 2, "num_classes": 3, **arguments})
    assert isinstance(network, MultiScaleNet)
    return network


def patches_for(network: MultiScaleNet, segment: int = 13, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    plan = network.segment_plan((segment,) * 3)
    return [torch.randn(batch, 2, *patch.shape, generator=generator) for patch in plan.patches]


# Weights and names


def test_weights_depend_on_seed_and_name_alone(tiny: ModelSection) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    state = make(tiny, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    changed = replace(
        tiny,
        subsampled=(SubsampledSection(factor=2), SubsampledSection(factor=5)),
        fc=FCSection(widths=(7,)),
        normalization=NormalizationSection(name="group"),
    )
    for name, value in make(changed, seed=3, compatibility="none").state_dict().items():
        if name.startswith(("normal.", "subsampled_1.")) and name in state:
            assert torch.equal(value, state[name]), name
    assert not torch.equal(
        make(tiny, seed=4).state_dict()["normal.block_1.conv.weight"], state["normal.block_1.conv.weight"]
    )
    assert not torch.equal(state["normal.block_1.conv.weight"], state["subsampled_1.block_1.conv.weight"])


def test_kernels_have_the_deviation_that_was_asked_for() -> None:
    section = ModelSection(normal=PathwaySection(widths=(40, 40)), subsampled=(), fc=FCSection(widths=()))
    weight = make(section).get_parameter("normal.block_2.conv.weight")
    assert weight.std().item() == pytest.approx((2 / (40 * 27)) ** 0.5, rel=0.02)
    fixed = replace(section, weight_init=WeightInitSection(name="normal", std=0.3))
    assert make(fixed).get_parameter("normal.block_2.conv.weight").std().item() == pytest.approx(0.3, rel=0.02)


def test_names_of_the_state_dict_are_a_contract() -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(2, 2), low_rank=(2,)),
        subsampled=(SubsampledSection(low_rank=()),),
        fc=FCSection(widths=(3,)),
        normalization=NormalizationSection(name="batch_rolling"),
    )
    norm = ["norm.weight", "norm.bias", "norm.means", "norm.variances", "norm.count", "activation.weight"]
    plain = ["norm.bias", "conv.weight"]
    factors = [f"conv.axis_{axis}.weight" for axis in range(3)]
    wanted = {
        "normal.block_1": plain,
        "normal.block_2": [*norm, *factors],
        "subsampled_1.block_1": plain,
        "subsampled_1.block_2": [*norm, "conv.weight"],
        "fc.block_1": [*norm, "conv.weight"],
        "head": [*norm, "conv.weight", "conv.bias"],
    }
    names = [f"{layer}.{key}" for layer, keys in wanted.items() for key in keys]
    assert sorted(make(section).state_dict()) == sorted(names)


def test_layer_groups_name_every_parameter_once(full: ModelSection) -> None:
    network = make(replace(full, subsampled=(SubsampledSection(), SubsampledSection(widths=(9,) * 9, residual=()))))
    groups = network.layer_groups()
    named = [name for group in groups for name in group.parameters]
    assert sorted(named) == sorted(name for name, _ in network.named_parameters())
    assert [group.pathway for group in groups] == ["normal"] * 8 + ["subsampled_1"] * 8 + ["subsampled_2"] * 9 + [
        "fc"
    ] * 3
    assert [(group.position, group.depth, group.name) for group in groups[-3:]] == [
        (1, 10, "fc.block_1"),
        (2, 11, "fc.block_2"),
        (3, 12, "head"),
    ]
    assert [group.name for group in groups if group.is_head] == ["head"]
    assert all(network.get_submodule(group.name) is group.modules[0] for group in groups)


def test_the_full_model_has_as_many_parameters_as_deepmedics(full: ModelSection) -> None:
    network = make(full, num_channels=2, num_classes=5)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_008_901
    kernels = network.kernel_parameters()
    assert len(kernels) == 27
    assert all(kernel.ndim == 5 for kernel in kernels)


# Statistics


def test_rolling_statistics_average_what_was_written() -> None:
    norm = RollingBatchNorm(3, steps=4, epsilon=1e-5, count_unwritten=False)
    batches = [torch.randn(2, 3, 4, 4, 4) * (k + 1) + k for k in range(6)]
    for count, batch in enumerate(batches, start=1):
        norm(batch)
        norm.after_step()
        last = batches[max(0, count - 4) : count]
        mean, variance = norm.statistics()
        torch.testing.assert_close(mean, torch.stack([b.mean((0, 2, 3, 4)) for b in last]).mean(0))
        variances = [b.var((0, 2, 3, 4), correction=0) for b in last]
        torch.testing.assert_close(variance, torch.stack(variances).mean(0))
    assert norm.count == 6
    assert set(norm.state_dict()) == {"weight", "bias", "means", "variances", "count"}


def test_deepmedics_statistics_count_rows_that_are_not_written_yet() -> None:
    norm = RollingBatchNorm(1, steps=4, epsilon=1e-5, count_unwritten=True)
    batch = torch.randn(2, 1, 4, 4, 4) + 8
    norm(batch)
    norm.after_step()
    mean, variance = norm.statistics()
    assert mean.item() == pytest.approx(batch.mean().item() / 4, rel=1e-5)
    assert variance.item() == pytest.approx((3 + batch.var(correction=0).item()) / 4, rel=1e-5)


def test_a_step_averages_its_passes_and_a_step_without_training_writes_nothing() -> None:
    norm = RollingBatchNorm(1, steps=2, epsilon=1e-5, count_unwritten=False)
    first, second = torch.zeros(1, 1, 2, 2, 2) + torch.arange(2.0), torch.ones(1, 1, 2, 2, 2) + torch.arange(2.0)
    norm(first)
    norm(second)
    norm.after_step()
    assert norm.means[0].item() == pytest.approx(1.0)
    norm.eval()
    norm(first)
    norm.after_step()
    assert norm.count == 1
    assert norm.means.flatten().tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("name", ["batch", "batch_rolling"])
def test_one_voxel_has_no_statistics(name: str) -> None:
    norm = make_norm(NormalizationSection(name=name), 3, compatibility="none")
    norm(torch.zeros(2, 3, 1, 1, 1))
    with pytest.raises(ModelError, match="more than one voxel"):
        norm(torch.zeros(1, 3, 1, 1, 1))
    norm.eval()(torch.zeros(1, 3, 1, 1, 1))


def test_groups_are_the_nearest_divisor() -> None:
    def groups(channels: int) -> object:
        return make_norm(NormalizationSection(name="group", groups=8), channels, compatibility="none").num_groups

    assert [groups(n) for n in (16, 30, 7, 12, 5)] == [8, 10, 7, 6, 5]


def test_prediction_of_one_segment_is_that_in_a_batch(tiny: ModelSection) -> None:
    network = make(tiny).eval()
    patches = patches_for(network, batch=3)
    with torch.no_grad():
        together = network(patches)
        alone = network([patch[1:2] for patch in patches])
    torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-5)


# Parts


@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 2, 1), (1, 1, 1), (7, 4, 3)])
def test_mirror_padding_is_numpys_symmetric(kernel: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 4, 2, 5)
    sides = [((size - 1) // 2, size // 2) for size in kernel]
    wanted = np.pad(x.numpy(), [(0, 0), (0, 0), *sides], mode="symmetric")
    assert np.array_equal(pad_mirror(x, sides).numpy(), wanted)


@pytest.mark.parametrize("kernel", [3, 2, ((1, 4, 3),)])
def test_zero_padding_keeps_the_size_and_has_one_more_behind(kernel: Any) -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(1,), kernels=kernel, padding="zero"), subsampled=(), fc=FCSection(widths=())
    )
    network = make(section, num_channels=1)
    conv = network.get_submodule("normal.block_1.conv")
    x = torch.randn(1, 1, 5, 6, 7)
    sides = [((size - 1) // 2, size // 2) for size in reversed(conv.weight.shape[2:])]
    wanted = functional.conv3d(functional.pad(x, [side for pair in sides for side in pair]), conv.weight)
    torch.testing.assert_close(network.get_submodule("normal")(x), wanted)


def test_a_residual_adds_the_input_of_the_layer_before() -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(4, 3, 5, 2), residual=(3, 4)),
        subsampled=(),
        fc=FCSection(widths=()),
        normalization=NormalizationSection(name="none"),
    )
    network = make(section).eval()
    blocks = [network.get_submodule(f"normal.block_{k}") for k in range(1, 5)]
    x = [torch.randn(1, 2, 11, 11, 11)]
    with torch.no_grad():
        x.extend(blocks[k](x[k]) for k in (0,))
        x.append(blocks[1](x[1]))
        third = blocks[2](x[2])
        # 4 channels into 5: the last one receives nothing. 3 into 2: the first two are used.
        x.append(third + functional.pad(x[1][..., 2:-2, 2:-2, 2:-2], (0,) * 7 + (1,)))
        x.append(blocks[3](x[3]) + x[2][:, :2, 2:-2, 2:-2, 2:-2])
        torch.testing.assert_close(network.get_submodule("normal")(x[0]), x[4])
        assert not torch.equal(third, x[3])


def test_a_factorized_kernel_is_a_convolution_with_the_product_of_its_factors() -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(1, 1), kernels=((3, 3, 3), (3, 1, 5)), low_rank=(1, 2), padding="zero"),
        subsampled=(),
        fc=FCSection(widths=()),
    )
    network = make(section, num_channels=1)
    factors = [network.get_parameter(f"normal.block_1.conv.axis_{axis}.weight") for axis in range(3)]
    product = factors[0] * factors[1] * factors[2]
    assert [tuple(f.shape[2:]) for f in factors] == [(3, 1, 1), (1, 3, 1), (1, 1, 3)]
    x = torch.randn(1, 1, 6, 6, 6)
    torch.testing.assert_close(network.get_submodule("normal.block_1")(x), functional.conv3d(x, product, padding=1))
    assert len(list(network.get_submodule("normal.block_2.conv").children())) == 2
    assert len(network.kernel_parameters()) == 3 + 2 + 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_the_gradient_of_prelu_is_torchs(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    x, outer = (torch.randn(3, 4, 5, 6, 7, generator=generator).contiguous(memory_format=layout) for _ in range(2))
    x[0, 0, 0, 0, :2] = torch.tensor([0.0, -0.0])
    activation = PReLU(4)
    with torch.no_grad():
        activation.weight.copy_(torch.tensor([0.01, -0.5, 1.5, 0.0]))
    wanted_x, wanted_slope = x.clone().requires_grad_(), activation.weight.detach().clone().requires_grad_()
    wanted = functional.prelu(wanted_x, wanted_slope)
    wanted.backward(outer)
    x.requires_grad_()
    got = activation(x)
    got.backward(outer)
    assert torch.equal(got, wanted)
    assert torch.equal(got.detach(), activation(x.detach()).detach())
    assert x.grad is not None
    assert torch.equal(x.grad, wanted_x.grad)
    assert x.grad.stride() == x.stride()
    torch.testing.assert_close(activation.weight.grad, wanted_slope.grad)
    assert not torch.equal(x.grad, outer)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_dropout_draws_what_torch_draws(rate: float, dtype: torch.dtype, layout: torch.memory_format) -> None:
    # More elements than are drawn at a time.
    x = torch.randn(2, 10, 13, 14, 15, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=layout).requires_grad_()
    results = []
    for dropout in (Dropout(rate), torch.nn.Dropout(rate)):
        torch.manual_seed(5)
        x.grad = None
        dropped = dropout(x)
        dropped.sum().backward()
        assert x.grad is not None
        results.append([dropped, x.grad, torch.rand(1)])
    assert all(torch.equal(ours, torchs) for ours, torchs in zip(*results, strict=True))
    assert not torch.equal(results[0][0], x)
    assert torch.equal(Dropout(rate).eval()(x), x)


def test_dropout_keeps_the_mean_by_scaling_what_stays_or_all_in_prediction(tiny: ModelSection) -> None:
    section = replace(tiny, fc=replace(tiny.fc, dropout=0.25))
    x = torch.ones(1, 1, 20, 20, 20)
    unscaled = make(section, compatibility="deepmedic").head.dropout
    assert isinstance(unscaled, UnscaledDropout)
    assert set(unscaled.train()(x).unique().tolist()) == {0.0, 1.0}
    assert unscaled.train()(x).mean().item() == pytest.approx(0.75, abs=0.02)
    assert unscaled.eval()(x).unique().tolist() == [0.75]
    inverted = make(section).head.dropout
    assert inverted.train()(x).max().item() == pytest.approx(1 / 0.75)
    assert torch.equal(inverted.eval()(x), x)


def test_default_dropout_spares_the_first_joined_layer() -> None:
    def rates(widths: tuple[int, ...]) -> list[float]:
        return [layer.dropout for layer in make(ModelSection(fc=FCSection(widths=widths))).spec.fc.layers]

    assert rates((5, 5)) == [0.0, 0.5, 0.5]
    assert rates(()) == [0.5]


@pytest.mark.parametrize("channels_last", [False, True])
def test_repeating_takes_the_coarse_voxel_of_each_fine_one(channels_last: bool) -> None:
    x = torch.arange(2 * 3 * 2 * 2 * 3, dtype=torch.float32).reshape(2, 3, 2, 2, 3)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    like = torch.empty(2, 4, 5, 4, 2).contiguous(memory_format=layout)
    result = repeat_nearest(x.contiguous(memory_format=layout), (3, 2, 1), like)
    i, j, k = torch.meshgrid(torch.arange(5) // 3, torch.arange(4) // 2, torch.arange(2), indexing="ij")
    assert torch.equal(result, x[:, :, i, j, k])


def test_linear_upsampling_keeps_a_ramp() -> None:
    # Coarse voxel -1 comes first; its center lies 2 voxels before the first fine voxel's when the factor is 3.
    coarse = torch.arange(-1.0, 4.0) * 3 + 1
    x = coarse.view(1, 1, 5, 1, 1).expand(1, 1, 5, 3, 3).contiguous()
    result = interpolate_linear(x, (3, 1, 1), torch.empty(1, 1, 8, 1, 1))
    torch.testing.assert_close(result[0, 0, :, 0, 0], torch.arange(8.0))


# Settings


@pytest.mark.parametrize("activation", ["prelu", "relu", "elu", "selu", "leaky_relu", "linear"])
@pytest.mark.parametrize("norm", ["batch", "batch_rolling", "instance", "group", "none"])
def test_every_choice_trains(activation: str, norm: str, tiny: ModelSection) -> None:
    section = replace(tiny, activation=activation, normalization=NormalizationSection(name=norm, steps=3))
    network = make(section)
    network(patches_for(network)).square().mean().backward()
    network.after_step()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["batch", "batch_rolling", "instance", "group", "none"])
def test_reduced_precision_keeps_statistics_in_full(norm: str, tiny: ModelSection) -> None:
    network = make(replace(tiny, normalization=NormalizationSection(name=norm), fc=FCSection(widths=(), dropout=0.0)))
    patches = patches_for(network)
    exact = network(patches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = network(patches)
    assert reduced.dtype == torch.bfloat16
    reduced.float().mean().backward()
    torch.testing.assert_close(reduced.float(), exact, rtol=0.1, atol=0.1)
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in network.buffers())


@pytest.mark.slow
def test_compilation_changes_nothing(full: ModelSection) -> None:
    section = replace(full, normal=PathwaySection(widths=(4, 5, 6, 6), residual=(4,)), fc=FCSection(widths=(8,)))
    network = make(replace(section, fc=replace(section.fc, dropout=0.0)))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for segment in (13, 16):
        patches = patches_for(network, segment=segment)
        torch.testing.assert_close(compiled(patches), network(patches))
    network.after_step()


@pytest.mark.parametrize("num_channels", [1, 2])
def test_prediction_in_bf16_on_a_cpu_has_channels_last(num_channels: int, tiny: ModelSection) -> None:
    network = make(tiny, num_channels=num_channels).eval()
    inputs_of_head: list[Tensor] = []
    network.head.register_forward_hook(lambda _, inputs, __: inputs_of_head.append(inputs[0]))
    patches = [patch[:, :num_channels] for patch in patches_for(network)]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        fast = network(patches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = network(patches)
    torch.testing.assert_close(fast, plain, atol=0.05, rtol=0.05)
    assert [features.is_contiguous() for features in inputs_of_head] == [False, True]


def test_memory_layout_changes_nothing_and_is_kept(full: ModelSection) -> None:
    section = replace(
        full, normal=PathwaySection(widths=(4, 5, 6, 6), residual=(4,)), fc=FCSection(widths=(8,), dropout=0.0)
    )
    network = make(section)
    patches = patches_for(network, segment=16)
    wanted = network(patches)
    inputs_of_fc: list[Tensor] = []
    network.get_submodule("fc.block_1").register_forward_pre_hook(lambda _, given: inputs_of_fc.append(given[0]))
    network(patches)
    network.to(memory_format=torch.channels_last_3d)
    last = [patch.contiguous(memory_format=torch.channels_last_3d) for patch in patches]
    result = network(last)
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)
    assert inputs_of_fc[-1].is_contiguous(memory_format=torch.channels_last_3d)
    assert not inputs_of_fc[0].is_contiguous(memory_format=torch.channels_last_3d)


NORMAL = PathwaySection(widths=(4, 4, 4, 4))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"normal": PathwaySection(widths=())}, ["normal.widths", "at least 1", "[]"]),
        ({"normal": PathwaySection(widths=(4, 0))}, ["normal.widths", "[4, 0]"]),
        ({"normal": replace(NORMAL, kernels=(3, 3))}, ["normal.kernels", "4 layers", "got 2"]),
        ({"normal": replace(NORMAL, kernels=(3, 3, 1))}, ["normal.kernels", "4 layers", "[[3, 3, 1]]"]),
        ({"normal": replace(NORMAL, kernels=0)}, ["normal.kernels", "at least 1", "got 0"]),
        ({"normal": replace(NORMAL, residual=(1,))}, ["normal.residual", "2 to 4", "got 1"]),
        ({"normal": replace(NORMAL, low_rank=(5,))}, ["normal.low_rank", "1 to 4", "got 5"]),
        ({"normal": replace(NORMAL, padding=("zero",))}, ["normal.padding", "4 layers", "got 1"]),
        ({"normal": replace(NORMAL, dropout=(0.1, 0.1))}, ["normal.dropout", "4 layers", "got 2"]),
        ({"normal": NORMAL, "subsampled": (SubsampledSection(dropout=1.0),)}, ["subsampled_1.dropout", "below 1"]),
        ({"normal": NORMAL, "subsampled": (SubsampledSection(residual=(9,)),)}, ["subsampled_1.residual", "2 to 4"]),
        ({"fc": FCSection(widths=(4,), residual=(3,))}, ["fc.residual", "2 to 2", "got 3"]),
        ({"fc": FCSection(widths=(), residual=(2,))}, ["fc.residual", "must be empty"]),
        ({"fc": FCSection(widths=(4, -1))}, ["fc.widths", "[4, -1]"]),
    ],
)
def test_a_wrong_list_names_field_allowed_and_got(section: dict[str, Any], words: Sequence[str]) -> None:
    with pytest.raises(ModelError) as caught:
        make(ModelSection(**section))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalization": NormalizationSection(name="group")}, ["normalization.name", "batch_rolling", "'group'"]),
        ({"activation": "selu"}, ["activation", "'selu'"]),
        ({"upsampling": "linear"}, ["upsampling", "'linear'"]),
        ({"subsampled": (SubsampledSection(widths=(4,)),)}, ["subsampled_1.kernels", "7x7x7", "3x3x3"]),
    ],
)
def test_compatibility_refuses_what_deepmedic_lacks(
    change: dict[str, Any], words: Sequence[str], tiny: ModelSection
) -> None:
    make(tiny, compatibility="deepmedic")
    with pytest.raises(ModelError) as caught:
        make(replace(tiny, **change), compatibility="deepmedic")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_compatibility_refuses_other_networks() -> None:
    with pytest.raises(ModelError, match=r"needs model\.name .multiscale., got .UNet."):
        make(ModelSection(name="UNet"), compatibility="deepmedic")


def test_a_network_needs_channels_classes_and_its_patches(tiny: ModelSection) -> None:
    with pytest.raises(ModelError, match="got 2 channels and 0 outputs"):
        make(tiny, num_classes=0)
    network = make(tiny)
    with pytest.raises(ModelError, match="reads 2 patches of a segment, got 1"):
        network(patches_for(network)[:1])


def test_pathways_keep_their_own_settings() -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(4, 5), kernels=((3, 3, 1),), dropout=0.2),
        subsampled=(SubsampledSection(factor=(1, 2, 3)), SubsampledSection(widths=(7,), kernels=5, dropout=0.0)),
    )
    mirrored, own = make(section).spec.subsampled
    assert mirrored.receptive_field == (5, 5, 1)
    assert [layer.dropout for layer in mirrored.layers] == [0.2, 0.2]
    assert (own.receptive_field, own.factor, own.layers[0].dropout) == ((5, 5, 5), (3, 3, 3), 0.0)
