"""Everything that a training is, at any moment: saved and loaded, it goes on as if it had never stopped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from dmx.cohort.regions import Regions
from dmx.config.tasks import Task
from dmx.errors import CheckpointError
from dmx.model.meta import mode
from dmx.model.network import TrainableNetwork
from dmx.training.average import MovingAverage
from dmx.training.device import place, resolve_device
from dmx.training.optimizers import Optimizer, Updater
from dmx.training.origin import Origin
from dmx.training.position import Position
from dmx.training.ready import ReadyOptimizer
from dmx.training.samples import SampleCounts
from dmx.training.schedules import Schedule
from dmx.training.settings import FitSettings

Forward = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


@dataclass
class Best:
    """The best value so far of the metric that names the best checkpoint.

    Attributes:
        metric: Name of the metric; empty before the first value.
        value: Its best value.
        epoch: Epochs done when it was measured.
    """

    metric: str = ""
    value: float | None = None
    epoch: int = 0


@dataclass
class Patience:
    """Whether a training has waited too long for a better value; part of its state, or a resume would train on.

    Attributes:
        since: Epochs done when it began to wait anew, because more epochs were asked for.
        over: Epochs that the training was to have when it was ended early; 0: it was not.
    """

    since: int = 0
    over: int = 0


class EpochRecord:
    """What has been added up in the running epoch.

    Args:
        classes: Names of the classes.
        device: Device that trains.
        task: What the network learns.
        regions: Regions of the classes, one output of the network for each.

    Attributes:
        task: What the network learns.
        sums: ``steps``, ``segments``, ``seconds``, ``sampling``, ``loss`` and ``loss/<term>``, summed over the steps.
        counts: Voxel counts of the training segments.
    """

    def __init__(
        self,
        classes: Sequence[str],
        device: torch.device,
        *,
        task: Task = "segmentation",
        regions: Regions | None = None,
    ) -> None:
        self.task = task
        self.sums: dict[str, float] = {}
        self.counts = SampleCounts(classes, device, regions=regions)

    def add_step(
        self, loss: float, terms: Mapping[str, float], *, segments: int, seconds: float, sampling_seconds: float
    ) -> None:
        """Add the values of a step."""
        values = {
            "steps": 1.0,
            "segments": float(segments),
            "seconds": seconds,
            "sampling": sampling_seconds,
            "loss": loss,
            **{f"loss/{name}": value for name, value in terms.items()},
        }
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """Return the means of the epoch: ``train/…``, ``time/…``, ``system/…``."""
        sums = self.sums
        terms = {name.partition("/")[2]: value for name, value in sums.items() if name.startswith("loss/")}
        return {
            "train/mean_loss": sums["loss"] / sums["steps"],
            **{f"train/loss_{name}": value / sums["steps"] for name, value in terms.items()},
            **self._counted(),
            f"system/{self._unit}_per_second": sums["segments"] / max(sums["seconds"], 1e-9),
            "time/training": sums["seconds"],
            "time/sampling": sums["sampling"],
        }

    @property
    def _unit(self) -> str:
        return "segments" if self.task == "segmentation" else "cases"

    def _counted(self) -> dict[str, float]:
        """Return what was counted; the measures of voxels mean nothing for one label per image."""
        metrics = self.counts.metrics("train")
        if self.task == "segmentation":
            return metrics
        return {key: value for key, value in metrics.items() if key == "train/accuracy"}

    def clear(self) -> None:
        """Begin a new epoch."""
        self.sums.clear()
        self.counts.counts.zero_()
        self.counts.totals.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {"sums": dict(self.sums), "counts": self.counts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over sums."""
        self.sums = dict(state["sums"])
        self.counts.load_state_dict(state["counts"])


