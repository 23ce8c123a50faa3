"""The same seed gives the same bits, whoever prepares the segments; what threads and accumulation change is bounded."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from dmx.cohort.volume import read_volume
from tests.faults.kills import Account, Project, Tally, account

# Adam divides a gradient by its own size: one that is nothing but rounding moves a weight like any other.
SGD = "optimizer.name=sgd"


def trained(project: Project, *changes: str) -> Account:
    root = project.copy()
    ended = project.call(root, "train", "balls.yaml", *(word for change in changes for word in ("--set", change)))
    assert ended.code == 0, ended.said
    return account(root)


def weights(of: Account) -> dict[str, torch.Tensor]:
    return {name: value for name, value in of.state.items() if name.startswith("/model/")}


def same_bits(one: Account, other: Account) -> bool:
    ours, theirs = one.state, other.state
    assert ours.keys() == theirs.keys()
    equal = (
        torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        for name, value in ours.items()
    )
    return all(equal) and one.metrics == other.metrics


def distance(one: Account, other: Account) -> float:
    """Return the largest difference of a weight."""
    ours, theirs = weights(one), weights(other)
    return max(float((value - theirs[name]).abs().max()) for name, value in ours.items() if value.is_floating_point())


def test_the_same_seed_gives_the_same_bits(project: Project) -> None:
    root = project.copy()
    assert project.call(root, "train", "balls.yaml").code == 0
    assert project.losses(root, Tally()) == []


def test_workers_do_not_change_a_bit_and_the_seed_does(project: Project) -> None:
    assert same_bits(trained(project, "sampling.workers=2"), project.reference)
    assert not same_bits(trained(project, "seed=1"), project.reference)


@pytest.mark.slow
def test_the_number_of_threads_may_change_the_last_bits_only(project: Project) -> None:
    """Not promised to be equal: another number of threads adds in another order. Each number repeats itself."""
    two = trained(project, SGD, "training.threads=2")
    assert same_bits(trained(project, SGD, "training.threads=2"), two)
    moved = distance(two, trained(project, SGD, "training.threads=1"))
    print(f"\n18 steps of sgd with 1 and 2 threads: weights differ by {moved:.1e} at most")
    assert moved < 1e-4


@pytest.mark.parametrize("mode", ["plain", pytest.param("workers and fp16", marks=pytest.mark.slow)])
def test_a_prediction_repeats_itself(projects: Mapping[str, Project], mode: str) -> None:
    project = projects[mode]
    root = project.copy()
    assert project.call(root, "train", "balls.yaml").code == 0
    words = ("predict", "--from-run", "balls/last", "cohort.csv", "--split", "evaluation", "-o")
    for folder in ("one", "two"):
        assert project.call(root, *words, folder).code == 0
    first = sorted((root / "one").rglob("*.nii.gz"))
    assert first
    for path in first:
        assert np.array_equal(read_volume(path).array, read_volume(root / "two" / path.name).array)


PLAIN: tuple[str, ...] = ("model.fc.dropout=[0.0,0.0]", "training.batch_size=4", "training.accumulate=1")
HALVES: tuple[Any, ...] = ("model.fc.dropout=[0.0,0.0]", "training.batch_size=2", "training.accumulate=2")


@pytest.mark.slow
def test_two_halves_make_the_step_of_the_whole_up_to_rounding(project: Project) -> None:
    """There is no training on several processes; what shares a batch out is accumulation.

    It draws the same segments. Statistics of a batch are those of each half, so it is not the same with them.
    """
    without = (SGD, "model.normalization.name=none", "compatibility=deepmedic")
    moved = distance(trained(project, *without, *PLAIN), trained(project, *without, *HALVES))
    print(f"\n18 steps of sgd with 4 segments at once or 2 and 2: weights differ by {moved:.1e} at most")
    assert moved < 1e-4
    assert distance(trained(project, SGD, *PLAIN), trained(project, SGD, *HALVES)) > 10 * moved
