from pathlib import Path

import pytest
import torch
from torch import nn

from dmx.evaluation import memory
from dmx.evaluation.memory import PeakOfTensors, forward_bytes, free_bytes
from dmx.geometry import triple


def test_the_peak_counts_what_lives_at_the_same_time():
    with PeakOfTensors() as follower:
        one = torch.ones(1000)
        two = one + one
        del one
        three = two * 2
    assert follower.peak == 2 * 4000
    assert three.view(10, 100)[0, 0] == 4


def test_views_are_not_counted_twice():
    with PeakOfTensors() as follower:
        whole = torch.ones(1000)
        part = whole[:500]
        again = whole.reshape(10, 100)
    assert follower.peak == 4000
    assert len(part) == 500
    assert len(again) == 10


def test_a_pass_takes_what_its_tensors_take_twice(two_scales):
    plan = two_scales.segment_plan(triple(64))
    estimate = forward_bytes(two_scales, plan, channels=2)

    patches = [torch.zeros((1, 2, *patch.shape)) for patch in plan.patches]
    with torch.no_grad(), PeakOfTensors() as follower:
        two_scales(patches)
    measured = follower.peak + sum(patch.nbytes for patch in patches)
    assert estimate == 2 * measured
    assert forward_bytes(two_scales, plan, channels=2, batch=3) == 3 * estimate


def test_a_network_that_needs_values_is_guessed(two_scales):
    class Looks(type(two_scales)):
        def forward(self, patches):
            if patches[0].sum().item() > 0:
                return super().forward(patches)
            return super().forward([-patch for patch in patches])

    plan = two_scales.segment_plan(triple(64))
    exact, guess = forward_bytes(two_scales, plan, channels=2), forward_bytes(Looks(), plan, channels=2)
    assert exact / 3 < guess < 3 * exact


def test_estimates_leave_the_network_as_it_is(two_scales):
    before = {name: tensor.clone() for name, tensor in two_scales.state_dict().items()}
    forward_bytes(two_scales, two_scales.segment_plan(triple(32)), channels=2)
    for name, tensor in two_scales.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, before[name])
    assert isinstance(two_scales.head, nn.Conv3d)


def test_there_is_memory():
    assert 10**7 < free_bytes(torch.device("cpu")) < 10**14


def test_without_meminfo_half_of_the_memory_counts(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda _: (_ for _ in ()).throw(OSError()))
    assert 10**7 < free_bytes(torch.device("cpu")) < 10**14


@pytest.mark.parametrize(("limit", "expected"), [("5000", [2000]), ("max", [])])
def test_a_container_s_limit_counts(monkeypatch, limit, expected):
    files = {"/sys/fs/cgroup/memory.max": limit, "/sys/fs/cgroup/memory.current": "3000"}

    def read(path):
        if str(path) not in files:
            raise OSError
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert memory._container_headroom() == expected
