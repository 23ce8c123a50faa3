"""Several processes do the steps of one, up to rounding; what ends one of them is said in a sentence."""

import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from dmx.config.sections import TrainingSection
from dmx.errors import ConfigError, TrainingError
from dmx.model.network import Network
from dmx.model.norms import RollingBatchNorm
from dmx.sampling.batch import Batch
from dmx.training.device import resolve_devices, threads_of
from dmx.training.events import EpochEnded, Event, StepEnded
from dmx.training.exchange import Exchange, new_memory, parameters_and_buffers
from dmx.training.helper import StepShare, tell_errors
from dmx.training.loop import fit
from dmx.training.processes import HelperProcesses
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState, new_state
from dmx.training.statistics import StatisticsMerge
from dmx.training.step import MemoryTooSmallError, own_parts
from dmx.transfer.freeze import FreezePlan

Batches = Callable[[int, int, int], Batch]
ROUNDING = 1e-5


@dataclass
class Course:
    """What a training has told, and what it has come to."""

    state: TrainState
    steps: list[StepEnded]
    epochs: list[EpochEnded]

    def distance(self, other: "Course") -> float:
        ours, theirs = self.state.model.state_dict(), other.state.model.state_dict()
        return max(float((value - theirs[name]).abs().max()) for name, value in ours.items())


def several(settings: FitSettings, processes: int, **training: object) -> FitSettings:
    changed = {"accumulate": 6, "processes": processes, "threads": 1, "moving_average": 0.9, **training}
    return replace(settings, training=replace(settings.training, **changed))  # type: ignore[arg-type]


def course(state: TrainState, batches: Batches, settings: FitSettings, helpers: HelperProcesses | None) -> Course:
    events: list[Event] = []
    fit(state, batches, settings, listeners=(events.append,), helpers=helpers)
    steps = [event for event in events if isinstance(event, StepEnded)]
    return Course(state, steps, [event for event in events if isinstance(event, EpochEnded)])


def helping(state: TrainState, settings: FitSettings) -> HelperProcesses:
    orders = [pickle.dumps((process, settings)) for process in range(1, settings.training.processes)]
    return HelperProcesses(state, [sys.executable, "-m", "tests.training.helping"], orders)


def frozen_head(settings: FitSettings) -> FitSettings:
    """Freeze the head for the first epoch; batch statistics and dropout go on."""
    plan = FreezePlan(parameters={"head.weight": 1.0, "head.bias": 1.0}, sizes={"head.weight": 12, "head.bias": 3})
    return replace(settings, freeze=plan)


