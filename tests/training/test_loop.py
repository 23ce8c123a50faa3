"""What a training tells its listeners, when it validates, saves and stops."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from dmx.config.optimization import LossSection, OptimizerSection, ScheduleSection
from dmx.config.sections import CheckpointSection, CohortSection, Experiment, TrainingSection
from dmx.errors import ConfigError, TrainingError
from dmx.model.network import Network
from dmx.sampling.batch import Batch
from dmx.training.events import (
    CheckpointDue,
    EpochEnded,
    EpochStarted,
    Event,
    Notice,
    StepEnded,
    TrainingEnded,
    TrainingStarted,
    ValidationEnded,
)
from dmx.training.loop import FitResult, fit
from dmx.training.progress import larger_is_better
from dmx.training.samples import ValidationResult
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState, new_state

Batches = Callable[[int, int, int], Batch]


def saving(settings: FitSettings, **checkpoints: Any) -> FitSettings:
    return replace(settings, checkpoints=CheckpointSection(**checkpoints))


def scores(values: Sequence[float | None], name: str = "val/dice") -> Callable[[TrainState, int], ValidationResult]:
    def validate(_: TrainState, epoch: int) -> ValidationResult:
        value = values[epoch - 1]
        return ValidationResult(metrics={} if value is None else {name: value})

    return validate


def names_of(events: Sequence[Event]) -> list[tuple[str, ...]]:
    return [event.names for event in events if isinstance(event, CheckpointDue)]


def train(network: Network, batches: Batches, settings: FitSettings, **options: Any) -> tuple[FitResult, list[Event]]:
    events: list[Event] = []
    return fit(new_state(network, settings), batches, settings, listeners=[events.append], **options), events


def test_events_come_in_order(network: Network, batches: Batches, settings: FitSettings) -> None:
    result, events = train(network, batches, settings, validate=scores([0.1, 0.3, 0.2]))
    epoch = [EpochStarted, *[StepEnded] * 4, ValidationEnded, EpochEnded, CheckpointDue]
    assert [type(event) for event in events] == [TrainingStarted, CheckpointDue, *epoch * 3, TrainingEnded]
    assert names_of(events) == [
        ("initial",),
        ("last", "best", "epoch=0"),
        ("last", "best", "epoch=1"),
        ("last", "epoch=2"),
    ]
    assert (result.reason, result.best.value, result.best.epoch) == ("finished", 0.3, 2)
    steps = [event for event in events if isinstance(event, StepEnded)]
    assert [(step.epoch, step.step, step.global_step) for step in steps[3:6]] == [(0, 4, 4), (1, 1, 5), (1, 2, 6)]
    assert network.steps_seen == 12


def test_the_loss_is_the_sum_of_its_terms_and_falls(network: Network, batches: Batches, settings: FitSettings) -> None:
    training = TrainingSection(epochs=4, steps_per_epoch=30, device="cpu")
    fast = replace(settings, training=training, optimizer=OptimizerSection(name="adam", lr=0.05))
    _, events = train(network, batches, fast)
    epochs = [event.metrics for event in events if isinstance(event, EpochEnded)]
    assert epochs[-1]["train/mean_loss"] < 0.9 * epochs[0]["train/mean_loss"]
    assert epochs[-1]["train/dice"] > epochs[0]["train/dice"]
    step = next(event for event in events if isinstance(event, StepEnded))
    terms = step.terms
    assert step.loss == pytest.approx(terms["cross_entropy"] + 1e-6 * terms["l1"] + 1e-4 * terms["l2"])
    assert step.seconds > step.sampling_seconds > 0.0
    assert step.num_segments == 2


def test_a_stop_finishes_the_step_and_saves(network: Network, batches: Batches, settings: FitSettings) -> None:
    result, events = train(network, batches, settings, stop=iter([False] * 5 + [True]).__next__)
    assert (result.reason, result.position.epoch, result.position.step) == ("stopped", 1, 2)
    assert [type(event) for event in events[-3:]] == [StepEnded, CheckpointDue, TrainingEnded]
    assert names_of(events)[-1] == ("last",)


def test_checkpoints_come_when_they_are_due(network: Network, batches: Batches, settings: FitSettings) -> None:
    rarely = saving(settings, every_epochs=3, every_steps=3, keep_epochs=(0,), best_metric="val/dice")
    _, events = train(network, batches, rarely, validate=scores([None, None, None]))
    within = ("last",)
    assert names_of(events) == [("initial",), within, ("last", "epoch=0"), within, within, ("last", "epoch=2")]
    steps = [event.position.global_step for event in events if isinstance(event, CheckpointDue)]
    assert steps == [0, 3, 4, 7, 11, 12]


def test_the_best_metric_moves_on_to_whole_volumes(network: Network, batches: Batches, settings: FitSettings) -> None:
    def validate(_: TrainState, epoch: int) -> ValidationResult:
        volume = {"val_volume/dice": 0.5} if epoch == 2 else {}
        return ValidationResult(metrics={"val/dice": 0.9 + epoch / 100, **volume})

    result, events = train(network, batches, settings, validate=validate)
    assert (result.best.metric, result.best.value, result.best.epoch) == ("val_volume/dice", 0.5, 2)
    assert ["best" in names for names in names_of(events)] == [False, True, True, False]


def test_a_plateau_does_not_compare_different_metrics(
    network: Network, batches: Batches, settings: FitSettings
) -> None:
    def validate(_: TrainState, epoch: int) -> ValidationResult:
        return ValidationResult(metrics={"val/dice": 0.9} if epoch < 3 else {"val_volume/dice": 0.1 * epoch})

    training = TrainingSection(epochs=6, steps_per_epoch=1, device="cpu")
    section = ScheduleSection(name="plateau", patience=2)
    _, events = train(network, batches, replace(settings, training=training, schedule=section), validate=validate)
    rates = {event.lr for event in events if isinstance(event, StepEnded)}
    assert rates == {0.05}


def test_an_experiment_has_all_settings() -> None:
    experiment = Experiment(
        name="x", cohort=CohortSection(manifest="cohort.csv"), seed=3, losses=LossSection(soft_dice=1.0)
    )
    settings = FitSettings.of(experiment, ("background", "lesion"))
    for field in fields(settings):
        if field.name not in ("classes", "freeze", "unit", "regions"):
            assert getattr(settings, field.name) is getattr(experiment, field.name)
    assert settings.unit == "segments"
    volumes = FitSettings.of(replace(experiment, task="classification", losses=LossSection()), ("small", "large"))
    assert volumes.unit == "volumes"


@pytest.mark.parametrize(
    ("metric", "mode", "best"), [("val/loss", "auto", 2), ("val/loss", "max", 1), ("val/sensitivity", "auto", 1)]
)
def test_a_loss_is_better_when_smaller(
    network: Network, batches: Batches, settings: FitSettings, metric: str, mode: str, best: int
) -> None:
    settings = saving(settings, best_metric=metric, best_mode=mode)
    result, _ = train(network, batches, settings, validate=scores([0.5, 0.2, 0.3], metric))
    assert result.best.epoch == best


def test_the_training_loss_names_the_best_without_validation(
    network: Network, batches: Batches, settings: FitSettings
) -> None:
    result, events = train(network, batches, saving(settings, best_metric="train/loss"))
    losses = [event.metrics["train/mean_loss"] for event in events if isinstance(event, EpochEnded)]
    assert result.best.value == min(losses)


def test_early_stopping_waits_for_its_epochs(network: Network, batches: Batches, settings: FitSettings) -> None:
    training = TrainingSection(epochs=9, steps_per_epoch=1, device="cpu")
    patient = saving(replace(settings, training=training), early_stopping=2)
    result, events = train(network, batches, patient, validate=scores([0.1, 0.5, 0.5, 0.4] + [0.0] * 5))
    assert (result.reason, result.position.epoch, result.best.epoch) == ("early_stopping", 4, 2)
    assert names_of(events)[-1] == ("last", "epoch=3")
    # An epoch that measures nothing cannot tell.
    rarely = scores([0.5, None, None, None, 0.6, None, None, None, None])
    assert train(network, batches, patient, validate=rarely)[0].reason == "finished"


def test_a_metric_that_nothing_measures_is_refused(network: Network, batches: Batches, settings: FitSettings) -> None:
    with pytest.raises(ConfigError, match=r"begin with train/ in a training without validation, got 'val/dice'"):
        train(network, batches, saving(settings, best_metric="val/dice"))
    with pytest.raises(ConfigError, match=r"begin with train/ or val/ or val_volume/, got 'dice'"):
        train(network, batches, saving(settings, best_metric="dice"), validate=scores([0.1] * 3))
    misspelled = saving(settings, best_metric="val/dise")
    _, events = train(network, batches, misspelled, validate=scores([0.1] * 3))
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert len(notices) == 3
    assert "'val/dise' was not measured in this epoch" in notices[0]


def test_validation_sees_the_average_in_inference_mode(
    network: Network, batches: Batches, settings: FitSettings
) -> None:
    averaged = replace(settings, training=replace(settings.training, moving_average=0.9))
    seen = []

    def validate(state: TrainState, _: int) -> ValidationResult:
        assert state.average is not None
        assert not state.model.training
        weights = state.model.state_dict()
        seen.append({name: tensor.clone() for name, tensor in weights.items()})
        assert all(torch.equal(tensor, state.average.tensors[name]) for name, tensor in weights.items())
        return ValidationResult(metrics={})

    train(network, batches, averaged, validate=validate)
    after = network.state_dict()
    assert not torch.equal(seen[-1]["conv.weight"], after["conv.weight"])
    assert torch.equal(seen[-1]["norm.running_mean"], after["norm.running_mean"])


@pytest.mark.parametrize(("where", "what"), [("input", "loss became nan"), ("gradient", "gradient became nan")])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    network: Network, batches: Batches, settings: FitSettings, where: str, what: str
) -> None:
    state = new_state(network, settings)
    kept = []

    def spoiled(epoch: int, step: int, part: int) -> Batch:
        batch = batches(epoch, step, part)
        if (epoch, step) == (1, 2):
            kept.append({name: tensor.clone() for name, tensor in network.named_parameters()})
            if where == "input":
                batch.inputs[0][0, 0, 2, 2, 2] = float("nan")
            else:
                network.head.weight.register_hook(lambda gradient: gradient * float("nan"))
        return batch

    def remember(event: Event) -> None:
        if isinstance(event, CheckpointDue):
            event.state.last_checkpoint = f"step_{event.position.global_step}"

    place = r"at step 7 \(epoch 1, step 3 of it\)"
    words = rf"The {what} {place} with the cases case_1, case_2; terms: .*good checkpoint: step_4"
    with pytest.raises(TrainingError, match=words):
        fit(state, spoiled, settings, listeners=[remember])
    assert all(torch.equal(tensor, kept[0][name]) for name, tensor in network.named_parameters())


def test_the_world_is_left_as_it_was(network: Network, batches: Batches, settings: FitSettings) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    seen = []

    def validate(*_: Any) -> ValidationResult:
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()))
        return ValidationResult(metrics={})

    training = replace(settings.training, threads=threads + 1)
    train(network, batches, replace(settings, training=training), validate=validate)
    assert seen == [(True, threads + 1)] * 3
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == (False, threads)
    assert torch.equal(torch.rand(1), expected)


def test_the_end_of_an_epoch_saves_once(network: Network, batches: Batches, settings: FitSettings) -> None:
    # Four steps per epoch, of which the second and the fourth are multiples of two.
    _, events = train(network, batches, saving(settings, every_steps=2))
    assert names_of(events)[1:3] == [("last",), ("last", "best", "epoch=0")]
    steps = [event.position.global_step for event in events if isinstance(event, CheckpointDue)]
    assert steps == [0, 2, 4, 6, 8, 10, 12]


def test_an_epoch_has_the_rate_of_its_last_step_and_its_checkpoint_the_metrics(
    network: Network, batches: Batches, settings: FitSettings
) -> None:
    _, events = train(network, batches, settings)
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    steps = [event for event in events if isinstance(event, StepEnded)]
    assert [event.metrics["lr"] for event in epochs] == [steps[n].lr for n in (3, 7, 11)]
    assert steps[3].lr != steps[2].lr
    due = [event for event in events if isinstance(event, CheckpointDue)][1:]
    assert [event.metrics["train/mean_loss"] for event in due] == [event.metrics["train/mean_loss"] for event in epochs]
    assert all(0.0 < step.seconds < 60.0 for step in steps)
    assert all(event.metrics["time/training"] <= event.metrics["time/epoch"] < 60.0 for event in epochs)


def test_a_metric_without_a_family_has_a_direction() -> None:
    assert larger_is_better("dice", CheckpointSection())
    assert not larger_is_better("loss", CheckpointSection())
    assert not larger_is_better("val/hd95_mm/lesion", CheckpointSection())
    assert not larger_is_better("dice", CheckpointSection(best_mode="min"))


def test_a_plateau_sees_the_value_itself(network: Network, batches: Batches, settings: FitSettings) -> None:
    plateau = ScheduleSection(name="plateau", patience=1, divide_by=2.0, min_increase=0.15)
    settings = replace(settings, schedule=plateau)
    # 0.1 better each time is too little, 0.2 is enough.
    state = new_state(network, settings)
    fit(state, batches, settings, validate=scores([0.1, 0.2, 0.4]))
    assert state.schedule.divisions == 1
    assert state.schedule.best == pytest.approx(0.4)
