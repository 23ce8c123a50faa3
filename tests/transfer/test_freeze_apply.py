"""Holding a plan on a network, and hashes of tensors."""

import pytest
import torch
from torch import nn

from dmx.transfer.freeze import NEVER, FreezePlan
from dmx.transfer.freeze_apply import digest, digests, hold

PLAN = FreezePlan(
    parameters={"0.weight": NEVER, "0.bias": NEVER, "2.weight": 3.0},
    modules={"0": NEVER, "1": NEVER},
    sizes={"0.weight": 4, "0.bias": 2, "2.weight": 4},
    num_parameters=12,
)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2), nn.Dropout(0.5))


def test_holding_withstands_what_undoes_it(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.train()
    model.requires_grad_(True)
    hold(model, PLAN, 0)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"0.weight", "0.bias", "2.weight"}
    assert {name for name, p in model.named_parameters() if p.grad is None} == {"0.weight", "0.bias", "2.weight"}
    assert [module.training for module in model] == [False, False, True, True]


def test_only_what_the_plan_names_is_touched(model: nn.Module) -> None:
    model[2].bias.requires_grad_(False)
    hold(model, PLAN, 3)
    assert model[2].weight.requires_grad
    assert not model[2].bias.requires_grad
    hold(model, FreezePlan(), 0)
    assert not model[0].weight.requires_grad


def test_a_network_in_inference_mode_stays_in_it(model: nn.Module) -> None:
    model.eval()
    hold(model, PLAN, 0)
    assert not any(module.training for module in model.modules())


def test_the_hash_is_of_values_not_of_memory() -> None:
    tensor = torch.arange(2.0 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    assert digest(tensor) == digest(tensor.contiguous(memory_format=torch.channels_last_3d))
    assert digest(tensor) != digest(tensor.reshape(3, 2, 4, 5, 6))
    assert digest(tensor) != digest(tensor.double())
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    for odd in (torch.tensor(3), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16), torch.tensor([True])):
        assert len(digest(odd)) == 64


def test_buffers_are_hashed_too() -> None:
    norm = nn.BatchNorm3d(2)
    before = digests(norm, ["weight", "running_mean", "num_batches_tracked"])
    norm(torch.randn(2, 2, 3, 3, 3))
    after = digests(norm, before)
    assert {name for name in before if before[name] != after[name]} == {"running_mean", "num_batches_tracked"}