@dataclass
class TrainState:
    """A training at one moment.

    Attributes:
        model: The network, on its device.
        forward: What a step calls: the outputs of the network, auxiliary ones included, compiled if that is wished.
        optimizer: Updates the parameters.
        schedule: Gives the learning rate.
        scaler: Loss scaler of fp16; None otherwise.
        average: Moving average of the weights; None when there is none.
        device: Device that trains.
        record: Sums of the running epoch.
        origin: What is kept of the weights at the beginning.
        position: What has been done.
        best: Best value so far.
        patience: Whether it was ended early.
        last_checkpoint: Name of the newest complete checkpoint, for error messages; whoever saves one sets it.
    """

    model: TrainableNetwork
    forward: Forward
    optimizer: Updater
    schedule: Schedule
    scaler: torch.amp.GradScaler | None
    average: MovingAverage | None
    device: torch.device
    record: EpochRecord
    origin: Origin = field(default_factory=Origin)
    position: Position = field(default_factory=Position)
    best: Best = field(default_factory=Best)
    patience: Patience = field(default_factory=Patience)
    last_checkpoint: str | None = None

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Put the network into inference mode, with the averaged weights if there are any, for a block.

        Afterwards each module is again in the mode it was in: frozen ones were in inference mode before.
        """
        averaged = nullcontext() if self.average is None else self.average.applied(self.model)
        with mode(self.model, training=False), averaged:
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as tensors and plain values.

        Returns:
            ``model``: the weights; ``average``: the averaged weights or None; ``training``: the rest. The tensors are
            the training's own: copy or write them before the next step.
        """
        training = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average_updates": None if self.average is None else self.average.updates,
            "position": asdict(self.position),
            "best": asdict(self.best),
            "patience": asdict(self.patience),
            "record": self.record.state_dict(),
            "origin": self.origin.state_dict(),
        }
        average = None if self.average is None else self.average.tensors
        return {"model": self.model.state_dict(), "average": average, "training": training}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over everything.

        Raises:
            CheckpointError: The state is that of another network or of other settings.
        """
        training = state["training"]
        for name, wanted, got in (
            ("loss scaler (training.precision: fp16)", self.scaler, training["scaler"]),
            ("moving average (training.moving_average)", self.average, state["average"]),
        ):
            if (wanted is None) != (got is None):
                has, lacks = ("settings have", "state lacks") if got is None else ("state has", "settings lack")
                raise CheckpointError(f"The {has} a {name} that the {lacks}. Resume with the settings of the run.")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise CheckpointError(f"The weights do not fit the network: {error}") from error
        self.optimizer.load_state_dict(training["optimizer"])
        self.schedule.load_state_dict(training["schedule"])
        if self.scaler is not None:
            self.scaler.load_state_dict(training["scaler"])
        if self.average is not None:
            self.average.load(state["average"], training["average_updates"])
        self.record.load_state_dict(training["record"])
        if "origin" in training:
            self.origin.load_state_dict(training["origin"], self.model)
        self.position = Position(**training["position"])
        self.best = Best(**training["best"])
        self.patience = Patience(**training.get("patience", {}))


def new_state(
    model: TrainableNetwork,
    settings: FitSettings,
    *,
    received: Mapping[str, str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> TrainState:
    """Prepare a training that has not begun: the network on its device, everything else fresh.

    Args:
        model: The network, with the weights it begins with.
        settings: Settings.
        received: Parameter → how it came from a source (``copied``, ``sliced``, ``adapted``); ``None``: none did, or
            the state is to be loaded, which knows it.
        optimizer: An optimizer of torch to use as it is, instead of that of the settings; only the parameters that it
            has train, from its own learning rates.

    Raises:
        ConfigError: The device is absent or the settings do not fit each other.
    """
    training = settings.training
    device = resolve_device(training.device)
    place(model, device, channels_last=training.channels_last)
    forward = cast(Forward, torch.compile(model.outputs) if training.compile else model.outputs)
    ready = None if optimizer is None else ReadyOptimizer(model.named_parameters(), optimizer)
    return TrainState(
        model=model,
        forward=forward,
        optimizer=ready
        or Optimizer(
            model.named_parameters(),
            settings.optimizer,
            kernels=model.kernel_parameters(),
            compatibility=settings.compatibility,
        ),
        schedule=Schedule(
            settings.schedule,
            lr=settings.optimizer.lr if ready is None else ready.base,
            epochs=training.epochs,
            steps_per_epoch=training.steps_per_epoch,
            compatibility=settings.compatibility,
        ),
        scaler=torch.amp.GradScaler(device.type) if training.precision == "fp16" else None,
        average=None if training.moving_average is None else MovingAverage(model, training.moving_average),
        device=device,
        record=EpochRecord(settings.classes, device, task=settings.task, regions=settings.regions),
        origin=Origin.of(model, received or {}, keep_sources=settings.regularization.l2_to_source > 0),
    )
