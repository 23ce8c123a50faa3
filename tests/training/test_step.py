"""One step: accumulation, clipping, mixed precision, layouts, and the sentences for what goes wrong."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dmx.config.optimization import OptimizerSection, RegularizationSection
from dmx.errors import TrainingError
from dmx.model.network import Network
from dmx.sampling.batch import Batch
from dmx.training.losses import Loss
from dmx.training.settings import FitSettings
from dmx.training.state import new_state
from dmx.training.step import StepResult, run_parts, train_step

Batches = Callable[[int, int, int], Batch]


def one_step(network: Network, parts: list[Batch], settings: FitSettings, **training: Any) -> StepResult:
    settings = replace(settings, training=replace(settings.training, accumulate=len(parts), **training))
    loss = Loss(settings.losses, len(settings.classes))
    return train_step(new_state(network, settings), parts, settings, loss=loss, lr=0.1)


def without_chance(network: Network) -> Network:
    network.dropout.p = 0.0
    network.norm = nn.Identity()
    return network


def weights(network: Network) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_accumulated_parts_are_one_batch(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    parts = [batches(0, 0, part) for part in range(3)]
    for part in parts:
        # As many labels in each, so that the mean of the parts is the mean of the batch.
        part.target.clamp_(min=0)
    joined = Batch(
        inputs=(torch.cat([part.inputs[0] for part in parts]),),
        target=torch.cat([part.target for part in parts]),
        cases=sum((part.cases for part in parts), ()),
    )
    separate, whole = without_chance(new_network()), without_chance(new_network())
    first = one_step(separate, parts, settings)
    second = one_step(whole, [joined], settings)
    assert torch.allclose(weights(separate), weights(whole), atol=1e-6)
    assert first.loss == pytest.approx(second.loss, abs=1e-6)
    assert first.gradient_norm == pytest.approx(second.gradient_norm, rel=1e-4)
    assert (first.num_segments, second.num_segments) == (6, 6)

    one_part = without_chance(new_network())
    one_step(one_part, parts[:1], settings)
    assert not torch.allclose(weights(one_part), weights(whole), atol=1e-4)


def test_clipping_shortens_the_gradient_and_tells_its_norm(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    plain = replace(settings, optimizer=OptimizerSection(name="sgd", momentum=0.0))
    moved, norms = [], []
    for limit in (None, 0.01, 100.0):
        network = new_network()
        before = weights(network)
        norms.append(one_step(network, [batches(0, 0, 0)], plain, gradient_clip=limit).gradient_norm)
        moved.append(float((weights(network) - before).norm()))
    assert norms[0] == norms[1] == norms[2] > 0.01
    assert moved[0] == pytest.approx(0.1 * norms[0], rel=1e-3)
    assert moved[1] == pytest.approx(0.1 * 0.01, rel=1e-2)
    assert moved[2] == pytest.approx(moved[0])


@pytest.mark.parametrize(("precision", "near"), [("bf16", 3e-2), ("fp16", 3e-3)])
def test_mixed_precision_is_near_float32(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings, precision: str, near: float
) -> None:
    results = {}
    for name in ("fp32", precision):
        network = without_chance(new_network())
        results[name] = (one_step(network, [batches(0, 0, 0)], settings, precision=name), weights(network))
    assert results[precision][0].loss == pytest.approx(results["fp32"][0].loss, rel=near)
    assert results[precision][0].gradient_norm == pytest.approx(results["fp32"][0].gradient_norm, rel=5 * near)
    assert torch.allclose(results[precision][1], results["fp32"][1], atol=near)
    assert results[precision][1].dtype == torch.float32
    assert results[precision][0].loss != results["fp32"][0].loss


def test_fp16_skips_a_step_out_of_range_and_lowers_its_scale(
    network: Network, batches: Batches, settings: FitSettings
) -> None:
    settings = replace(settings, training=replace(settings.training, precision="fp16"))
    state = new_state(network, settings)
    assert state.scaler is not None
    loss = Loss(settings.losses, len(settings.classes))
    # A gradient that overflows at any scale above 1.
    hook = network.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    before, scale = weights(network), state.scaler.get_scale()
    result = train_step(state, [batches(0, 0, 0)], settings, loss=loss, lr=0.1)
    assert result.skipped
    assert torch.equal(weights(network), before)
    assert state.scaler.get_scale() == scale / 2

    while state.scaler.get_scale() > 1.0:
        train_step(state, [batches(0, 0, 0)], settings, loss=loss, lr=0.1)
    with pytest.raises(TrainingError, match="exceeds the range of fp16 whatever the loss scale is"):
        train_step(state, [batches(0, 0, 0)], settings, loss=loss, lr=0.1)
    hook.remove()
    assert not train_step(state, [batches(0, 0, 0)], settings, loss=loss, lr=0.1).skipped
    assert not torch.equal(weights(network), before)


def test_the_layout_in_memory_changes_no_result(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    plain, last = new_network(), new_network()
    first = one_step(plain, [batches(0, 0, 0)], settings)
    second = one_step(last, [batches(0, 0, 0)], settings, channels_last=True)
    assert last.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert first.loss == pytest.approx(second.loss, abs=1e-5)
    assert torch.allclose(weights(plain), weights(last), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_the_same(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    plain, compiled = without_chance(new_network()), without_chance(new_network())
    names = set(compiled.state_dict())
    first = one_step(plain, [batches(0, 0, 0)], settings)
    second = one_step(compiled, [batches(0, 0, 0)], settings, compile=True)
    assert first.loss == pytest.approx(second.loss, abs=1e-5)
    assert torch.allclose(weights(plain), weights(compiled), atol=1e-5)
    # A checkpoint of a compiled network opens without the compiler.
    assert set(compiled.state_dict()) == names


def test_a_frozen_layer_does_not_move(network: Network, batches: Batches, settings: FitSettings) -> None:
    network.conv.weight.requires_grad_(False)
    frozen, learned = network.conv.weight.clone(), network.head.weight.detach().clone()
    settings = replace(settings, regularization=RegularizationSection(l1=0.1, l2=0.1))
    result = one_step(network, [batches(0, 0, 0)], settings)
    assert torch.equal(network.conv.weight, frozen)
    assert not torch.equal(network.head.weight, learned)
    # The frozen kernel still counts in the reported penalty.
    assert result.terms["l1"] > float(learned.abs().sum())


def test_a_network_without_anything_to_learn_is_refused(
    network: Network, batches: Batches, settings: FitSettings
) -> None:
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(TrainingError, match="Leave one to be learned"):
        one_step(network, [batches(0, 0, 0)], settings)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "2 segments per pass with patches of 5x5x5 voxels. Lower"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "Lower training.batch_size"),
        (RuntimeError("pad_backward does not have a deterministic implementation"), "training.deterministic: false"),
    ],
)
def test_what_torch_says_becomes_a_sentence_with_settings(
    network: Network, batches: Batches, settings: FitSettings, error: Exception, words: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    network.conv.register_forward_hook(fail)
    with pytest.raises(TrainingError, match=words):
        one_step(network, [batches(0, 0, 0)], settings)


def test_a_bug_stays_a_bug(network: Network, batches: Batches, settings: FitSettings) -> None:
    broken = replace(batches(0, 0, 0), inputs=(torch.zeros(2, 9, 5, 5, 5),))
    with pytest.raises(RuntimeError, match="channels"):
        one_step(network, [broken], settings)


def test_auxiliary_outputs_are_trained_with_four_tenths_of_their_loss(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    class WithAuxiliary(type(without_chance(new_network()))):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary = nn.Conv3d(1, 3, 3)

        def outputs(self, patches: Any) -> tuple[torch.Tensor, ...]:
            return (self(patches), self.auxiliary(patches[0]))

    batch = batches(0, 0, 0)
    settings = replace(settings, regularization=RegularizationSection(l1=0.0, l2=0.0))
    network = without_chance(WithAuxiliary())
    loss = Loss(settings.losses, len(settings.classes))
    with torch.no_grad():
        main, added = (loss(scores, batch.target, epoch=0).total.item() for scores in network.outputs(batch.inputs))
    before = network.auxiliary.weight.detach().clone()
    result = one_step(network, [batch], settings)
    assert result.loss == pytest.approx(main + 0.4 * added, rel=1e-5)
    assert result.terms["auxiliary"] == pytest.approx(added, rel=1e-5)
    assert not torch.equal(network.auxiliary.weight, before)
    assert "auxiliary" not in one_step(without_chance(new_network()), [batch], settings).terms


def test_each_part_of_a_step_draws_its_own_dropout(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    def losses(count: int, first: int = 0) -> list[float]:
        network = new_network()
        network.norm = nn.Identity()
        state = new_state(network, replace(settings, training=replace(settings.training, accumulate=count)))
        network.train()
        loss = Loss(settings.losses, len(settings.classes))
        parts = run_parts(state, [batches(0, 0, 0)] * count, settings, loss=loss, first=first)
        return [value["loss"].item() for value in parts.values]

    both = losses(2)
    assert both[0] != both[1]
    # A part draws the same wherever it is computed.
    assert losses(1, first=1) == both[1:]
