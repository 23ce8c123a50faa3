"""A resumed training is the uninterrupted one, bit for bit."""

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmx import seeding
from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection
from dmx.config.optimization import OptimizerSection, ScheduleSection
from dmx.config.sections import CheckpointSection, TrainingSection
from dmx.errors import CheckpointError
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.sampling.batch import Batch
from dmx.training.checkpoint import read_checkpoint, write_checkpoint
from dmx.training.events import CheckpointDue, EpochEnded, Event, StepEnded
from dmx.training.loop import fit
from dmx.training.samples import ValidationResult
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState, new_state

Batches = Callable[[int, int, int], Batch]
NewNetwork = Callable[[], Network]

# After an epoch and in the middle of one.
STOPS = [4, 6]


def with_everything(settings: FitSettings, optimizer: OptimizerSection, **training: Any) -> FitSettings:
    section = TrainingSection(
        epochs=3, steps_per_epoch=4, batch_size=2, accumulate=2, device="cpu", moving_average=0.9, **training
    )
    return replace(
        settings, training=section, optimizer=optimizer, schedule=ScheduleSection(name="plateau", patience=1)
    )


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def tensors_of(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten a state, without the seconds that no two trainings share."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {} if name.endswith(("seconds", "sampling")) else {name: value}
    return {key: leaf for part, inner in items for key, leaf in tensors_of(inner, f"{name}/{part}").items()}


def same(first: TrainState, second: TrainState) -> bool:
    ours, theirs = tensors_of(first.state_dict()), tensors_of(second.state_dict())
    assert ours.keys() == theirs.keys()
    return all(
        torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        for name, value in ours.items()
    )


class Recording:
    """What a training tells: the losses of its steps and the metrics of its epochs, but for times."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepEnded):
            self.told.append((event.epoch, event.step, event.global_step, event.loss, event.lr, event.gradient_norm))
        if isinstance(event, EpochEnded):
            untimed = ("time/", "system/")
            metrics = {k: v for k, v in event.metrics.items() if not k.startswith(untimed)}
            self.told.append((event.epoch, event.global_step, metrics))


def validate(state: TrainState, epoch: int) -> ValidationResult:
    weight = next(state.model.parameters())
    return ValidationResult(metrics={"val/dice": float(weight.detach().sum()) % 1.0})


def run(
    state: TrainState, settings: FitSettings, batches: Batches, *, stop_at: int | None = None
) -> tuple[TrainState, list[Any]]:
    recording = Recording()
    fit(
        state,
        batches,
        settings,
        validate=validate,
        listeners=[recording],
        stop=lambda: state.position.global_step == stop_at,
    )
    return state, recording.told


@pytest.mark.parametrize("stop_at", STOPS)
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
@pytest.mark.parametrize("compatibility", ["none", "deepmedic"])
def test_resume_is_uninterrupted(
    settings: FitSettings, batches: Batches, new_network: NewNetwork, name: str, compatibility: str, stop_at: int
) -> None:
    optimizer = OptimizerSection(name=name, lr=0.02, weight_decay=0.01 if name == "adamw" else 0.0)
    settings = replace(with_everything(settings, optimizer), compatibility=compatibility)
    whole, told = run(new_state(new_network(), settings), settings, batches)

    broken, first = run(new_state(new_network(), settings), settings, batches, stop_at=stop_at)
    assert broken.position.global_step == stop_at
    saved = through_a_file(broken.state_dict())
    resumed = new_state(new_network(), settings)
    resumed.load_state_dict(saved)
    # Whatever was drawn before must not matter.
    torch.manual_seed(99)
    resumed, second = run(resumed, settings, batches)

    assert same(resumed, whole)
    assert first + second == told


@pytest.mark.parametrize(
    "forget",
    [
        lambda saved: saved["training"]["position"].update(epoch=0, step=0),
        lambda saved: saved["training"]["optimizer"]["state"]["velocity"].clear(),
        lambda saved: saved["training"].update(average_updates=0),
        lambda saved: saved["training"]["record"]["sums"].update(loss=0.0),
        lambda saved: saved["training"]["record"]["counts"]["counts"].zero_(),
        lambda saved: saved["training"]["schedule"].update(divisions=3),
        lambda saved: saved["model"]["norm.running_mean"].zero_(),
    ],
)
def test_each_part_of_the_state_is_needed(
    settings: FitSettings, batches: Batches, new_network: NewNetwork, forget: Callable[[dict[str, Any]], Any]
) -> None:
    """The negative of the test above: whatever is left out is noticed."""
    settings = with_everything(settings, OptimizerSection(name="sgd", lr=0.02))
    whole, told = run(new_state(new_network(), settings), settings, batches)
    broken, first = run(new_state(new_network(), settings), settings, batches, stop_at=6)
    saved = through_a_file(broken.state_dict())
    forget(saved)
    resumed = new_state(new_network(), settings)
    resumed.load_state_dict(saved)
    resumed, second = run(resumed, settings, batches)
    assert not (same(resumed, whole) and first + second == told)


def test_a_training_that_ended_early_has_ended_whenever_it_was_killed(
    settings: FitSettings, batches: Batches, new_network: NewNetwork
) -> None:
    """The checkpoint of the last epoch knows it; with more epochs the training waits anew."""
    settings = with_everything(settings, OptimizerSection(name="sgd", lr=0.02))
    longer = replace(settings.training, epochs=9)
    settings = replace(settings, training=longer, checkpoints=CheckpointSection(early_stopping=2, best_mode="min"))
    state, saved = new_state(new_network(), settings), []

    def worse(state: TrainState, epoch: int) -> ValidationResult:
        return ValidationResult(metrics={"val/dice": float(epoch)})

    def killed_after_saving(event: Event) -> None:
        if isinstance(event, CheckpointDue):
            saved.append(through_a_file(event.state.state_dict()))

    ended = fit(state, batches, settings, validate=worse, listeners=[killed_after_saving])
    assert (ended.reason, ended.position.epoch) == ("early_stopping", 3)
    for _ in range(2):
        resumed = new_state(new_network(), settings)
        resumed.load_state_dict(saved[-1])
        again = fit(resumed, batches, settings, validate=worse, listeners=[killed_after_saving])
        assert (again.reason, again.position) == ("early_stopping", ended.position)
        assert same(resumed, state)
    extended = replace(settings, training=replace(longer, epochs=20))
    for until in (5, 5):
        resumed = new_state(new_network(), extended)
        resumed.load_state_dict(saved[-1])
        again = fit(resumed, batches, extended, validate=worse, listeners=[killed_after_saving])
        assert (again.reason, again.position.epoch) == ("early_stopping", until)


def test_dropout_follows_the_seed(settings: FitSettings, batches: Batches, new_network: NewNetwork) -> None:
    def losses(seed: int) -> list[Any]:
        return run(new_state(new_network(), settings), replace(settings, seed=seed), batches)[1]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_resume_from_a_checkpoint_with_fp16(
    settings: FitSettings, batches: Batches, new_network: NewNetwork, tmp_path: Path
) -> None:
    """The scale of the loss is part of the state, and a checkpoint keeps every bit."""
    settings = with_everything(settings, OptimizerSection(name="adam", lr=0.02), precision="fp16", channels_last=True)
    whole, told = run(new_state(new_network(), settings), settings, batches)
    broken, first = run(new_state(new_network(), settings), settings, batches, stop_at=6)
    state = broken.state_dict()
    write_checkpoint(
        tmp_path / "step_6",
        model_state=state["model"],
        average_state=state["average"],
        training_state=state["training"],
        manifest={"step": 6},
    )
    resumed = new_state(new_network(), settings)
    resumed.load_state_dict(read_checkpoint(tmp_path / "step_6").as_state())
    resumed, second = run(resumed, settings, batches)
    assert same(resumed, whole)
    assert first + second == told


@pytest.mark.parametrize(("norm", "compatibility"), [("batch", "none"), ("batch_rolling", "deepmedic")])
def test_the_multi_scale_network_resumes(settings: FitSettings, norm: str, compatibility: str) -> None:
    """Dropout in the network, and statistics that live in a ring."""
    section = ModelSection(
        normal=PathwaySection(widths=(3, 3), dropout=0.2),
        fc=FCSection(widths=(4,)),
        normalization=NormalizationSection(name=norm, steps=5),
    )
    settings = replace(with_everything(settings, OptimizerSection(lr=0.02)), compatibility=compatibility)

    def start() -> tuple[TrainState, Batches]:
        network = build_network(section, num_channels=1, num_classes=3, compatibility=compatibility)
        plan = network.segment_plan((9, 9, 9))

        def batches(*key: int) -> Batch:
            place = seeding.derive(1, "batch", *key)
            inputs = tuple(seeding.normal(place, (2, 1, *patch.shape)) for patch in plan.patches)
            target = (seeding.uniform(place, (2, *plan.output_shape)) * 3).long()
            return Batch(inputs=inputs, target=target, cases=("a", "b"))

        return new_state(network, settings), batches

    whole, batches = start()
    whole, told = run(whole, settings, batches)
    broken, batches = start()
    broken, first = run(broken, settings, batches, stop_at=6)
    resumed, batches = start()
    resumed.load_state_dict(through_a_file(broken.state_dict()))
    resumed, second = run(resumed, settings, batches)
    assert same(resumed, whole)
    assert first + second == told


def test_a_finished_training_has_nothing_left_to_do(
    settings: FitSettings, batches: Batches, new_network: NewNetwork
) -> None:
    state, _ = run(new_state(new_network(), settings), settings, batches)
    before = copy.deepcopy(state.model.state_dict())
    _, told = run(state, settings, batches)
    assert told == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.model.state_dict().items())


def test_a_state_of_other_settings_is_refused(settings: FitSettings, network: Network, new_network: NewNetwork) -> None:
    plain = new_state(network, settings)
    averaged = new_state(new_network(), replace(settings, training=TrainingSection(device="cpu", moving_average=0.9)))
    with pytest.raises(CheckpointError, match="The settings have a moving average"):
        averaged.load_state_dict(plain.state_dict())
    with pytest.raises(CheckpointError, match="The state has a moving average"):
        plain.load_state_dict(averaged.state_dict())
    other = plain.state_dict()
    other["model"] = {"conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="do not fit the network"):
        plain.load_state_dict(other)
    wrong = averaged.state_dict()
    wrong["average"] = {"conv.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="moving average does not fit"):
        averaged.load_state_dict(wrong)
