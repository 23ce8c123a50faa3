"""Devices by name, memory, and the moving average."""

import os
from dataclasses import replace

import pytest
import torch

from dmx.config.sections import TrainingSection
from dmx.errors import ConfigError
from dmx.model.network import Network
from dmx.training.average import MovingAverage
from dmx.training.device import lay_out, memory_metrics, prepared, resolve_device


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="'cuda:2' is not on this machine, which has 2 CUDA devices"):
        resolve_device("cuda:2")
    for name in ("gpu", "cuda:x", "cuda:", "cpu:0", "cudax"):
        with pytest.raises(ConfigError, match="must be 'auto', 'cpu', 'cuda' or 'cuda:N'"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="which has no CUDA devices"):
        resolve_device("cuda")


def test_settings_of_torch_are_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    training = TrainingSection(deterministic=True)

    def fail() -> None:
        with prepared(training, torch.device("cpu")):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.backends.cudnn.deterministic
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with prepared(replace(training, deterministic=False), torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_memory_is_that_of_a_process_with_torch() -> None:
    metrics = memory_metrics(torch.device("cpu"))
    assert 0.05 < metrics["system/cpu_peak_memory_gib"] < 64
    assert "system/gpu_peak_memory_gib" not in metrics


def test_only_volumes_are_laid_out() -> None:
    vector = torch.zeros(3)
    assert lay_out(vector, channels_last=True) is vector
    volume = torch.zeros(1, 2, 3, 3, 3)
    assert lay_out(volume, channels_last=False) is volume
    assert not lay_out(volume, channels_last=True).is_contiguous()


def test_the_average_forgets_the_first_weights_and_copies_statistics(network: Network) -> None:
    average = MovingAverage(network, decay=0.9)
    start = network.conv.weight.detach().clone()
    with torch.no_grad():
        network.conv.weight.add_(1.0)
        network.norm.running_mean.add_(3.0)
        network.norm.num_batches_tracked.add_(1)
    average.update(network)
    # The first update has decay (1 + 1) / (10 + 1).
    assert torch.allclose(average.tensors["conv.weight"], start + 9 / 11)
    assert torch.equal(average.tensors["norm.running_mean"], network.norm.running_mean)
    for _ in range(200):
        average.update(network)
    assert torch.allclose(average.tensors["conv.weight"], network.conv.weight, atol=1e-5)


def test_the_weights_come_back_bit_for_bit_even_after_an_error(network: Network) -> None:
    average = MovingAverage(network, decay=0.9)
    with torch.no_grad():
        network.conv.weight.mul_(1.1)
    weights = network.conv.weight.detach().clone()

    def fail() -> None:
        with average.applied(network):
            assert not torch.equal(network.conv.weight, weights)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(network.conv.weight, weights)


def test_the_decay_of_the_average_grows_up_to_its_limit(network: Network) -> None:
    average = MovingAverage(network, decay=0.2)
    start = network.conv.weight.detach().clone()
    with torch.no_grad():
        network.conv.weight.add_(1.0)
    expected = 1.0
    # (1 + t) / (10 + t) for t = 1 and 2 is 2/11 and 3/12, of which the second is above the limit.
    for decay in (2 / 11, 0.2, 0.2):
        average.update(network)
        expected *= decay
        assert torch.allclose(network.conv.weight - average.tensors["conv.weight"], torch.full_like(start, expected))
