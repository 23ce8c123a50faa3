"""What `dmx model show` says of networks that score whole images or volumes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from dmx.cli import layers
from dmx.cli import model as command
from dmx.cohort.image import write_image
from dmx.config.freeze import FreezeSection
from dmx.config.model import ModelSection
from dmx.errors import ConfigError, ModelError
from dmx.model.alexnet import AlexNet
from dmx.model.image_network import ImageNetwork
from dmx.model.show_scores import ScoringReport, describe_scoring
from dmx.model.volume_classifier import build_volume_classifier
from dmx.transfer.freeze import FreezePlan
from dmx.transfer.freeze_parts import network_parts
from dmx.transfer.freeze_planning import plan_freeze

ALEXNET = """
name: faces
task: classification
stimuli: {{source: {source}{classes}}}
model: {{name: alexnet}}
freeze: {{layers: [conv1, fc2], unfreeze: {{3: {{layers: [fc2]}}}}}}
training: {{batch_size: 2}}
"""
VOLUMES = """
name: sizes
task: regression
cohort: {manifest: cohort.csv, targets: [age]}
model: {name: encoder_classifier, normal: {widths: [4, 4]}, subsampled: []}
"""


class Deciding(nn.Module):
    """A network that looks at values, which shapes do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(images.mean((2, 3)))
        return scores * 2 if self.training and bool(scores.sum() > 0) else scores


@pytest.fixture(scope="module")
def alexnet() -> ImageNetwork:
    with torch.device("meta"):
        return ImageNetwork(AlexNet(3), "alexnet", num_channels=3, num_classes=3)


def described(network: ImageNetwork, *, freeze: FreezePlan | None = None, size: int = 224) -> ScoringReport:
    plan = freeze or FreezePlan()
    return describe_scoring(network, (size, size), name="alexnet", outputs=("a", "b", "c"), freeze=plan, batch_size=2)


def test_alexnet_is_what_is_published(alexnet: ImageNetwork) -> None:
    report = described(alexnet)
    # 61.1 million with 1000 classes, 4097 a class; 714 million multiply-adds.
    assert report.parameters + 997 * 4097 == 61_100_840
    assert report.multiply_adds + 997 * 4096 == 714_188_480
    assert [layer.report.output_shape for layer in report.layers] == [
        *((55, 55), (27, 27), (13, 13), (13, 13), (13, 13), (4096,), (4096,), (3,))
    ]
    assert [layer.name for layer in report.layers if layer.is_head] == ["classifier.6"]
    assert report.training_bytes is not None
    assert report.prediction_bytes is not None
    # Weights, gradients and two numbers of the optimizer.
    assert report.training_bytes > 16 * report.parameters > 4 * report.parameters
    assert report.prediction_bytes < 8 * report.parameters


def test_what_is_frozen_needs_no_gradient(alexnet: ImageNetwork) -> None:
    free = described(alexnet)
    section = FreezeSection(layers=("features.0", "classifier.1", "classifier.4"))
    held = described(alexnet, freeze=plan_freeze(section, network_parts(alexnet)))
    assert [layer.name for layer in held.layers if layer.frozen_parameters] == list(section.layers)
    assert held.freeze.num_frozen_parameters() == sum(layer.frozen_parameters for layer in held.layers)
    assert held.training_bytes is not None
    assert free.training_bytes is not None
    assert held.training_bytes < free.training_bytes - 8 * held.freeze.num_frozen_parameters()
    assert held.prediction_bytes == free.prediction_bytes


def test_an_image_that_is_too_small_is_one_sentence(alexnet: ImageNetwork) -> None:
    with pytest.raises(ModelError, match="Network alexnet cannot take inputs of 30 x 30"):
        described(alexnet, size=30)


def test_memory_that_shapes_cannot_tell_is_not_told() -> None:
    report = describe_scoring(
        ImageNetwork(Deciding(), "own", num_channels=3, num_classes=2),
        (8, 8),
        name="own",
        outputs=("a", "b"),
        freeze=FreezePlan(),
    )
    assert report.training_bytes is None
    assert report.prediction_bytes is not None
    assert report.layers[0].report.multiply_adds == 6


def test_volumes_have_three_axes() -> None:
    section = ModelSection(name="encoder_classifier")
    network = build_volume_classifier(section, num_channels=2, num_outputs=2)
    report = describe_scoring(network, (20, 22, 24), name="x", outputs=("a", "b"), freeze=FreezePlan())
    assert report.layers[0].report.output_shape[-1] > 20
    assert report.layers[-1].report.output_shape == (2,)


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_command_shows_an_image_network(columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.out, "width", int(columns))
    for name in ("cat", "dog"):
        write_image(tmp_path / "faces" / name / "a.png", torch.zeros(9, 9, 3, dtype=torch.uint8).numpy())
    file = tmp_path / "faces.yaml"
    file.write_text(ALEXNET.format(source=tmp_path / "faces", classes=""))
    result = CliRunner().invoke(command.app, ["show", str(file)])
    assert result.exit_code == 0, result.output
    for words in ("conv5", "classifier.6", "(head)", "224×224 pixels → 2 scores: cat, dog", "from epoch 3 on", "fc2"):  # noqa: RUF001
        assert words in result.output
    assert max(map(len, result.output.splitlines())) <= int(columns)


def test_names_that_an_experiment_gives_are_enough(tmp_path: Path) -> None:
    file = tmp_path / "faces.yaml"
    file.write_text(ALEXNET.format(source="absent.csv", classes=", classes: [x, y, z]"))
    named = CliRunner().invoke(command.app, ["show", str(file), "--segment", "64", "--batch-size", "1"])
    assert "64×64 pixels → 3 scores: x, y, z" in named.output  # noqa: RUF001
    file.write_text(ALEXNET.format(source="absent.csv", classes=", classes: [x]"))
    assert isinstance(CliRunner().invoke(command.app, ["show", str(file)]).exception, ConfigError)


def test_the_command_shows_a_network_of_volumes(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("case,subject,channel_T1,target_age,split\na,a,a.nii,5,training\n")
    file = tmp_path / "sizes.yaml"
    file.write_text(VOLUMES)
    result = CliRunner().invoke(command.app, ["show", str(file)])
    assert result.exit_code == 0, result.output
    assert "32×32×32 voxels → 1 score: age" in result.output  # noqa: RUF001
    assert "normal.block_1" in result.output
    assert "--segment sets" in result.output
