"""What a notebook does with dmx: train, transfer, freeze, train the head as a run, load, export.

Every paragraph is a cell (`# %%`); Jupyter, VS Code and PyCharm open the file as a notebook. It needs no data and no
GPU and takes some seconds.
"""

# %% A network of one's own, and scans that are made up: bright balls in noise; a second kind of ball is brighter.
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import dmx


class Net(nn.Module):
    """Three convolutions and a head; nothing of dmx in it."""

    def __init__(self, width: int, *, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        self.conv3 = nn.Conv3d(width, width, 3, padding=1)
        self.head = nn.Conv3d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores [N, classes, I, J, K] of scans [N, 1, I, J, K]."""
        features = torch.relu(self.norm(self.conv1(x)))
        features = torch.relu(self.conv3(torch.relu(self.conv2(features))))
        scores: Tensor = self.head(features)
        return scores


def balls(count: int, *, classes: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of four scans [4, 1, 16, 16, 16] with their label maps [4, 16, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.arange(16.0)] * 3, indexing="ij"))
    batches = []
    for _ in range(count):
        labels = torch.zeros(4, 16, 16, 16, dtype=torch.int64)
        for label_map in labels:
            for label in range(1, classes):
                center = 4 + 8 * torch.rand(3, 1, 1, 1, generator=generator)
                label_map[((grid - center) ** 2).sum(0) < 16] = label
        noise = torch.randn(4, 1, 16, 16, 16, generator=generator)
        batches.append((labels[:, None] + 0.7 * noise, labels))
    return batches


torch.manual_seed(0)
loss = {"cross_entropy": 1.0, "soft_dice": 1.0}

# %% Train it on what gives (inputs, labels): a list here, a DataLoader as well. Without a store nothing is kept.
source = Net(6, classes=2)
first = dmx.train(
    source,
    balls(8, classes=2, seed=1),
    validation=balls(2, classes=2, seed=2),
    epochs=8,
    lr=0.02,
    loss=loss,
    score_train=True,
)
print(first)

# %% What would a wider network for three classes receive from it?
target = Net(10, classes=3)
plan = dmx.plan_transfer(source, target)
print(plan)

# %% Let it receive that, and freeze its first layers; what they did not receive stays as it was drawn.
plan.apply(target)
frozen = dmx.freeze(target, layers=["conv1", "norm", "conv2"])
print(frozen)

# %% Train the head alone with an Adam of one's own, as a run of a store.
folder = tempfile.TemporaryDirectory()
runs = Path(folder.name) / "mlruns"
before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
second = dmx.train(
    target,
    balls(8, classes=3, seed=3),
    validation=balls(2, classes=3, seed=4),
    epochs=6,
    optimizer=torch.optim.Adam(target.head.parameters(), lr=0.02),
    loss=loss,
    freeze=frozen,
    classes=["background", "dark", "bright"],
    store=runs,
    experiment="balls",
    name="head-only",
)
print(second)
changed = [name for name, tensor in target.state_dict().items() if not torch.equal(tensor, before[name])]
print("Changed:", ", ".join(changed))

# %% Then all that is not frozen, from where the head is now.
third = dmx.train(
    target,
    balls(8, classes=3, seed=3),
    validation=balls(2, classes=3, seed=4),
    epochs=6,
    lr=0.005,
    loss=loss,
    freeze=frozen,
    classes=["background", "dark", "bright"],
    store=runs,
    experiment="balls",
    name="unfrozen-part",
)
print(third)

# %% The run knows weights and course; the module is one's own, so one makes it and lets it be filled.
loaded = dmx.load_model("balls/unfrozen-part", checkpoint="last", into=Net(10, classes=3), store=runs)
same = all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in loaded.state_dict().items())
print("Loaded weights are those of the training:", same)
print("Its history has", sum(map(len, dmx.history("balls/unfrozen-part", store=runs).step_loss)), "steps.")

# %% A file for any other program.
file = dmx.export("balls/unfrozen-part", Path(folder.name) / "net.pth", checkpoint="last", store=runs)
Net(10, classes=3).load_state_dict(torch.load(file, weights_only=True))
print("Exported", file.name)
folder.cleanup()
