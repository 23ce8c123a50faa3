"""Checkpoints are complete or absent, and damage is named."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmx.errors import CheckpointError
from dmx.training import checkpoint as module
from dmx.training.checkpoint import (
    AVERAGE,
    FROZEN,
    MANIFEST,
    MODEL,
    TRAINING_STATE,
    prediction_files,
    read_checkpoint,
    read_manifest,
    verify_checkpoint,
    weights_sha256,
    write_checkpoint,
)
from dmx.training.weights import WeightsFile
from dmx.transfer.header import read_header


def write(folder: Path, *, value: float = 1.0, average: bool = True) -> Path:
    weights = {"conv.weight": torch.full((2, 3, 1, 1, 1), value), "steps": torch.tensor(7)}
    return write_checkpoint(
        folder,
        model_state=weights,
        average_state={name: tensor + 1 for name, tensor in weights.items()} if average else None,
        training_state={"position": {"epoch": 2}, "velocity": torch.full((3,), value), "scaler": None},
        manifest={"epoch": 2, "metrics": {"val/dice": 0.1 + 0.2}, "labels": {10: 1, 9: 2}},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return write(tmp_path / "step_000000012")


def test_what_was_written_is_read(saved: Path) -> None:
    checkpoint = read_checkpoint(saved)
    assert torch.equal(checkpoint.model_state["conv.weight"], torch.ones(2, 3, 1, 1, 1))
    assert checkpoint.model_state["steps"].dtype == torch.int64
    assert torch.equal(checkpoint.prediction_state["conv.weight"], torch.full((2, 3, 1, 1, 1), 2.0))
    assert checkpoint.training_state is not None
    assert checkpoint.training_state["position"] == {"epoch": 2}
    assert checkpoint.manifest["metrics"] == {"val/dice": 0.1 + 0.2}
    assert checkpoint.manifest["format_version"] == 1
    assert sorted(path.name for path in saved.iterdir()) == sorted([MODEL, AVERAGE, TRAINING_STATE, MANIFEST])
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert checkpoint.as_state()["training"] == checkpoint.training_state


def test_weights_that_have_two_names_are_written_under_both(tmp_path: Path) -> None:
    shared = torch.nn.Linear(2, 2)
    network = torch.nn.ModuleDict({"first": shared, "again": shared})
    write_checkpoint(tmp_path / "c", model_state=network.state_dict(), training_state={}, manifest={})
    state = read_checkpoint(tmp_path / "c").model_state
    assert sorted(state) == ["again.bias", "again.weight", "first.bias", "first.weight"]
    assert torch.equal(state["again.weight"], shared.weight)


def test_prediction_needs_no_training_state(tmp_path: Path) -> None:
    plain = read_checkpoint(write(tmp_path / "plain", average=False), with_training_state=False)
    assert plain.average_state is None
    assert plain.prediction_state is plain.model_state
    with pytest.raises(CheckpointError, match="without its training state"):
        plain.as_state()


def test_a_checkpoint_is_never_overwritten(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="never overwritten"):
        write(saved, value=5.0)
    assert float(read_checkpoint(saved).model_state["conv.weight"].mean()) == 1.0


def flip_a_bit(folder: Path, name: str) -> None:
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_off(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-10])


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def mix(folder: Path, name: str) -> None:
    other = write(folder.with_name("other"), value=3.0)
    shutil.copy(other / name, folder / name)


@pytest.mark.parametrize("name", [MODEL, AVERAGE, TRAINING_STATE, MANIFEST])
@pytest.mark.parametrize("damage", [flip_a_bit, cut_off, remove, mix])
def test_damage_is_named_and_nothing_is_loaded(saved: Path, damage: Callable[[Path, str], None], name: str) -> None:
    damage(saved, name)
    problems = verify_checkpoint(saved)
    assert problems
    if (damage, name) != (mix, MANIFEST):
        assert all(name in problem for problem in problems)
    else:
        assert {problem.split()[0] for problem in problems} == {MODEL, AVERAGE, TRAINING_STATE}
    with pytest.raises(CheckpointError, match=r"damaged|not a complete checkpoint"):
        read_checkpoint(saved)


def test_a_changed_value_of_the_manifest_is_noticed(saved: Path) -> None:
    text = (saved / MANIFEST).read_text()
    (saved / MANIFEST).write_text(text.replace('"epoch": 2', '"epoch": 3'))
    assert verify_checkpoint(saved) == [f"{MANIFEST} was changed after it was written"]


def test_damage_is_noticed_without_verifying_as_well(saved: Path) -> None:
    cut_off(saved, TRAINING_STATE)
    with pytest.raises(CheckpointError, match="cannot be read as a training state"):
        read_checkpoint(saved, verify=False)
    cut_off(saved, MODEL)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_checkpoint(saved, verify=False)
    remove(saved, AVERAGE)
    with pytest.raises(CheckpointError, match=r"average.safetensors is missing"):
        read_checkpoint(saved, verify=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"format_version": 3, "files": {}}, "has format 3, this version of dmx reads up to 2. Update dmx."),
        ({"format_version": 1}, "does not list its files"),
        ([1, 2], "does not list its files"),
    ],
)
def test_a_manifest_that_cannot_be_used_gets_one_sentence(saved: Path, content: Any, words: str) -> None:
    (saved / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=words):
        read_manifest(saved)
    assert len(verify_checkpoint(saved)) == 1


def test_opening_a_training_state_executes_nothing(saved: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "trapped"),))

    torch.save({"position": Trap()}, saved / TRAINING_STATE)
    with pytest.raises(CheckpointError, match="cannot be read as a training state"):
        read_checkpoint(saved, verify=False)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "rename":
        monkeypatch.setattr(Path, "rename", full)
    else:
        monkeypatch.setattr(*{"write": (module, "_write"), "fsync": (os, "fsync")}[failing], full)
    with pytest.raises(CheckpointError, match="could not be written: No space left on device"):
        write(tmp_path / "step")
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_the_system_leaves_nothing(tmp_path: Path) -> None:
    """The same with a real failure in the middle of a file."""
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from dmx.training.checkpoint import write_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "write_checkpoint(Path(sys.argv[1]), model_state={'w': torch.zeros(5000)}, training_state={}, manifest={})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "step")], capture_output=True, text=True, check=False
    )
    assert "CheckpointError" in done.stderr
    assert "File too large. Nothing of it was left behind" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_reads_differently_is_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = module._write
    monkeypatch.setattr(module, "_write", lambda path, data: write_bytes(path, data.replace(b"\x80\x3f", b"\x81\x3f")))
    with pytest.raises(CheckpointError, match="reads differently from what was written"):
        write(tmp_path / "step")


def test_the_writer_keeps_its_own_keys(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must leave files to the writer"):
        write_checkpoint(tmp_path / "step", model_state={}, training_state={}, manifest={"files": {}})


def test_the_digest_of_a_manifest_is_that_of_its_sorted_content(saved: Path) -> None:
    # Checkpoints are kept for years: what was written by an earlier version must verify.
    content = json.loads((saved / MANIFEST).read_text())
    digest = content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    assert list(content) != sorted(content)


def test_a_checkpoint_makes_the_folders_above_it(tmp_path: Path) -> None:
    written = write(tmp_path / "a" / "run" / "checkpoints")
    assert read_checkpoint(written).model_state


def write_frozen(
    folder: Path, *, value: float = 1.0, frozen: tuple[str, ...] = ("body", "steps"), body: float = 2.0
) -> Path:
    weights = {"head": torch.full((3,), value), "body": torch.full((1000,), body), "steps": torch.tensor(7)}
    average = {**weights, "head": torch.full((3,), value + 10)}
    return write_checkpoint(
        folder, model_state=weights, average_state=average, training_state={}, manifest={}, frozen=frozen
    )


def test_frozen_weights_are_written_once_and_every_checkpoint_is_whole(tmp_path: Path) -> None:
    first, second = (write_frozen(tmp_path / f"step_{n}", value=n) for n in (1, 2))
    assert (first / FROZEN).samefile(second / FROZEN)
    assert (first / FROZEN).stat().st_nlink == 2
    assert (first / MODEL).stat().st_size + (first / AVERAGE).stat().st_size < 1000
    assert FROZEN in read_manifest(second)["files"]
    assert read_manifest(second)["format_version"] == 2
    shutil.rmtree(first)
    assert verify_checkpoint(second) == []
    content = read_checkpoint(second)
    for state, head in ((content.model_state, 2.0), (content.average_state, 12.0)):
        assert state is not None
        assert {name: float(tensor.mean(dtype=torch.float64)) for name, tensor in state.items()} == {
            "head": head,
            "body": 2.0,
            "steps": 7.0,
        }
    files = prediction_files(second, content.manifest)
    assert [info.name for info in read_header(*files)] == ["body", "head", "steps"]
    assert float(WeightsFile(*files)["head"][0]) == 12.0
    assert float(WeightsFile(*files)["body"][0]) == 2.0
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        WeightsFile(*files)["tail"]


def test_the_hash_of_weights_is_of_all_of_them(tmp_path: Path) -> None:
    hashes = [
        weights_sha256(read_manifest(write_frozen(tmp_path / str(number), **values)))
        for number, values in enumerate(({}, {"value": 3.0}, {"body": 3.0}, {}))
    ]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


def test_a_layer_that_trains_leaves_the_frozen_file(tmp_path: Path) -> None:
    before = write_frozen(tmp_path / "step_1")
    after = write_frozen(tmp_path / "step_2", frozen=("steps",), body=5.0)
    assert not (before / FROZEN).samefile(after / FROZEN)
    assert [float(read_checkpoint(folder).model_state["body"][0]) for folder in (before, after)] == [2.0, 5.0]
    last = write_frozen(tmp_path / "step_3", frozen=(), body=6.0)
    assert not (last / FROZEN).exists()
    assert read_manifest(last)["format_version"] == 1


def test_an_average_that_differs_keeps_its_own(tmp_path: Path) -> None:
    weights = {"body": torch.tensor([0.0, float("nan")])}
    other = {"body": torch.tensor([-0.0, float("nan")])}
    folder = write_checkpoint(
        tmp_path / "a", model_state=weights, average_state=other, training_state={}, manifest={}, frozen=("body",)
    )
    content = read_checkpoint(folder)
    assert content.average_state is not None
    assert bool(torch.signbit(content.average_state["body"][0])) != bool(torch.signbit(content.model_state["body"][0]))


def test_a_damaged_or_linked_frozen_file_is_not_shared(tmp_path: Path) -> None:
    first = write_frozen(tmp_path / "step_1")
    flip_a_bit(first, FROZEN)
    second = write_frozen(tmp_path / "step_2")
    assert verify_checkpoint(second) == []
    assert (verify_checkpoint(first)[0], verify_checkpoint(first)[1:]) == (
        f"{FROZEN} differs from the file that was written (SHA-256)",
        [],
    )
    (second / FROZEN).rename(tmp_path / "outside")
    (second / FROZEN).symlink_to(tmp_path / "outside")
    third = write_frozen(tmp_path / "step_3")
    assert not (third / FROZEN).samefile(tmp_path / "outside")
    remove(third, FROZEN)
    with pytest.raises(CheckpointError, match=f"{FROZEN} is missing"):
        read_checkpoint(third)


def test_without_hard_links_the_file_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    first, second = (write_frozen(tmp_path / f"step_{n}") for n in (1, 2))
    assert not (first / FROZEN).samefile(second / FROZEN)
    assert verify_checkpoint(second) == []
