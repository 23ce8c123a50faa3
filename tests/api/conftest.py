"""The project of the workflow tests, and networks and batches that somebody has made by hand."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.workflows.conftest import manifest, migrated, project

__all__ = ["manifest", "migrated", "project"]


class Small(nn.Module):
    """A network of one's own: two convolutions, normalization, dropout, a head."""

    def __init__(self, width: int = 4, *, classes: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm3d(width)
        self.drop = nn.Dropout(0.2)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        self.head = nn.Conv3d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.conv2(self.drop(torch.relu(self.norm(self.conv1(x)))))))
        return scores


def small(width: int = 4, *, seed: int = 0, classes: int = 2) -> Small:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Small(width, classes=classes)


def volumes(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    scans = [torch.randn(2, 1, 6, 6, 6, generator=generator) for _ in range(count)]
    return [(scan, (scan[:, 0] > 0.3).long()) for scan in scans]


def convolution(channels: int, classes: int, *, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv3d(channels, classes, 1))


def images(*, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(2)
    pictures = torch.randn(12, 3, 8, 8, generator=generator)
    labels = (pictures.mean((1, 2, 3)) > 0).long()
    return DataLoader(TensorDataset(pictures, labels), batch_size=4, shuffle=shuffle)


def classifier() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
