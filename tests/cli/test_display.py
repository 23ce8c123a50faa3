"""What a person sees of a training of images, volumes and segments."""

import io

import pytest
from rich.console import Console

from dmx.cli.display import TrainingDisplay, epoch_line
from dmx.training.events import EpochEnded, EpochStarted, Event, StepEnded, TrainingEnded, TrainingStarted
from dmx.training.position import Position

CLASSIFIED = {
    "train/mean_loss": 2.43125,
    "val/loss": 2.3044,
    "score_train/accuracy": 0.10833,
    "val/accuracy": 0.1,
    "val/balanced_accuracy": 0.1,
    "val/auc": 0.5157,
}
SEGMENTED = {"train/mean_loss": 0.5, "val/loss": 0.25, "val/dice": 0.75, "val/accuracy": 0.9}


def course(unit: str, metrics: dict[str, float]) -> list[Event]:
    start = TrainingStarted(
        position=Position(), epochs=1, steps_per_epoch=1, num_parameters=7, device="cpu", resumed=False, unit=unit
    )
    step = StepEnded(
        epoch=0,
        step=1,
        global_step=1,
        loss=0.5,
        terms={},
        lr=0.1,
        gradient_norm=1.0,
        num_segments=32,
        seconds=2.0,
        sampling_seconds=0.1,
    )
    end = EpochEnded(epoch=0, global_step=1, metrics=metrics, seconds=75.0)
    position = Position(epoch=1, global_step=1)
    started = EpochStarted(epoch=0, step=0, global_step=0, lr=0.1)
    return [start, started, step, end, TrainingEnded(reason="early_stopping", position=position)]


def shown(unit: str, metrics: dict[str, float], *, width: int = 80, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system=None)
    with TrainingDisplay(console) as display:
        for event in course(unit, metrics):
            display(event)
            if terminal and isinstance(event, StepEnded):
                console.print(display)
    return stream.getvalue()


def test_an_epoch_of_images_is_one_line_of_eighty_columns() -> None:
    lines = shown("images", CLASSIFIED).splitlines()
    assert lines[1] == "Epoch 0: loss 2.431, val 2.304; accuracy 0.108, val 0.100; AUC 0.516 (1:15)."
    assert lines[-1] == "Training ended early (no improvement) after 1 steps."
    assert max(map(len, lines)) <= 80
    wide = shown("volumes", CLASSIFIED, width=200).splitlines()[1]
    assert "val 0.100; balanced 0.100; AUC 0.516 (1:15)." in wide


def test_an_epoch_of_segments_keeps_its_line() -> None:
    assert shown("segments", SEGMENTED, width=100).splitlines()[1] == (
        "Epoch 0 ended: train loss 0.5000, val loss 0.2500, val Dice 0.7500 (1:15)."
    )


@pytest.mark.parametrize("metrics", [{"train/mean_loss": 0.5}, {"val/r2": 0.25}, {"score_train/r2": 0.125}])
def test_what_was_not_measured_is_not_told(metrics: dict[str, float]) -> None:
    line = epoch_line(3, metrics, 1, unit="images", width=80)
    assert line in {"Epoch 3: loss 0.500 (0:01).", "Epoch 3: val R² 0.250 (0:01).", "Epoch 3: R² 0.125 (0:01)."}


@pytest.mark.parametrize("unit", ["segments", "images", "volumes"])
def test_speed_is_told_in_what_the_batches_hold(unit: str) -> None:
    words = shown(unit, CLASSIFIED if unit != "segments" else SEGMENTED, width=120, terminal=True)
    assert f"16.0 {unit}/s" in words
    others = {"segments", "images", "volumes"} - {unit}
    assert not any(f"{other}/s" in words for other in others)
