"""Counts of voxels and the measures made of them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dmx.config.optimization import LossSection
from dmx.errors import ConfigError
from dmx.model.network import Network
from dmx.sampling.batch import Batch
from dmx.training.losses import Loss
from dmx.training.samples import SampleCounts, validate_samples

CLASSES = ("background", "anterior", "posterior")


def scores_for(prediction: Tensor) -> Tensor:
    """Return logits whose largest class is the prediction."""
    return torch.nn.functional.one_hot(prediction, 3).movedim(-1, 1).float()


def volume(*labels: int) -> Tensor:
    return torch.tensor(labels).view(1, 1, 1, -1)


def test_measures_are_their_definitions() -> None:
    counts = SampleCounts(CLASSES)
    truth, prediction = volume(0, 0, 0, 1, 1, 1, 2, 2), volume(0, 0, 1, 1, 1, 2, 2, 0)
    counts.add(scores_for(prediction[..., :4]), truth[..., :4])
    counts.add(scores_for(prediction[..., 4:]), truth[..., 4:])
    metrics = counts.metrics("train")
    assert metrics["train/accuracy"] == 5 / 8
    assert metrics["train/dice/anterior"] == 2 * 2 / (3 + 3)
    assert metrics["train/dice/posterior"] == 2 * 1 / (2 + 2)
    assert metrics["train/dice"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["train/sensitivity/anterior"] == 2 / 3
    assert metrics["train/precision/posterior"] == 1 / 2
    assert metrics["train/specificity/anterior"] == 4 / 5
    assert metrics["train/accuracy/posterior"] == 6 / 8
    # The whole foreground: a confusion of the two classes is none.
    assert metrics["train/dice/foreground"] == 2 * 4 / (5 + 5)


def test_ignored_voxels_do_not_count() -> None:
    counts, fewer = SampleCounts(CLASSES), SampleCounts(CLASSES)
    counts.add(scores_for(volume(1, 1, 2, 0)), volume(1, 2, -1, -1))
    fewer.add(scores_for(volume(1, 1)), volume(1, 2))
    assert counts.metrics("val") == fewer.metrics("val")
    nothing = SampleCounts(CLASSES)
    nothing.add(scores_for(volume(1)), volume(-1))
    assert nothing.metrics("val") == {}


def test_a_value_that_does_not_exist_is_left_out() -> None:
    counts = SampleCounts(CLASSES)
    counts.add(scores_for(volume(2, 1)), volume(1, 1))
    metrics = counts.metrics("val")
    assert "val/dice/posterior" not in metrics
    assert "val/sensitivity/posterior" not in metrics
    assert metrics["val/precision/posterior"] == 0.0
    assert "val/specificity/foreground" not in metrics
    assert metrics["val/dice"] == metrics["val/dice/anterior"]
    empty = SampleCounts(CLASSES)
    empty.add(scores_for(volume(0, 0)), volume(0, 0))
    assert "val/dice" not in empty.metrics("val")
    assert "val/precision/anterior" not in empty.metrics("val")


def test_counts_survive_32_bits() -> None:
    counts = SampleCounts(CLASSES)
    counts.add(scores_for(volume(1)), volume(1))
    counts.load_state_dict({name: tensor * 2**33 for name, tensor in counts.state_dict().items()})
    assert counts.metrics("val")["val/dice/anterior"] == 1.0


def test_a_class_called_foreground_beside_others_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be called 'foreground'"):
        SampleCounts(("background", "foreground", "lesion"))
    counts = SampleCounts(("background", "foreground"))
    counts.add(scores_for(volume(1, 0))[:, :2], volume(1, 0))
    assert counts.metrics("val")["val/dice"] == 1.0


def test_validation_averages_over_segments_in_inference_mode(
    network: Network, batches: Callable[[int, int, int], Batch]
) -> None:
    loss = Loss(LossSection(), 3)
    first, second = batches(0, 0, 0), batches(0, 1, 0)
    short = Batch(inputs=(second.inputs[0][:1],), target=second.target[:1], cases=second.cases[:1])

    def value(*parts: Batch) -> float:
        return validate_samples(network, parts, loss=loss, classes=CLASSES).metrics["val/loss"]

    before = network.norm.running_mean.clone()
    assert value(first, short) == pytest.approx((2 * value(first) + value(short)) / 3)
    assert torch.equal(network.norm.running_mean, before)
    assert network.training
    # Dropout is off, so the same segments give the same value.
    assert value(first) == value(first)
    assert validate_samples(network, [], loss=loss, classes=CLASSES).metrics == {}
    half = validate_samples(network, [first], loss=loss, classes=CLASSES, dtype=torch.bfloat16).metrics["val/loss"]
    assert half == pytest.approx(value(first), rel=0.03)
    assert half != value(first)
