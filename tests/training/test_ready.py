from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from dmx.config.optimization import RegularizationSection, ScheduleSection
from dmx.errors import CheckpointError, ConfigError
from dmx.sampling.batch import Batch
from dmx.seeding import derive
from dmx.training.device import seed_generators
from dmx.training.events import StepEnded
from dmx.training.loop import fit
from dmx.training.losses import Loss
from dmx.training.ready import ReadyOptimizer
from dmx.training.settings import FitSettings
from dmx.training.state import new_state
from tests.training.conftest import TinyNetwork

Batches = Callable[[int, int, int], Batch]


@pytest.fixture
def plain(settings: FitSettings) -> FitSettings:
    """Nothing but the optimizer acts."""
    return replace(
        settings, schedule=ScheduleSection(name="constant"), regularization=RegularizationSection(l1=0.0, l2=0.0)
    )


def by_hand(network: TinyNetwork, optimizer: torch.optim.Optimizer, batches: Batches, settings: FitSettings) -> None:
    """The loop that one would write oneself, with the same dropout."""
    network.train()
    loss = Loss(settings.losses, len(settings.classes))
    for epoch in range(settings.training.epochs):
        for step in range(settings.training.steps_per_epoch):
            batch = batches(epoch, step, 0)
            seed_generators(derive(settings.seed, "step", epoch, step, 0), torch.device("cpu"))
            optimizer.zero_grad()
            loss(network(batch.inputs), batch.target).total.backward()
            optimizer.step()


def test_an_adam_on_the_head_does_what_a_loop_by_hand_does(plain: FitSettings, batches: Batches) -> None:
    ours, theirs = TinyNetwork(), TinyNetwork()
    before = {name: value.clone() for name, value in ours.named_parameters()}
    state = new_state(ours, plain, optimizer=torch.optim.Adam(ours.head.parameters(), lr=0.01))
    fit(state, batches, plain)
    by_hand(theirs, torch.optim.Adam(theirs.head.parameters(), lr=0.01), batches, plain)
    for name, value in ours.named_parameters():
        assert torch.equal(value, dict(theirs.named_parameters())[name])
        assert torch.equal(value, before[name]) == (not name.startswith("head."))


def test_each_group_keeps_its_own_rate_and_the_schedule_scales_it(settings: FitSettings, batches: Batches) -> None:
    network = TinyNetwork()
    groups = [{"params": network.head.parameters(), "lr": 0.1}, {"params": network.conv.parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    seen: list[list[float]] = []
    optimizer.register_step_pre_hook(lambda opt, *_: seen.append([group["lr"] for group in opt.param_groups]))
    rates: list[float] = []

    def listen(event: object) -> None:
        if isinstance(event, StepEnded):
            rates.append(event.lr)

    fit(new_state(network, settings, optimizer=optimizer), batches, settings, listeners=[listen])
    assert seen[0] == pytest.approx([0.1, 0.01])
    assert seen[-1][0] < 0.5 * seen[0][0]
    assert [first for first, _ in seen] == pytest.approx(rates)
    assert [first / second for first, second in seen] == pytest.approx([10.0] * len(seen))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]


def test_a_state_that_is_loaded_goes_on_with_the_same_bits(settings: FitSettings, batches: Batches) -> None:
    def begin() -> tuple[TinyNetwork, object]:
        network = TinyNetwork()
        return network, new_state(network, settings, optimizer=torch.optim.Adam(network.parameters(), lr=0.01))

    whole, state = begin()
    fit(state, batches, settings)
    parted, state = begin()
    fit(state, batches, settings, stop=lambda: state.position.global_step == 5)
    kept = state.state_dict()
    assert kept["training"]["optimizer"]["state"]["state"]
    other, resumed = begin()
    resumed.load_state_dict(kept)
    fit(resumed, batches, settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(parted.parameters(), TinyNetwork().parameters(), strict=True))


def test_what_does_not_belong_to_the_network_is_refused(settings: FitSettings) -> None:
    network = TinyNetwork()
    foreign = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="2 parameters that the network lacks"):
        new_state(network, settings, optimizer=foreign)
    with pytest.raises(ConfigError, match="LBFGS"):
        new_state(network, settings, optimizer=torch.optim.LBFGS(network.parameters()))
    mine = ReadyOptimizer(network.named_parameters(), torch.optim.SGD(network.parameters(), lr=0.1))
    with pytest.raises(CheckpointError, match="must be one of torch's SGD, got that of dmx"):
        mine.load_state_dict({"state": {}, "steps": {}})


def test_state_of_what_is_frozen_is_freed() -> None:
    network = TinyNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    mine = ReadyOptimizer(network.named_parameters(), optimizer)
    mine.step(0.1)
    mine.forget(["conv.weight"])
    assert network.conv.weight not in optimizer.state
    assert network.head.weight in optimizer.state
