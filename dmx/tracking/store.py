"""What the rest of the project sees of a run store: value objects, and protocols that know nothing of MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from dmx.errors import RunError

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED"]


class StoreSilentError(RunError):
    """Report a call to which nobody answers."""


class StoreRefusedError(RunError):
    """Report a call that the store understands and refuses, so that repeating it is of no use."""


class StoreClosedError(RunError):
    """Report a run that takes nothing until somebody brings it back: it or its experiment is in the trash, or gone."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run as the store knows it at one moment.

    Attributes:
        started: Milliseconds since 1970.
        ended: Milliseconds since 1970; ``None`` before the first end. A resumed run keeps its old one until it ends.
        artifact_uri: Root of the run's artifacts.
        metrics: The last value of each metric.
        cohorts: Context (``training``, ``validation``, ``evaluation``) → digest of the cases that the run has read.
    """

    id: str
    name: str
    experiment: str
    experiment_id: str
    status: Status
    started: int
    ended: int | None
    artifact_uri: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    cohorts: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return train, evaluate, predict, …; empty for a run of another program."""
        return self.tags.get("dmx.kind", "")


CHANGED: Final = "dmx.changed."
"""Beginning of the tags that say what a param became: a store never changes a param."""


def current_params(params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """Return the params of a run as they are by now, those that a resume changed included.

    >>> current_params({"epochs": "2", "lr": "0.1"}, {"dmx.changed.epochs": "4"})
    {'epochs': '4', 'lr': '0.1'}
    """
    changed = {key.removeprefix(CHANGED): value for key, value in tags.items() if key.startswith(CHANGED)}
    return {**params, **changed}


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric.

    Attributes:
        step: Global optimizer step.
        timestamp: Milliseconds since 1970; the same point sent twice with the same timestamp is stored once.
    """

    key: str
    value: float
    step: int
    timestamp: int


@dataclass(frozen=True, kw_only=True)
class CohortInput:
    """A cohort as the input of a run.

    Attributes:
        digest: Content hash; the store keeps its beginning together with the context.
        context: ``training``, ``validation`` or ``evaluation``.
        source: Where it lies: the manifest, relative to the project.
        summary: Numbers of cases and subjects, channels, classes.
    """

    name: str
    digest: str
    context: str
    source: str
    summary: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CheckpointModel:
    """A kept checkpoint as the store's model catalog shows it.

    Attributes:
        path: Path of the checkpoint below the run's artifacts; also identifies the model within the run.
        step: Global optimizer step.
        names: ``best``, ``last``, ``epoch=4``, …
    """

    path: str
    step: int
    names: tuple[str, ...] = ()


class RunReader(Protocol):
    """What can be asked of a store."""

    @property
    def uri(self) -> str:
        """Return where the store is, without any password."""

    def get_run(self, run_id: str) -> RunInfo:
        """Return a run by its full id, or raise ``RunError``."""

    def find_run(self, text: str) -> RunInfo:
        """Return the run that an id, a unique prefix, ``experiment/run-name`` or ``experiment/last`` names.

        The last one is the newest that holds a network: trained, fine-tuned, transferred or imported.
        """

    def list_runs(
        self,
        *,
        experiment: str | None = None,
        tags: Mapping[str, str] | None = None,
        containing: Mapping[str, str] | None = None,
        prefix: str = "",
        limit: int = 1000,
    ) -> list[RunInfo]:
        """Return the runs of this program, newest first; of all experiments when none is named.

        Args:
            experiment: Name of an experiment.
            tags: What the runs' tags must be.
            containing: What the runs' tags must contain.
            prefix: How their ids must begin.
            limit: Largest number of runs.
        """

    def metric_history(self, run_id: str, key: str) -> list[MetricPoint]:
        """Return all points of a metric in the order of their steps."""

    def local_artifacts(self, run_id: str) -> Path | None:
        """Return the run's artifact folder when it is a folder of this machine."""

    def list_artifacts(self, run_id: str, path: str = "") -> list[str]:
        """Return the paths directly below ``path``."""

    def download(self, run_id: str, path: str, target: Path) -> Path:
        """Copy an artifact (a file or a folder) below ``target`` and return where it is."""


class RunWriter(Protocol):
    """What can be told to a store. Every call but the first may be repeated without changing the result."""

    def create_run(self, experiment: str, *, name: str, tags: Mapping[str, str]) -> RunInfo:
        """Create a run in an experiment, which is created when it is new; this call makes another run each time."""

    def discard_run(self, run_id: str) -> None:
        """End a run and put it into the store's trash."""

    def rename_run(self, run_id: str, name: str) -> None:
        """Give a run another name."""

    def why_closed(self, run_id: str) -> str:
        """Return why a run takes nothing at all; empty where it takes what it is told."""

    def set_status(self, run_id: str, status: Status) -> None:
        """Set the status, with the end time when it is a final one."""

    def log_metrics(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Add points of metrics, any number."""

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Add params; a param that exists with another value raises ``RunError``."""

    def set_tags(self, run_id: str, tags: Mapping[str, str | None]) -> None:
        """Set tags; ``None`` removes one."""

    def log_cohort(self, run_id: str, cohort: CohortInput) -> None:
        """Add a cohort to the run's inputs."""

    def log_checkpoints(self, run_id: str, models: Sequence[CheckpointModel]) -> None:
        """Let a model of the store's catalog stand for each checkpoint, with the validation metrics of its step."""

    def upload(self, run_id: str, source: Path, folder: str = "") -> None:
        """Copy a file, or what is in a folder, below ``folder`` of the run's artifacts."""

    def log_image(self, run_id: str, picture: Path, *, key: str, point: tuple[int, int]) -> None:
        """Add a picture to the course of pictures of that key; ``point`` is (step, timestamp)."""

    def delete_artifacts(self, run_id: str, path: str) -> None:
        """Delete an artifact folder and the model that stands for it."""


class RunStore(RunReader, RunWriter, Protocol):
    """A place where runs are kept."""
