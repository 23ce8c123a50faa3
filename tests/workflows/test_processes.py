"""Trainings that several processes share: the same as one, however they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from dmx.config.load import as_yaml
from dmx.config.sections import Experiment
from dmx.errors import ConfigError, TrainingError
from dmx.sampling.batch import Batch
from dmx.sampling.order import Key
from dmx.tracking.mlflow_store import open_store
from dmx.training.checkpoint import read_checkpoint
from dmx.training.events import EpochStarted, Event
from dmx.workflows.assemble import check_training
from dmx.workflows.batches import BatchRequest, train_batches
from dmx.workflows.checked import prefetched
from dmx.workflows.handed import Handed
from dmx.workflows.resume import resume
from dmx.workflows.train import Trainee, train
from tests.workflows.conftest import Teller, session, settings
from tests.workflows.tiny_images import Small, image_settings, make_images

ROUNDING = 1e-5


def shared(manifest: Path, processes: int, **training: object) -> Experiment:
    """Batch statistics, dropout, a layer that is frozen for an epoch, a moving average."""
    words = {"batch_size": 2, "accumulate": 2, "processes": processes, "threads": 1, **training}
    return settings(
        manifest,
        training=words,
        optimizer={"name": "sgd", "lr": 0.05},
        freeze={"normal": [1], "unfreeze": {1: {"normal": [1]}}},
        sampling={"workers": 1},
        validation={"segments": 10, "volumes_every_epochs": 0},
    )


def weights(project: Path, run: Trainee) -> dict[str, Tensor]:
    folder = open_store(root=project).local_artifacts(run.run.id)
    assert folder is not None
    content = read_checkpoint(max(folder.glob("checkpoints/step_*")))
    assert content.average_state is not None
    return {**content.model_state, **{f"average/{name}": value for name, value in content.average_state.items()}}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((value.double() - other[name].double()).abs().max()) for name, value in one.items())


def losses(project: Path, run: Trainee) -> list[float]:
    return [point.value for point in open_store(root=project).metric_history(run.run.id, "train/mean_loss")]


def test_two_processes_train_what_one_trains_and_one_goes_on_for_two(project: Path, manifest: Path) -> None:
    alone = train(shared(manifest, 1), session(project))
    teller = Teller(stop_after=3)
    begun = train(shared(manifest, 2), session(project, teller))
    assert begun.reason == "stopped"
    assert "2 processes share the 2 passes of a step out, with 1 thread each." in teller.sentences
    assert open_store(root=project).get_run(begun.run.id).params["processes"] == "2"
    assert helpers_of(psutil.Process()) == []
    with pytest.raises(ConfigError, match=r"training: accumulate must be a multiple of processes \(4\)"):
        resume(begun.run.id, session(project), changes={"processes": 4})
    after_three = weights(project, begun)
    done = resume(begun.run.id, session(project), changes={"processes": 1})
    assert done.reason == "finished"
    moved = distance(weights(project, alone), weights(project, done))
    print(f"\n8 steps of sgd, of which two processes did 3: weights differ by {moved:.1e} at most")
    assert moved < ROUNDING
    assert losses(project, done) == pytest.approx(losses(project, alone), abs=ROUNDING)
    assert distance(weights(project, alone), after_three) > 100 * ROUNDING


@pytest.mark.slow
def test_two_processes_repeat_themselves_also_after_a_resume(project: Path, manifest: Path) -> None:
    experiment = shared(manifest, 2)
    once = train(experiment, session(project))
    stopped = train(experiment, session(project, Teller(stop_after=3)))
    twice = resume(stopped.run.id, session(project))
    assert distance(weights(project, once), weights(project, twice)) == 0.0
    assert losses(project, once) == losses(project, twice)
    alone, other = train(shared(manifest, 1), session(project)), train(replace(experiment, seed=1), session(project))
    moved = distance(weights(project, once), weights(project, alone))
    print(f"\n8 steps of sgd with 1 and 2 processes: weights differ by {moved:.1e} at most")
    assert moved < ROUNDING
    assert distance(weights(project, once), weights(project, other)) > 100 * ROUNDING


def test_only_the_own_parts_are_prepared_ahead() -> None:
    asked: list[Key] = []

    class Parts:
        def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
            asked.append((epoch, step, part))
            return Batch(inputs=(), target=torch.zeros(0), cases=())

        def following(self, key: Key) -> Key:
            epoch, step, part = key
            return (epoch, step, part + 1) if part < 3 else (epoch, step + 1, 0)

    with prefetched(Parts(), workers=1, parts=range(2, 4)) as batches:
        batches.get((0, 0, 2))
        batches.get((0, 0, 3))
    assert {part for _, _, part in asked} == {2, 3}
    assert (0, 1, 2) in asked


def images(project: Path, processes: int, **sections: object) -> Experiment:
    training = {"batch_size": 2, "accumulate": 2, "processes": processes, "threads": 1, "moving_average": 0.9}
    optimizer = {"name": "sgd", "lr": 0.05}
    return image_settings(make_images(project), training=training, optimizer=optimizer, **sections)


@pytest.mark.slow
def test_images_and_a_network_of_a_function_are_shared_too(project: Path) -> None:
    one, two = (train(images(project, processes), session(project)) for processes in (1, 2))
    moved = distance(weights(project, one), weights(project, two))
    print(f"\n6 steps of sgd on images: weights differ by {moved:.1e} at most")
    assert moved < ROUNDING


def test_a_head_on_fixed_features_is_trained_by_one(project: Path) -> None:
    teller = Teller()
    train(images(project, 2, freeze={"layers": ["features"]}), session(project, teller))
    assert any("trained by one process" in sentence for sentence in teller.sentences)
    assert not any("share the 2 passes" in sentence for sentence in teller.sentences)


def test_what_other_processes_cannot_have_is_refused(project: Path, manifest: Path) -> None:
    network = nn.Conv3d(1, 2, 3, padding=1)
    with pytest.raises(ConfigError, match=r"processes must be 1 for a network that was made in Python.*got 2"):
        check_training(shared(manifest, 2), session(project), handed=Handed(model=network))
    request = BatchRequest(
        handed=Handed(model=Small(2)),
        data=[(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))] * 2,
        settings={"name": "given", "training": {"accumulate": 2, "processes": 2}},
    )
    with pytest.raises(ConfigError, match=r"processes must be 1 where batches are given in Python.*got 2"):
        train_batches(request, session(project), as_run=False)


def helpers_of(process: psutil.Process) -> list[psutil.Process]:
    return [one for one in process.children() if "dmx.workflows.helper" in one.cmdline()]


def killing(event: Event) -> None:
    if isinstance(event, EpochStarted) and event.epoch == 1:
        (helper,) = helpers_of(psutil.Process())
        os.kill(helper.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_ends_the_training_which_can_go_on(project: Path, manifest: Path) -> None:
    experiment = shared(manifest, 2)
    teller = Teller()
    told = replace(session(project, teller), listeners=(teller.events.append, killing))
    with pytest.raises(TrainingError, match=r"Process 2 of the 2 .* SIGKILL.*Last checkpoint: step_0+4 .*resume"):
        train(experiment, told)
    assert helpers_of(psutil.Process()) == []
    store = open_store(root=project)
    (run,) = (run for run in store.list_runs() if run.status == "FAILED")
    done = resume(run.id, session(project))
    once = train(experiment, session(project))
    assert distance(weights(project, once), weights(project, done)) == 0.0


@contextmanager
def command(project: Path, experiment: Experiment, *words: str) -> Iterator[tuple[psutil.Popen, list[psutil.Process]]]:
    """Train by the command until the processes that help have begun; the training would take minutes."""
    (project / "long.yaml").write_text(as_yaml(experiment))
    process = psutil.Popen(
        [sys.executable, "-m", "dmx", *words, "long.yaml"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: any(project.glob("mlruns/**/step_000000008")), seconds=90)
        helpers = helpers_of(process)
        assert len(helpers) == 1
        yield process, helpers
    finally:
        if process.is_running():
            process.kill()
            process.wait()


def until(happened: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_is_left_when_the_first_one_is_ended(project: Path, manifest: Path, sent: signal.Signals) -> None:
    experiment = shared(manifest, 2, epochs=1000)
    with command(project, experiment, "train") as (process, helpers):
        if sent == signal.SIGKILL:
            process.kill()
        else:
            # As a terminal does, and as a scheduler does that asks each process of a job to end.
            os.killpg(process.pid, sent)
            for helper in helpers:
                helper.send_signal(sent)
        code = process.wait(20)
        until(lambda: not any(alive(one) for one in helpers), seconds=3)
    status = {run.status for run in open_store(root=project).list_runs()}
    assert code == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    assert status == ({"RUNNING"} if sent == signal.SIGKILL else {"KILLED"})


def alive(process: psutil.Process) -> bool:
    # Nobody may wait for an orphan here: a zombie has ended.
    return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
