"""Files of weights as people have them: any ending, several networks inside, or something else in their place."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dmx
from dmx.errors import CheckpointError
from dmx.workflows.weights_file import open_weights_file


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.full((2, 1, 3, 3, 3), value), "conv.bias": torch.full((2,), value)}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("content", "wrapper", "value", "beside"),
    [
        ({"model": weights(1), "ema": weights(2)}, "ema", 2, ("model",)),
        ({"student": weights(1), "teacher": weights(2)}, "teacher", 2, ("student",)),
        ({"checkpoint": {"model": weights(1)}, "epoch": 3}, "checkpoint.model", 1, ()),
        ({"weights": weights(1), "args": argparse.Namespace(lr=1.0)}, "weights", 1, ()),
        ({"params": weights(1), "params_ema": weights(2)}, "params_ema", 2, ("params",)),
        ({"state_dict": weights(1), "ema": {"decay": 0.9, "steps": torch.tensor(7)}}, "state_dict", 1, ()),
        ({"ema": {"shadow": weights(2)}, "model": weights(1)}, "ema.shadow", 2, ("model",)),
        ({"my_net": weights(1), "optimizer": {"w": torch.ones(2)}}, "my_net", 1, ()),
        ({name: tensor.numpy() for name, tensor in weights(1).items()}, "", 1, ()),
    ],
)
def test_weights_are_chosen_by_rule_and_what_lies_beside_is_said(
    tmp_path: Path, content: Any, wrapper: str, value: float, beside: tuple[str, ...]
) -> None:
    opened = open_weights_file(saved(tmp_path / "net.pth.tar", content), name="old")
    assert opened.wrapper == wrapper
    assert opened.beside == beside
    assert float(opened.reader["conv.bias"][0]) == value
    told = " ".join(opened.sentences())
    assert all(f"'{key}'" in told for key in (wrapper, *beside) if key)


def test_a_key_names_other_weights(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"model": weights(1), "ema": weights(2)})
    opened = open_weights_file(path, name="old", key="model")
    assert float(opened.reader["conv.bias"][0]) == 1
    assert not opened.beside
    with pytest.raises(CheckpointError, match=r"no weights in 'modle'.*Did you mean 'model'"):
        open_weights_file(path, name="old", key="modle")
    network = torch.nn.Sequential()
    network.add_module("conv", torch.nn.Conv3d(1, 2, 3))
    dmx.plan_transfer(path, network, key="model", head="copy").apply(network)
    assert float(network.conv.bias.detach()[0]) == 1  # type: ignore[index,union-attr]


def test_several_networks_without_a_known_key_must_be_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "gan.pt", {"generator": weights(1), "discriminator": weights(2)})
    with pytest.raises(CheckpointError, match=r"several networks: generator, discriminator. Name one: --from-key"):
        open_weights_file(path, name="old")
    assert float(open_weights_file(path, name="old", key="generator").reader["conv.bias"][0]) == 1


def test_the_content_decides_and_not_the_ending(tmp_path: Path) -> None:
    save_file(weights(3), tmp_path / "net.pth")
    saved(tmp_path / "net.safetensors", weights(4))
    for name, value in (("net.pth", 3), ("net.safetensors", 4)):
        assert float(open_weights_file(tmp_path / name, name="old").reader["conv.bias"][0]) == value


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "net.pth.tar"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "pointer of Git LFS.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page, not weights"),
        (b"", "is empty; download"),
        (b"\x1f\x8b\x08\x00abc", "compressed with gzip; unpack"),
        (b"\x89HDF\r\n\x1a\nabc", "HDF5 file"),
    ],
)
def test_what_stands_in_the_place_of_weights_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        open_weights_file(tmp_path / name, name="old")


def test_numpy_in_the_state_dict_is_a_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"weight": np.ones((2, 3), dtype=np.float32)})
    assert open_weights_file(path, name="old").sketch.tensors[0].shape == (2, 3)
