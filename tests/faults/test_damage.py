"""A damaged checkpoint is named and never loaded, whatever the damage is."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dmx.config.model import FCSection, ModelSection, PathwaySection
from dmx.errors import CheckpointError
from dmx.model.build import build_network
from dmx.training.checkpoint import (
    AVERAGE,
    MANIFEST,
    MODEL,
    TRAINING_STATE,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from tests.faults.kills import Machine, Project, account, artifacts_of

FILES = (MODEL, AVERAGE, TRAINING_STATE, MANIFEST)
Damage = Callable[[Path, Path], object]


def write(folder: Path, *, step: int) -> Path:
    section = ModelSection(normal=PathwaySection(widths=(3, 3)), fc=FCSection(widths=(4,)))
    state = build_network(section, num_channels=1, num_classes=2, seed=step).state_dict()
    moments = {name: torch.full_like(tensor, 1e-5 * step) for name, tensor in state.items()}
    return write_checkpoint(
        folder,
        model_state=state,
        average_state={name: tensor + 1 for name, tensor in state.items()},
        training_state={"optimizer": moments, "position": {"epoch": 1, "step": step}},
        manifest={"epoch": 1, "step": step, "lr": 1e-05, "share": 0.30000000000000004, "contract": {"classes": ["a"]}},
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "step_000000002", step=2)


def refused(folder: Path, name: str) -> bool:
    """Tell whether a checkpoint is refused with a sentence that names the damaged file."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    return any(name in problem for problem in verify_checkpoint(folder)) and name in str(caught.value)


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_noticed_wherever_it_is(checkpoint: Path, name: str) -> None:
    assert verify_checkpoint(checkpoint) == []
    rng = random.Random(name)
    path = checkpoint / name
    for _ in range(60):
        position, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
        flip(path, position, bit)
        assert refused(checkpoint, name), (position, bit)
        flip(path, position, bit)
    assert verify_checkpoint(checkpoint) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_all_over_a_file_are_noticed(checkpoint: Path, name: str) -> None:
    """In every fifth byte, to be exact; of the manifest every bit: it is text, and many texts mean the same."""
    path = checkpoint / name
    rng = random.Random(name)
    for position in range(0, path.stat().st_size, 1 if name == MANIFEST else 5):
        for bit in range(8) if name == MANIFEST else [rng.randrange(8)]:
            flip(path, position, bit)
            assert verify_checkpoint(checkpoint), (position, bit)
            flip(path, position, bit)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_cut_off_file_is_noticed(checkpoint: Path, name: str, kept: float) -> None:
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert refused(checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    assert refused(checkpoint, name)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_checkpoint_is_noticed(checkpoint: Path, name: str, tmp_path: Path) -> None:
    other = write(tmp_path / "step_000000004", step=4)
    shutil.copy(other / name, checkpoint / name)
    # What another manifest says is right for itself, so it is the files that differ.
    assert refused(checkpoint, MODEL if name == MANIFEST else name)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"files": {}}', '{"files": {}, "format_version": 1}'])
def test_an_empty_manifest_is_noticed(checkpoint: Path, text: str) -> None:
    (checkpoint / MANIFEST).write_text(text)
    assert refused(checkpoint, MANIFEST)


def _flip_one(folder: Path, older: Path) -> None:
    flip(folder / MODEL, 2000, 3)


def _cut(folder: Path, older: Path) -> None:
    path = folder / TRAINING_STATE
    path.write_bytes(path.read_bytes()[:1000])


def _lose(folder: Path, older: Path) -> None:
    (folder / AVERAGE).unlink()


def _mix(folder: Path, older: Path) -> None:
    shutil.copy(older / AVERAGE, folder / AVERAGE)


def _empty(folder: Path, older: Path) -> None:
    (folder / MANIFEST).write_text("")


DAMAGES: list[tuple[Damage, str]] = [
    (_flip_one, MODEL),
    (_cut, TRAINING_STATE),
    (_lose, AVERAGE),
    (_mix, AVERAGE),
    (_empty, MANIFEST),
]


def _interrupted(machine: Machine, project: Project) -> tuple[Path, str, list[Path]]:
    """Train, stop in the second epoch, and return project, run and checkpoints."""
    root = project.copy()
    assert machine.call(root, "train", "balls.yaml", at=[("step", 11, "TERM")]).code == 143
    run_id, folder = artifacts_of(root)
    return root, run_id, sorted((folder / "checkpoints").glob("step_*"))


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_resume_takes_the_newest_whole_checkpoint(
    machine: Machine, project: Project, damage: Damage, name: str
) -> None:
    """It says what it skips, saves anew where the damaged one was, and ends as if nothing had happened."""
    root, run_id, checkpoints = _interrupted(machine, project)
    damage(checkpoints[-1], checkpoints[-2])
    resumed = machine.call(root, "resume", run_id)
    assert resumed.code == 0, resumed.said
    assert f"Checkpoint {checkpoints[-1].name} is skipped" in resumed.said
    assert name in resumed.said
    found = account(root)
    aside = [file for file in found.files if "damaged_1_" in file]
    assert aside
    found.files[:] = [file for file in found.files if file not in aside]
    assert found.differences(project.reference) == []


@pytest.mark.slow
def test_a_run_without_any_whole_checkpoint_is_refused(machine: Machine, project: Project) -> None:
    root, run_id, checkpoints = _interrupted(machine, project)
    for folder in checkpoints:
        flip(folder / MODEL, 2000, 3)
    resumed = machine.call(root, "resume", run_id)
    assert resumed.code == 2
    assert f"None of the {len(checkpoints)} checkpoints of run 'balls/multiscale-train-1' is whole." in resumed.said
    assert machine.call(root, "predict", "--from-run", run_id, "cohort.csv", "-o", "out").code == 2
    assert not (root / "out").exists()
