"""AlexNet from training to the file that its usual class loads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import dmx
from dmx.cli.main import app
from dmx.workflows.train import train
from tests.workflows.conftest import session
from tests.workflows.tiny_images import image_settings, make_images


class Usual(nn.Module):
    """AlexNet with the names under which its weights are published, written from these alone."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
        layers: list[nn.Module] = []
        for number, (given, kept, kernel, stride, padding) in enumerate(sizes):
            layers += [nn.Conv2d(given, kept, kernel, stride, padding), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else []
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        hidden = [nn.Dropout(), nn.Linear(256 * 36, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(4096, 1000))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))
        return scores


@pytest.mark.slow
def test_what_is_exported_loads_into_the_usual_class(project: Path) -> None:
    given = image_settings(
        make_images(project),
        model={"name": "alexnet", "head": None},
        image_preprocess={"resize": 64, "crop": 64},
        training={"epochs": 1, "steps_per_epoch": 1},
        optimizer={"name": "sgd", "lr": 0.001},
        checkpoints={"keep_last": 1},
        validation={"every_epochs": 0, "score_train": False},
    )
    run = train(given, session(project)).run
    exported = CliRunner().invoke(app, ["export", run.id, "-o", "alexnet_tl.pth"])
    assert exported.exit_code == 0, exported.output
    network = Usual()
    network.classifier[6] = torch.nn.Linear(4096, 2)
    network.load_state_dict(torch.load("alexnet_tl.pth"))
    images = torch.rand(2, 3, 64, 64)
    ours = dmx.load_model(run.id, store=project / "mlruns")
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), ours(images), atol=1e-5)
        network.classifier[6].bias += 1
        assert not torch.allclose(network(images), ours(images), atol=1e-5)
