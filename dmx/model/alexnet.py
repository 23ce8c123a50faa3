"""AlexNet, with the layers, names and shapes of torchvision's, so that its published weights fit as they are."""

from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

ALIASES: Final[Mapping[str, str]] = {
    "conv1": "features.0",
    "conv1_relu": "features.1",
    "conv1_maxpool": "features.2",
    "conv2": "features.3",
    "conv2_relu": "features.4",
    "conv2_maxpool": "features.5",
    "conv3": "features.6",
    "conv3_relu": "features.7",
    "conv4": "features.8",
    "conv4_relu": "features.9",
    "conv5": "features.10",
    "conv5_relu": "features.11",
    "conv5_maxpool": "features.12",
    "fc1": "classifier.1",
    "fc1_relu": "classifier.2",
    "fc2": "classifier.4",
    "fc2_relu": "classifier.5",
    "fc3": "classifier.6",
}
"""Short names of the layers, those of DNNBrain, and the modules that they stand for."""

_POOLED = 6
_HIDDEN = 4096


class AlexNet(nn.Module):
    """Five convolutions and three linear layers.

    Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, section 5: the variant without
    local response normalization, in one tower.

    Args:
        num_outputs: Classes, or targets of a regression.
        num_channels: Channels of the images.
        dropout: Share of the features that is dropped before each hidden linear layer in training.
    """

    def __init__(self, num_outputs: int = 1000, *, num_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(num_channels, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * _POOLED * _POOLED, _HIDDEN),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, num_outputs),
        )

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Return scores [N, outputs] of images [N, C, H, W] of at least 63 pixels a side."""
        scores: Tensor = self.classifier(self.avgpool(self.features(image_NCHW)).flatten(1))
        return scores
