"""Train a network that was made in Python on batches that somebody else makes, as a run or without one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dmx.config.load import as_yaml, build_experiment
from dmx.config.sections import Experiment
from dmx.errors import ConfigError, suggest
from dmx.model.lifted import LiftedNetwork
from dmx.model.network import Network
from dmx.preprocess.contract import Contract, resolve_contract
from dmx.tracking.environment import environment, git_state
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.tracking.summary import BATCHES
from dmx.training.device import place, resolve_device
from dmx.training.loop import fit
from dmx.training.losses import Loss
from dmx.training.progress import require_metric
from dmx.training.samples import ValidationResult, validate_samples
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState, new_state
from dmx.training.step import DTYPES
from dmx.workflows.data import check_names
from dmx.workflows.feed import Feed, Item, Scores, probe
from dmx.workflows.freezing import flag_sentences, resolve_freezing
from dmx.workflows.handed import Handed
from dmx.workflows.identity import ancestors_text
from dmx.workflows.inputs import log_session
from dmx.workflows.params import network_params, optimization_params
from dmx.workflows.provenance import lineage, python_start
from dmx.workflows.saving import saver
from dmx.workflows.session import Session
from dmx.workflows.start import Start, log_start
from dmx.workflows.train import end_run, fit_in_run

_SECTIONS = ("training", "freeze", "optimizer", "schedule", "losses", "regularization", "checkpoints", "tracking")


@dataclass(frozen=True, kw_only=True)
class BatchRequest:
    """What to train, and on what.

    Attributes:
        handed: The network, and perhaps an optimizer.
        data: Batches of training, gone through once per epoch.
        settings: Sections of an experiment, with a ``name``; those that speak of a cohort are not allowed.
        validation: Batches that score the network after each epoch.
        score_train: Also score it on the training batches then.
        classes: Names of the classes; empty: made up.
        name: Name of the run.
    """

    handed: Handed
    data: Iterable[object]
    settings: Mapping[str, Any]
    validation: Iterable[object] | None = None
    score_train: bool = False
    classes: Sequence[str] = ()
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that can begin.

    Attributes:
        experiment: Settings, the number of steps included.
        contract: Names of channels and classes.
        network: The network as the core trains it.
        settings: Settings of the core.
        scores: What its scores look like.
        task: ``segmentation``, or ``classification`` where there is one label per image.
        feed: The training's batches.
        held_out: Those of the validation.
    """

    experiment: Experiment
    contract: Contract
    network: Network
    settings: FitSettings
    scores: Scores
    task: str
    feed: Feed
    held_out: Feed | None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a training of a network that was handed over has ended.

    Attributes:
        task: What the network learned.
        reason: ``finished``, ``stopped`` or ``early_stopping``.
        run: The run; ``None`` where none was made.
    """

    task: str
    reason: str
    run: RunInfo | None = None


def train_batches(request: BatchRequest, session: Session, *, as_run: bool) -> Ended:
    """Train on batches, as a run or without one.

    Raises:
        DmxError: Something that the user can mend, before the run exists whenever it can be known before.
    """
    # A look at the first batch of a shuffling DataLoader draws from torch's generator.
    with torch.random.fork_rng([]):
        ready = prepare(request)
    found = lineage(request.handed.model, prefix=request.handed.prefix)
    state = new_state(ready.network, ready.settings, received=found.received, optimizer=request.handed.optimizer)
    scoring = BatchScores(ready, request.score_train)
    validate = scoring if ready.held_out is not None or request.score_train else None

    def batches(epoch: int, _step: int, _part: int) -> Any:
        return ready.feed.next(epoch, ready.scores)

    if not as_run:
        for sentence in flag_sentences(ready.settings.freeze):
            session.warn(sentence)
        result = fit(state, batches, ready.settings, validate=validate, listeners=session.listeners, stop=session.stop)
        return Ended(task=ready.task, reason=result.reason)
    experiment = ready.experiment
    store = open_store(experiment.tracking.uri, session.root)
    start = Start(words=type(request.handed.model).__name__)
    target = experiment.tracking.experiment or experiment.name
    start = python_start(start, found, experiment=target, store=store.uri)
    with (
        start_run(store, _new_run(request, ready, start), root=session.root, notify=session.report.say) as run,
        session.keeping(run),
    ):
        session.report.say(f"Run {run.info.experiment}/{run.info.name} ({run.info.id[:8]}).")
        log_start(run, start)
        for sentence in flag_sentences(ready.settings.freeze):
            run.log_line(sentence)
        run.log_text("config.yaml", as_yaml(experiment))
        run.log_text("environment.json", json.dumps(environment(), indent=2))
        git = git_state(session.root)
        run.set_tags(git.tags())
        if git.diff and experiment.tracking.git_diff:
            run.log_text("git.diff", git.diff)
        log_session(run, experiment, session)
        result = fit_in_run(
            run,
            state,
            batches,
            settings=ready.settings,
            validate=validate,
            save=saver(ready, run_id=run.info.id, source=start.source),
            session=session,
        )
        end_run(run, result)
        return Ended(task=ready.task, reason=result.reason, run=run.info)


def prepare(request: BatchRequest) -> Prepared:
    """Check everything that can be checked, with a look at the first batch.

    Raises:
        DmxError: Something does not fit.
    """
    _check_sections(request.settings)
    handed = request.handed
    draft = _experiment(request, steps=1, segments=1)
    if draft.training.processes > 1:
        raise ConfigError(
            "training.processes must be 1 where batches are given in Python, which other processes do not have, got "
            f"{draft.training.processes}."
        )
    device = resolve_device(draft.training.device)
    feed = Feed(request.data, device=device, seed=draft.seed)
    held_out = None
    if request.validation is not None:
        held_out = Feed(request.validation, device=device, seed=draft.seed, what="The validation data")
    item = feed.first()
    network, scores = _network(handed, item)
    if held_out is not None:
        probe(network, held_out.first())
    steps = len(feed) // draft.training.accumulate
    if not steps:
        raise ConfigError(
            f"training.accumulate must be at most the number of batches, {len(feed)}, got {draft.training.accumulate}."
        )
    experiment = _experiment(request, steps=steps, segments=len(item))
    task = "segmentation" if scores.axes else "classification"
    if task == "classification" and held_out is not None and experiment.checkpoints.best_metric == "auto":
        experiment = replace(experiment, checkpoints=replace(experiment.checkpoints, best_metric="val/accuracy"))
    require_metric(experiment.checkpoints, validated=held_out is not None)
    contract = _contract(experiment, item, scores, classes=request.classes)
    plan = resolve_freezing(experiment, network)
    return Prepared(
        experiment=experiment,
        contract=contract,
        network=network,
        settings=FitSettings.of(experiment, contract.classes, freeze=plan),
        scores=scores,
        task=task,
        feed=feed,
        held_out=held_out,
    )


def _check_sections(settings: Mapping[str, Any]) -> None:
    for key in settings:
        if key not in (*_SECTIONS, "name", "seed"):
            raise ConfigError(
                f"With batches, settings may hold {', '.join(_SECTIONS)}, got '{key}'.{suggest(key, _SECTIONS)}"
            )
    if "steps_per_epoch" in settings.get("training", {}):
        raise ConfigError("training.steps_per_epoch must be left out: an epoch goes through the batches once.")


def _experiment(request: BatchRequest, *, steps: int, segments: int) -> Experiment:
    """Return the settings; those of the cohort say that there is none."""
    raw = dict(request.settings)
    words = request.handed.words()
    training = {**raw.get("training", {}), "steps_per_epoch": steps}
    training.setdefault("batch_size", segments)
    optimizer = {**words.pop("optimizer", {}), **raw.get("optimizer", {})}
    return build_experiment(
        {
            **raw,
            **words,
            "training": training,
            "optimizer": optimizer,
            "cohort": {"manifest": ""},
            "preprocess": {"orientation": "native", "normalize": {"method": "none"}},
        },
        source="settings",
    )


def _network(handed: Handed, item: Item) -> tuple[Network, Scores]:
    """Return the network on the device of a batch, and what it gives for it."""
    model = handed.model
    if isinstance(model, Network):
        place(model, item.labels.device, channels_last=False)
        return model, probe(model, item)
    channels = int(item.inputs[0].shape[1]) if item.inputs[0].ndim > 1 else 1
    network = LiftedNetwork(model, type(model).__name__, num_channels=channels, num_classes=2, head=handed.head)
    place(network, item.labels.device, channels_last=False)
    scores = probe(network, item)
    network.num_classes = scores.classes
    return network, scores


def _contract(experiment: Experiment, item: Item, scores: Scores, *, classes: Sequence[str]) -> Contract:
    channels = int(item.inputs[0].shape[1]) if item.inputs[0].ndim > 1 else 1
    first = "background" if scores.axes else "class_0"
    names = tuple(classes) or (first, *(f"class_{k}" for k in range(1, scores.classes)))
    if len(names) != scores.classes:
        raise ConfigError(f"classes must name the {scores.classes} classes that the network scores, got {list(names)}.")
    contract = resolve_contract(
        experiment.cohort,
        experiment.preprocess,
        cases=(),
        channels=tuple(f"channel_{k}" for k in range(channels)),
        classes=names,
        compatibility=experiment.compatibility,
    )
    check_names(contract)
    return contract


def _new_run(request: BatchRequest, ready: Prepared, start: Start) -> NewRun:
    experiment = ready.experiment
    return NewRun(
        experiment=experiment.tracking.experiment or experiment.name,
        kind=start.kind,
        words=start.words,
        name=request.name,
        params={
            **network_params(experiment, ready.contract, ready.network),
            **optimization_params(experiment, ready.network, ready.settings.freeze),
            "task": ready.task,
            "optimizer_state": start.reason,
            **request.handed.params(),
            **start.params,
        },
        tags={"dmx.task": ready.task, "dmx.optimizer_state": start.reason, BATCHES: "given in Python", **start.tags},
        note=experiment.description,
        texts=ancestors_text(start.seen),
    )


class BatchScores:
    """Scores the network of a training after each epoch; what :func:`dmx.training.loop.fit` asks for.

    Args:
        ready: The training.
        score_train: Also score it on the training batches.
    """

    def __init__(self, ready: Prepared, score_train: bool) -> None:
        self._ready = ready
        self._score_train = score_train
        self._loss = Loss.of(ready.settings)

    def __call__(self, state: TrainState, epoch: int) -> ValidationResult:
        """Return the scores after this many epochs."""
        metrics: dict[str, float] = {}
        if self._ready.held_out is not None:
            metrics |= self._scored(state, self._ready.held_out, epoch)
        if self._score_train:
            measure = "dice" if self._ready.task == "segmentation" else "accuracy"
            found = self._scored(state, self._ready.feed, epoch)
            if f"val/{measure}" in found:
                metrics[f"score_train/{measure}"] = found[f"val/{measure}"]
        return ValidationResult(metrics=metrics)

    def _scored(self, state: TrainState, feed: Feed, epoch: int) -> dict[str, float]:
        settings = self._ready.settings
        result = validate_samples(
            state.model,
            feed.batches(self._ready.scores),
            loss=self._loss,
            classes=settings.classes,
            epoch=float(epoch),
            dtype=DTYPES[settings.training.precision],
        )
        if self._ready.task == "segmentation":
            return dict(result.metrics)
        # The measures of voxels mean nothing for one label per image.
        return {key: value for key, value in result.metrics.items() if key in ("val/loss", "val/accuracy")}
