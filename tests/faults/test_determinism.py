"""The same seed gives the same bits, whoever prepares the segments; what threads and accumulation change is bounded."""

import csv
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from dmx import seeding
from dmx.cohort.regions import IGNORED
from dmx.cohort.volume import read_volume
from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection
from dmx.config.optimization import OptimizerSection
from dmx.config.sections import TrainingSection
from dmx.model.build import build_network
from dmx.sampling.batch import Batch
from dmx.training.loop import fit
from dmx.training.settings import FitSettings
from dmx.training.state import new_state
from tests.faults.kills import Account, Project, account, artifacts_of

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


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(project: Project) -> None:
    root = project.copy()
    assert project.call(root, "train", "balls.yaml").code == 0
    assert project.losses(root) == []


@pytest.mark.slow
def test_workers_do_not_change_a_bit_and_the_seed_does(project: Project) -> None:
    assert same_bits(trained(project, "sampling.workers=2"), project.reference)
    assert not same_bits(trained(project, "seed=1"), project.reference)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["images", "images and fixed features"])
def test_images_give_the_same_bits_whoever_prepares_them_and_after_a_resume(
    projects: Mapping[str, Project], mode: str
) -> None:
    """Three steps are an epoch: the training is killed in the second epoch, with a checkpoint in the middle of it."""
    project = projects[mode]
    assert same_bits(trained(project), project.reference)
    assert same_bits(trained(project, "sampling.workers=2"), project.reference)
    assert not same_bits(trained(project, "seed=1"), project.reference)
    for workers in (0, 2):
        root = project.copy()
        words = ("train", "balls.yaml", "--set", f"sampling.workers={workers}")
        assert project.call(root, *words, at=[("step", 6, "KILL")]).code == -9
        run_id, folder = artifacts_of(root)
        assert (folder / "checkpoints/step_000000005").is_dir()
        assert project.call(root, "resume", run_id).code == 0
        assert same_bits(account(root), project.reference)


@pytest.mark.slow
def test_the_scores_of_images_repeat_themselves(projects: Mapping[str, Project]) -> None:
    project = projects["images"]
    root = project.copy()
    assert project.call(root, "train", "balls.yaml").code == 0
    tables = []
    for name in ("one", "two"):
        words = ("predict", "--from-run", "balls/last", "cohort.csv", "--split", "evaluation", "-o", f"{name}.csv")
        assert project.call(root, *words).code == 0
        with (root / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows
        tables.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_the_number_of_threads_may_change_the_last_bits_only(project: Project) -> None:
    """Not promised to be equal: another number of threads adds in another order. Each number repeats itself."""
    two = trained(project, SGD, "training.threads=2")
    assert same_bits(trained(project, SGD, "training.threads=2"), two)
    moved = distance(two, trained(project, SGD, "training.threads=1"))
    print(f"\n18 steps of sgd with 1 and 2 threads: weights differ by {moved:.1e} at most")
    assert moved < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "workers and fp16"])
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


def accumulated(parts: int, *, whole: bool, norm: str = "none") -> dict[str, torch.Tensor]:
    """Train 18 steps of 4 segments in so many passes, and return the weights.

    Args:
        parts: Passes per step.
        whole: Whether all voxels of the segments lie in the volume, so that each pass counts as many.
        norm: Normalization.
    """
    section = ModelSection(
        normal=PathwaySection(widths=(4, 4)),
        fc=FCSection(widths=(6,), dropout=(0.0, 0.0)),
        normalization=NormalizationSection(name=norm),  # type: ignore[arg-type]
    )
    network = build_network(section, num_channels=1, num_classes=2)
    plan = network.segment_plan((9, 9, 9))
    size = 4 // parts

    def batches(epoch: int, step: int, part: int) -> Batch:
        key = seeding.derive(1, "batch", epoch, step)
        chosen = slice(part * size, (part + 1) * size)
        inputs = tuple(seeding.normal(key, (4, 1, *patch.shape))[chosen] for patch in plan.patches)
        target = (seeding.uniform(key, (4, *plan.output_shape)) * 2).long()
        if not whole:
            target[0, :, :, 1:] = IGNORED
        return Batch(inputs=inputs, target=target[chosen], cases=("a",) * size)

    training = TrainingSection(epochs=3, steps_per_epoch=6, batch_size=size, accumulate=parts, device="cpu")
    settings = FitSettings(
        classes=("background", "ball"), training=training, optimizer=OptimizerSection(name="sgd", lr=0.01)
    )
    state = new_state(network, settings)
    fit(state, batches, settings)
    return dict(state.model.state_dict())


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return max(float((value - other[name]).abs().max()) for name, value in one.items() if value.is_floating_point())


def test_two_halves_make_the_step_of_the_whole_up_to_rounding() -> None:
    """There is no training on several processes; what shares a batch out is accumulation.

    Each pass is averaged over its own voxels and has its own statistics, so other than that it is not the same.
    """
    moved = apart(accumulated(1, whole=True), accumulated(2, whole=True))
    print(f"\n18 steps of sgd with 4 segments at once or 2 and 2: weights differ by {moved:.1e} at most")
    assert moved < 1e-6
    assert apart(accumulated(1, whole=False), accumulated(2, whole=False)) > 1e-5
    assert apart(accumulated(1, whole=True, norm="batch"), accumulated(2, whole=True, norm="batch")) > 1e-5
