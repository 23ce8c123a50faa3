"""Optimizers against torch's own, frozen parameters, and states that do not fit."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dmx.config.optimization import OptimizerSection
from dmx.errors import CheckpointError, ConfigError
from dmx.training.optimizers import Optimizer

RATES = [0.1, 0.05, 0.2, 0.01]


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return {name: nn.Parameter(torch.randn(4, generator=generator)) for name in ("kernel", "bias", "frozen")}


def set_gradients(params: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for name, parameter in params.items():
        gradient = torch.randn(4, generator=generator)
        parameter.grad = None if name == "frozen" else gradient


@pytest.mark.parametrize(
    ("section", "theirs"),
    [
        (
            OptimizerSection(name="sgd", momentum=0.6, nesterov=True),
            lambda p: torch.optim.SGD(p, 1.0, momentum=0.6, nesterov=True),
        ),
        (
            OptimizerSection(name="sgd", momentum=0.6, nesterov=False),
            lambda p: torch.optim.SGD(p, 1.0, momentum=0.6),
        ),
        (OptimizerSection(name="sgd", momentum=0.0), lambda p: torch.optim.SGD(p, 1.0)),
        (
            OptimizerSection(name="rmsprop", momentum=0.6, nesterov=False, rho=0.8, epsilon=1e-3),
            lambda p: torch.optim.RMSprop(p, 1.0, alpha=0.8, eps=1e-3, momentum=0.6),
        ),
        (
            OptimizerSection(name="adam", betas=(0.8, 0.95)),
            lambda p: torch.optim.Adam(p, 1.0, betas=(0.8, 0.95)),
        ),
        (
            OptimizerSection(name="adamw", weight_decay=0.1),
            lambda p: torch.optim.AdamW(
                [{"params": p[:1]}, {"params": p[1:], "weight_decay": 0.0}], 1.0, weight_decay=0.1
            ),
        ),
    ],
)
def test_steps_are_torchs(
    section: OptimizerSection, theirs: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    ours, reference = parameters(), parameters()
    optimizer = Optimizer(ours.items(), section, kernels=[ours["kernel"]])
    torchs = theirs(list(reference.values()))
    for step, lr in enumerate(RATES):
        set_gradients(ours, step)
        set_gradients(reference, step)
        for group in torchs.param_groups:
            group["lr"] = lr
        torchs.step()
        optimizer.step(lr)
    for name in ours:
        assert torch.allclose(ours[name], reference[name], atol=1e-6), name
    assert not torch.allclose(ours["kernel"], parameters()["kernel"], atol=1e-2)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("compatibility", ["none", "deepmedic"])
def test_what_has_no_gradient_is_not_touched(name: str, compatibility: str) -> None:
    params = parameters()
    before = params["frozen"].detach().clone()
    decay = 0.1 if name == "adamw" else 0.0
    section = OptimizerSection(name=name, weight_decay=decay)
    optimizer = Optimizer(params.items(), section, kernels=params.values(), compatibility=compatibility)
    set_gradients(params, 0)
    # A gradient that was left behind by a layer that was frozen later.
    params["bias"].requires_grad_(False)
    bias = params["bias"].detach().clone()
    optimizer.step(0.1)
    assert torch.equal(params["frozen"], before)
    assert torch.equal(params["bias"], bias)
    assert all(set(tensors) == {"kernel"} for tensors in optimizer.state.values())

    params["bias"].requires_grad_(True)
    set_gradients(params, 1)
    optimizer.step(0.1)
    assert not torch.equal(params["bias"], bias)
    assert optimizer.steps == {"kernel": 2, "bias": 1}


@pytest.mark.parametrize("compatibility", ["none", "deepmedic"])
@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_normalized_momentum_scales_the_update(name: str, compatibility: str) -> None:
    moved = []
    for normalized in (False, True):
        params = parameters()
        section = OptimizerSection(name=name, momentum=0.6, nesterov=False, normalized_momentum=normalized)
        set_gradients(params, 0)
        Optimizer(params.items(), section, compatibility=compatibility).step(0.1)
        moved.append(params["kernel"].detach() - parameters()["kernel"].detach())
    assert torch.allclose(moved[1], 0.4 * moved[0], atol=1e-6)


def test_deepmedics_momentum_keeps_the_learning_rates_of_the_past() -> None:
    """With a rate that changes, the two definitions part; with a constant one they agree."""

    def walk(compatibility: str, rates: list[float]) -> torch.Tensor:
        params = parameters()
        optimizer = Optimizer(params.items(), OptimizerSection(name="sgd"), compatibility=compatibility)
        for step, lr in enumerate(rates):
            set_gradients(params, step)
            optimizer.step(lr)
        return params["kernel"].detach()

    assert torch.allclose(walk("none", [0.1] * 4), walk("deepmedic", [0.1] * 4), atol=1e-6)
    assert not torch.allclose(walk("none", RATES), walk("deepmedic", RATES), atol=1e-3)


def test_a_weight_decay_without_adamw_is_refused() -> None:
    with pytest.raises(ConfigError, match="weight_decay must be 0 with 'sgd'"):
        Optimizer(parameters().items(), OptimizerSection(name="sgd", weight_decay=0.1))


def test_the_state_of_another_training_is_refused() -> None:
    params = parameters()
    set_gradients(params, 0)
    adam = Optimizer(params.items(), OptimizerSection(name="adam"))
    adam.step(0.1)
    with pytest.raises(CheckpointError, match="must hold velocity"):
        Optimizer(params.items(), OptimizerSection(name="sgd")).load_state_dict(adam.state_dict())
    with pytest.raises(CheckpointError, match="lacks: kernel"):
        Optimizer([("bias", params["bias"])], OptimizerSection(name="adam")).load_state_dict(adam.state_dict())


def test_a_factor_of_the_learning_rate_scales_the_weight_decay_too() -> None:
    section = OptimizerSection(name="adamw", weight_decay=0.5)
    ours, reference = parameters(), parameters()
    optimizer = Optimizer(ours.items(), section, kernels=[ours["kernel"]])
    optimizer.scales = {"kernel": 0.25}
    groups = [
        {"params": [reference["kernel"]], "weight_decay": 0.5, "factor": 0.25},
        {"params": [reference["bias"]], "weight_decay": 0.0, "factor": 1.0},
    ]
    torchs = torch.optim.AdamW(groups, 1.0)
    for step, lr in enumerate(RATES):
        set_gradients(ours, step)
        set_gradients(reference, step)
        for group in torchs.param_groups:
            group["lr"] = lr * group["factor"]
        torchs.step()
        optimizer.step(lr)
    for name in ours:
        assert torch.allclose(ours[name], reference[name], atol=1e-6), name