def test_three_processes_do_what_one_does_until_one_is_killed(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    settings = frozen_head(settings)
    alone, together = several(settings, 1), several(settings, 3)
    one = course(new_state(new_network(), alone), batches, alone, None)
    wrong = course(new_state(new_network(), alone), lambda e, s, part: batches(e, s, part % 4), alone, None)
    state = new_state(new_network(), together)
    with helping(state, together) as helpers:
        three = course(state, batches, together, helpers)
        print(f"\n12 steps of sgd with 1 and 3 processes: weights differ by {one.distance(three):.1e} at most")
        assert one.distance(three) < ROUNDING < 1e-3 < one.distance(wrong)
        assert int(state.model.get_buffer("norm.num_batches_tracked")) == 12 * 6
        for ours, theirs in zip(one.steps, three.steps, strict=True):
            assert theirs.loss == pytest.approx(ours.loss, abs=ROUNDING)
            assert theirs.terms.keys() == ours.terms.keys()
            assert theirs.gradient_norm == pytest.approx(ours.gradient_norm, rel=1e-4)
            assert theirs.num_segments == ours.num_segments == 12
        for before, after in zip(one.epochs, three.epochs, strict=True):
            for name, value in before.metrics.items():
                if name.startswith("train/"):
                    assert after.metrics[name] == pytest.approx(value, abs=1e-5), name

        state.last_checkpoint = "step_000000012"
        pids = helpers.pids
        os.kill(pids[1], signal.SIGKILL)
        begun = time.monotonic()
        told = rf"Process 3 of the 3 .*pid {pids[1]}.* SIGKILL.*step_000000012.*resume"
        with pytest.raises(TrainingError, match=told):
            both(helpers, state)
        assert time.monotonic() - begun < 3
    assert not any(exists(pid) for pid in pids)


def test_two_processes_repeat_themselves_with_the_loss_scaler(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    settings = several(settings, 2, precision="fp16", epochs=2)
    states = [new_state(new_network(), settings) for _ in range(2)]
    with helping(states[0], settings) as helpers:
        courses = [course(state, batches, settings, helpers) for state in states]
    assert courses[0].distance(courses[1]) == 0.0
    assert [step.loss for step in courses[0].steps] == [step.loss for step in courses[1].steps]
    alone = several(settings, 1)
    one = course(new_state(new_network(), alone), batches, alone, None)
    assert one.distance(courses[0]) < 1e-3
    assert one.state.scaler is not None
    assert courses[0].state.scaler is not None
    assert one.state.scaler.state_dict() == courses[0].state.scaler.state_dict()


def both(helpers: HelperProcesses, state: TrainState) -> None:
    helpers.begin(state)
    helpers.finish(state)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


FAKE = """
import json, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
network = json.loads(connection.recv_bytes())
{answers}
"""


def faked(network: Network, settings: FitSettings, answers: str) -> tuple[TrainState, HelperProcesses]:
    """Let something help that only says it does."""
    state = new_state(network, settings)
    memory = new_memory()
    described = Exchange(state.model, memory, processes=1).described
    os.close(memory)
    command = [sys.executable, "-c", FAKE.format(answers=answers)]
    return state, HelperProcesses(state, command, [json.dumps(described).encode()])


READY = "connection.send_bytes(json.dumps({'network': network}).encode())\nconnection.recv_bytes()\n"


def test_what_a_process_says_and_how_it_ends_is_told(new_network: Callable[[], Network], settings: FitSettings) -> None:
    settings = several(settings, 2)
    with pytest.raises(TrainingError, match="Process 2 of the 2 of this training has built another network"):
        faked(new_network(), settings, "connection.send_bytes(b'{\"network\": []}')")
    with pytest.raises(TrainingError, match=r"Process 2 of the 2 .*exit code 3.*It said last: no more"):
        faked(new_network(), settings, "print('no more'); sys.exit(3)")
    for kind, error, text in (
        ("memory", MemoryTooSmallError, "^Small.$"),
        ("known", TrainingError, "^Small.$"),
        ("unknown", RuntimeError, "failed:\nSmall"),
    ):
        answer = f"connection.send_bytes(json.dumps({{'error': '{kind}', 'text': 'Small.'}}).encode())"
        state, helpers = faked(new_network(), settings, READY + answer)
        with helpers, pytest.raises(error, match=text):
            both(helpers, state)
    state, helpers = faked(new_network(), settings, READY)
    with helpers:
        helpers.begin(state)
        time.sleep(0.3)
        with pytest.raises(TrainingError, match="exit code 0"):
            helpers.begin(state)


def test_a_failure_becomes_a_message(new_network: Callable[[], Network], settings: FitSettings) -> None:
    class Keeper:
        def send_bytes(self, message: bytes) -> None:
            told.append(json.loads(message))

    told: list[dict[str, str]] = []
    for error in (MemoryTooSmallError("small"), ConfigError("wrong"), ZeroDivisionError("odd")):

        def work(error: Exception = error) -> None:
            raise error

        tell_errors(Keeper(), work)  # type: ignore[arg-type]
    assert [one["error"] for one in told] == ["memory", "known", "unknown"]
    assert told[1]["text"] == "wrong"
    assert "ZeroDivisionError: odd" in told[2]["text"]


def test_a_share_of_a_step_lies_in_its_row(
    new_network: Callable[[], Network], batches: Batches, settings: FitSettings
) -> None:
    settings = several(settings, 3)
    first, second = new_network(), new_network()
    for parameter in second.parameters():
        nn.init.zeros_(parameter)
    memory = new_memory()
    exchange = Exchange(first, memory, processes=3)
    exchange.write(0, dict(enumerate(parameters_and_buffers(first))))
    seen: list[tuple[int, int, int]] = []

    def noted(*key: int) -> Batch:
        seen.append(key)  # type: ignore[arg-type]
        return batches(*key)

    share = StepShare(new_state(second, settings), noted, settings, process=2, memory=memory)
    assert share.ready() == {"network": exchange.described}
    answer = share.step({"position": [1, 2, 6], "scaler": None})
    assert seen == [(1, 2, 4), (1, 2, 5)]
    assert len(answer["values"]) == 2
    assert len(answer["cases"]) == 4
    for index, parameter in enumerate(second.parameters()):
        assert torch.equal(parameter, list(first.parameters())[index])
        assert index in answer["gradients"]
        assert parameter.grad is not None
        assert torch.equal(exchange.row(2)[index], parameter.grad)
    os.close(memory)


def test_each_part_belongs_to_one_process() -> None:
    training = TrainingSection(accumulate=6, processes=3)
    assert [list(own_parts(training, process)) for process in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match=r"accumulate must be a multiple of processes \(4\).* got 6"):
        TrainingSection(accumulate=6, processes=4)


def test_each_process_has_a_gpu_and_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_devices(TrainingSection(accumulate=2, processes=2, device="cpu")) == (torch.device("cpu"),) * 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    two = TrainingSection(accumulate=2, processes=2, device="cuda:1")
    assert [str(device) for device in resolve_devices(two)] == ["cuda:1", "cuda:2"]
    with pytest.raises(ConfigError, match=r"processes: 2 takes a GPU for each.*'cuda:2' on.* has 3"):
        resolve_devices(replace(two, device="cuda:2"))

    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert threads_of(two) == 2
    assert threads_of(replace(two, threads=4)) == 4
    assert threads_of(TrainingSection()) is None


class Normed(nn.Module):
    """One normalization of each kind; the last buffer counts something that only this module understands."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(3, momentum=0.3)
        self.mean = nn.BatchNorm2d(3, momentum=None)
        self.rolling = RollingBatchNorm(3, steps=4, epsilon=1e-5, count_unwritten=False)
        self.still = nn.BatchNorm3d(3).eval()
        self.plain = nn.BatchNorm3d(3, track_running_stats=False)
        self.counts = counts
        self.register_buffer("odd", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(x.flatten(2)).view_as(x)
        x = self.mean(x.flatten(3)).view_as(x)
        if self.counts:
            self.odd += 1.0
        found: Tensor = self.plain(self.still(self.rolling(x)))
        return found


def passes(module: nn.Module, numbers: range) -> None:
    module.train()
    module.get_submodule("still").eval()
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            module(torch.randn(2, 3, 4, 4, 4, generator=generator) * (1 + number) + number)


@pytest.mark.parametrize("begun", [0, 3])
def test_statistics_of_several_processes_are_those_of_one(begun: int) -> None:
    """Three processes with two passes each, against six passes in a row; then without the last process."""
    start = Normed(counts=False)
    passes(start, range(begun))
    start.rolling.after_step()
    copies = [Normed(counts=False) for _ in range(4)]
    for copy in copies:
        copy.load_state_dict(start.state_dict())
    alone, first, *others = copies
    passes(alone, range(10, 16))
    passes(first, range(10, 12))
    merge = StatisticsMerge(first)
    before = [tensor.clone() for tensor in parameters_and_buffers(start)]
    for number, other in enumerate(others):
        passes(other, range(12 + 2 * number, 14 + 2 * number))
        found = [tensor.detach().clone() for tensor in parameters_and_buffers(other)]
        tensors = parameters_and_buffers(first)
        if number == 1:
            without_last = [tensor.clone() for tensor in tensors]
        merge.add(tensors, found, factors=merge.shares(before, found, earlier=tensors))
    wanted = dict(alone.named_buffers())
    for name, buffer in first.named_buffers():
        assert torch.allclose(buffer.double(), wanted[name].double(), rtol=2e-6, atol=1e-6), name
    moved = zip(without_last, parameters_and_buffers(alone), strict=True)
    assert not all(torch.allclose(ours.double(), theirs.double(), rtol=1e-3) for ours, theirs in moved)
    assert torch.equal(first.still.running_mean, start.still.running_mean)  # type: ignore[arg-type]


def test_a_buffer_that_nobody_understands_is_named() -> None:
    module = Normed(counts=True)
    before = [tensor.detach().clone() for tensor in parameters_and_buffers(module)]
    passes(module, range(1))
    found = [tensor.detach() for tensor in parameters_and_buffers(module)]
    with pytest.raises(TrainingError, match=r"buffer 'odd' of the network changes.*processes: 1"):
        StatisticsMerge(module).shares(before, found, earlier=before)


def test_processes_see_the_same_memory() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module.register_buffer("flags", torch.tensor([True, False, True]))
    module.register_buffer("nothing", torch.zeros(0))
    memory = new_memory()
    ours, theirs = (Exchange(module, memory, processes=2) for _ in range(2))
    tensors = parameters_and_buffers(module)
    ours.write(1, dict(enumerate(tensors)))
    ours.write(0, {})
    for index, tensor in enumerate(tensors):
        assert torch.equal(theirs.read(1)[index], tensor)
    assert not theirs.read(0)[0].any()
    os.close(memory)
