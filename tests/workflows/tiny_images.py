"""A network of images that learns something in a second, and images for it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from dmx.cohort.image import write_image
from dmx.config.load import build_experiment
from dmx.config.sections import Experiment
from dmx.config.trust import trust_given

NAME = "tests.workflows.tiny_images:small"
CLASSES = ("dark", "light")
PER_SPLIT = {"training": 10, "validation": 6, "evaluation": 6}


class Small(nn.Module):
    """Two convolutions with normalization and dropout, and a head that has dropout of its own."""

    def __init__(self, num_outputs: int, *, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(width, 8, 3)
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, num_outputs))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(images).relu().mean((2, 3)))
        return scores


def small(in_channels: int, out_channels: int, width: int = 6) -> nn.Module:
    assert in_channels == 3
    return Small(out_channels, width=width)


def make_images(folder: Path, *, shift: int = 0, name: str = "gray") -> Path:
    """Make a table of gray images in three splits: dark and light ones, of which each is told by its brightness."""
    rows = ["path,label,brightness,split"]
    for split, count in PER_SPLIT.items():
        for index in range(count):
            rng = np.random.default_rng([shift, index, len(split) + (split == "evaluation")])
            light = index % 2
            level = 60 + 90 * light + int(rng.integers(0, 30))
            picture = np.clip(rng.normal(level, 20, (24, 28 + index, 3)), 0, 255).astype(np.uint8)
            file = folder / name / f"{split}_{index}.png"
            write_image(file, picture)
            rows.append(f"{name}/{file.name},{CLASSES[light]},{level / 100},{split}")
    table = folder / f"{name}.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def raw_settings(source: Path | str, **sections: object) -> dict[str, object]:
    raw: dict[str, object] = {
        "name": "gray",
        "task": "classification",
        "stimuli": {"source": str(source)},
        "image_preprocess": {"resize": 20, "crop": 16},
        "sampling": {"workers": 0},
        "model": {"name": NAME, "head": "head"},
        "training": {"epochs": 2, "batch_size": 4},
        "optimizer": {"name": "adam", "lr": 0.01},
        "regularization": {"l1": 0.0, "l2": 0.0},
        "validation": {"score_train": True},
    }
    for name, changes in sections.items():
        current = raw.get(name, {})
        raw[name] = {**current, **changes} if isinstance(current, dict) and isinstance(changes, Mapping) else changes
    trust_given(raw)
    return raw


def image_settings(source: Path | str, **sections: object) -> Experiment:
    raw = raw_settings(source, **sections)
    return build_experiment(raw)
