"""Where the first weights of a training come from, and how its run says so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from torch import Tensor

from dmx.tracking.lineage import Source, source_tags
from dmx.tracking.location import mask
from dmx.tracking.session import ActiveRun
from dmx.workflows.identity import Seen
from dmx.workflows.trained import TrainedNetwork

_WARNING = "Warning: "

SOURCE_STORE: Final = "dmx.source_store"
"""Tag that names the store of the source run where it is another than the run's own."""

PARENT: Final = "mlflow.parentRunId"

Kind = Literal["train", "finetune", "transfer"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The beginning of a training.

    Attributes:
        kind: Kind of its run.
        words: What distinguishes the run; part of its name.
        weights: First weights; ``None``: from the seed.
        optimizer: State of the source's optimizer where it is kept.
        uninitialized: Whether the network never had an optimizer.
        reset: Whether a new optimizer was asked for.
        reason: Why, for the tag ``dmx.optimizer_state``.
        sentences: What to say before the training.
        warnings: What to warn of before the training.
        tags: Tags that name the source.
        params: Params that name the source.
        source: The same for the checkpoints.
        texts: Further artifacts by path.
        received: Parameter → how it came from the source: ``copied``, ``sliced`` or ``adapted``.
        metrics: Values measured before the first step.
        seen: Whom the sources, and theirs, have seen.
    """

    kind: Kind = "train"
    words: str
    weights: Mapping[str, Tensor] | None = None
    optimizer: Mapping[str, Any] | None = None
    uninitialized: bool = True
    reset: bool = False
    reason: str = "initialized: new network"
    sentences: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, object] = field(default_factory=dict)
    source: Mapping[str, Any] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    received: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seen: Sequence[Seen] = ()

    @property
    def optimizer_sentence(self) -> str:
        """Say whether the optimizer began anew."""
        verb = "kept" if self.optimizer is not None else "initialized"
        return f"Optimizer {verb}. Uninitialized: {_yes(self.uninitialized)}. Reset requested: {_yes(self.reset)}."


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def log_start(run: ActiveRun, start: Start) -> None:
    """Keep what a beginning says: artifacts, values, and its sentences in the log."""
    for path, text in start.texts.items():
        run.log_text(path, text)
    run.log_metrics(start.metrics, 0)
    for sentence in start.sentences:
        if sentence.startswith(_WARNING):
            # Those of a plan are shown among its lines.
            run.summary.warn(sentence.removeprefix(_WARNING))
        else:
            run.log_line(sentence)


def source_params(trained: TrainedNetwork) -> dict[str, object]:
    """Return the params that say which network was used."""
    return {
        "source.run": f"{trained.run.experiment}/{trained.run.name}",
        "source.checkpoint": trained.checkpoint_name,
        "source.epochs": trained.manifest["epoch"],
        "source.step": trained.manifest["global_step"],
    }


def trained_tags(trained: TrainedNetwork, *, experiment: str | None = None) -> dict[str, str]:
    """Return the tags that name the source run.

    Args:
        trained: The source.
        experiment: MLflow experiment of the new run; ``None``: that of the source.
    """
    source = Source(run=trained.run, checkpoint=f"checkpoints/{trained.folder.name}", sha256=trained.sha256)
    return {
        "dmx.task": trained.experiment.task,
        **source_tags([source], experiment=experiment or trained.run.experiment),
    }


def across_stores(tags: Mapping[str, str], source: str, target: str) -> dict[str, str]:
    """Return the tags that name a source, which say its store where that is not the new run's.

    MLflow nests runs within one store only: a parent of another one would be a link to nothing.

    Args:
        tags: Tags that name the source.
        source: Address of its store.
        target: Address of the store of the new run.
    """
    if source == target:
        return dict(tags)
    return {**{key: value for key, value in tags.items() if key != PARENT}, SOURCE_STORE: mask(source)}


def described_source(trained: TrainedNetwork) -> dict[str, Any]:
    """Return what the checkpoints of a new run say about their source."""
    return {
        "run_id": trained.run.id,
        "run": f"{trained.run.experiment}/{trained.run.name}",
        "checkpoint": f"checkpoints/{trained.folder.name}",
        "sha256": trained.sha256,
        "epoch": trained.manifest["epoch"],
        "global_step": trained.manifest["global_step"],
    }
