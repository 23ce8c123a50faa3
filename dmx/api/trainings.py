"""Train any network."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from dmx.api.frozen import Frozen
from dmx.api.models import stored_origin
from dmx.api.places import Logged, locate, open_place
from dmx.api.results import Keeper, Training
from dmx.config.freeze import FreezeSection
from dmx.config.load import build_experiment
from dmx.errors import ConfigError
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunInfo
from dmx.training.loop import fit
from dmx.transfer.freeze import FreezePlan
from dmx.workflows.assemble import assemble, check_training
from dmx.workflows.batches import BatchRequest, Ended, train_batches
from dmx.workflows.freezing import flag_sentences
from dmx.workflows.handed import Handed, freeze_section
from dmx.workflows.provenance import lineage, python_leaks, python_start, remember
from dmx.workflows.session import Session
from dmx.workflows.start import Start
from dmx.workflows.train import run_training
from dmx.workflows.trained import stored_checkpoint

Settings = Mapping[str, Any]


def train(
    model: nn.Module,
    data: str | Path | Iterable[object],
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float | None = None,
    loss: str | Settings | None = None,
    validation: Iterable[object] | None = None,
    score_train: bool = False,
    freeze: Frozen | None = None,
    classes: Sequence[str] = (),
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    settings: Settings | None = None,
    allow_leak: bool = False,
    store: str | Path | None = None,
    experiment: str | None = None,
    name: str | None = None,
) -> Training:
    """Train a network that you have made, in place; with a store as a run, without one nothing is kept.

    `data` is the path of a manifest, from which dmx samples segments of the cases of split ``training`` and scores
    those of ``validation``; or batches: a DataLoader, a list, anything that can be gone through again and again and
    gives pairs (inputs, labels). Inputs are ``[N, channels, …]``, for scores ``[N, classes, …]`` of up to three axes
    of space; labels are whole numbers of the size of the scores, ``[N]`` for one label per image or scan, -1 where
    none counts. An epoch goes through the batches once.

    Defaults are those of an experiment (``dmx config show`` lists them): rmsprop, a falling learning rate, small
    penalties on the kernels. With a ready `optimizer` none of that is added: its own learning rates stay constant and
    there are no penalties, unless `settings` ask for them. What the optimizer does not have stays bit for bit as it is:
    those parameters, and the norm statistics of layers of which it has none.

    Args:
        model: Any module, or a network of dmx. It is left on the device that trained, in inference mode.
        data: Manifest, or batches.
        epochs: Number of epochs.
        optimizer: An optimizer of torch with some or all of the network's parameters, used as it is.
        lr: Learning rate before the schedule, without `optimizer`.
        loss: ``cross_entropy``, ``soft_dice`` or ``soft_iou``, or the section ``losses`` of an experiment.
        validation: Batches that score the network after each epoch; a manifest has its own.
        score_train: Also score it on the training batches after each epoch, in inference mode.
        freeze: What ``dmx.freeze`` returned for this network.
        classes: Names of the classes when batches are given; a manifest names its own.
        batch_size: Segments per step when a manifest is given; batches have their size.
        seed: Seed of every random draw, the order of a shuffling DataLoader included.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        settings: Further settings, the sections of an experiment: ``{"sampling": {"segment": 32}}``.
        allow_leak: Go on when validation cases were in the training of a run that the weights come from.
        store: Address of a run store or a folder ``mlruns``: the training is a run there. ``None``: no run.
        experiment: The run's MLflow experiment; ``None``: ``python``.
        name: The run's name.

    Returns:
        The network, its history and the run.

    Raises:
        DmxError: Something that can be mended, in one sentence.
    """
    handed = Handed(model=model, head=None if freeze is None else freeze.head_name, optimizer=optimizer)
    words = _words(settings, handed, lr=lr, loss=loss)
    words |= {"seed": seed, "name": experiment or "python", "freeze": _frozen(handed, freeze, words)}
    words["training"] = {"device": device, **words.get("training", {}), "epochs": epochs}
    uri, root = locate(store)
    if store is None and (experiment or name):
        raise ConfigError("experiment and name belong to a run; give a store to make one.")
    words["tracking"] = {**words.get("tracking", {}), "uri": uri}
    keeper = Keeper()
    session = Session(root=root, report=Logged(), listeners=(keeper,))
    with _same_flags(model, () if freeze is None else freeze.plan.parameters):
        if isinstance(data, str | Path):
            if validation is not None or score_train or classes:
                raise ConfigError("validation, score_train and classes belong to batches; a manifest names its own.")
            if batch_size is not None:
                words["training"]["batch_size"] = batch_size
            ended = _on_manifest(
                Path(data), words, handed, session, name=name, as_run=store is not None, allow_leak=allow_leak
            )
        else:
            if batch_size is not None:
                raise ConfigError("batch_size belongs to a manifest; batches have the size that they have.")
            request = BatchRequest(
                handed=handed,
                data=data,
                settings=words,
                validation=validation,
                score_train=score_train,
                classes=classes,
                name=name,
            )
            ended = train_batches(request, session, as_run=store is not None)
    if ended.run is not None:
        _remember_run(model, ended.run, store)
    return Training(model=model.eval(), history=keeper.history(ended.task), run=ended.run, reason=ended.reason)


def _remember_run(model: nn.Module, run: RunInfo, store: str | Path | None) -> None:
    """Note on a module that it has the last weights of a run."""
    opened, session = open_place(store)
    stored = stored_checkpoint(opened, run.id, checkpoint="last", root=session.root)
    remember(model, stored_origin(stored, opened.uri, session.root))


def _words(
    settings: Settings | None, handed: Handed, *, lr: float | None, loss: str | Settings | None
) -> dict[str, Any]:
    """Return the settings with what has an argument of its own."""
    words = {key: dict(value) if isinstance(value, Mapping) else value for key, value in (settings or {}).items()}
    for key in ("model", "compatibility", "seed", "name"):
        if key in words:
            raise ConfigError(f"settings must not hold '{key}': it follows from the arguments of train.")
    if handed.optimizer is not None:
        if lr is not None or "optimizer" in words:
            raise ConfigError("A ready optimizer has its own learning rates and settings; leave lr and optimizer out.")
        words = {"schedule": {"name": "constant"}, "regularization": {"l1": 0.0, "l2": 0.0}, **words}
    if lr is not None:
        words["optimizer"] = {**words.get("optimizer", {}), "lr": lr}
    if loss is not None:
        words["losses"] = {"cross_entropy": 0.0, loss: 1.0} if isinstance(loss, str) else dict(loss)
    return words


def _frozen(handed: Handed, freeze: Frozen | None, words: Settings) -> FreezeSection:
    """Return what is frozen, by an optimizer that does not have it too.

    Raises:
        ConfigError: Another network was frozen, or freezing is asked for in two ways.
    """
    if "freeze" in words:
        raise ConfigError("settings must not hold 'freeze': give what dmx.freeze returns.")
    if freeze is None:
        return freeze_section(handed, FreezeSection(), FreezePlan())
    if not isinstance(freeze, Frozen) or freeze.model is not handed.model:
        raise ConfigError("freeze must be what dmx.freeze returned for this very network.")
    return freeze_section(handed, freeze.section, freeze.plan)


@contextmanager
def _same_flags(model: nn.Module, frozen: Collection[str]) -> Iterator[None]:
    """Let parameters require a gradient afterwards if they did before, but for those that were frozen on request."""
    before = {name: value.requires_grad for name, value in model.named_parameters() if name not in frozen}
    try:
        yield
    finally:
        for name, value in model.named_parameters():
            if name in before:
                value.requires_grad_(before[name])


def _on_manifest(  # what the one caller has
    manifest: Path,
    words: Settings,
    handed: Handed,
    session: Session,
    *,
    name: str | None,
    as_run: bool,
    allow_leak: bool,
) -> Ended:
    """Train on segments of a cohort."""
    raw = {**words, **handed.words(), "cohort": {**words.get("cohort", {}), "manifest": str(manifest)}}
    raw["optimizer"] = {**handed.words().get("optimizer", {}), **words.get("optimizer", {})}
    described = build_experiment(raw, source="settings", folder=Path.cwd())
    found = lineage(handed.model, prefix=handed.prefix)
    if as_run:
        checked = check_training(described, session, handed=handed)
        start = Start(words=type(handed.model).__name__, params=handed.params())
        target = described.tracking.experiment or described.name
        uri = open_store(described.tracking.uri, session.root).uri
        start = python_start(start, found, experiment=target, store=uri)
        data = checked.data
        told, tags = python_leaks(found, cohort=data.cohort, cases=data.validation, allowed=allow_leak)
        start = replace(start, warnings=told, tags={**start.tags, **tags})
        done = run_training(checked, session, start=start, name=name)
        return Ended(task=described.task, reason=done.reason, run=done.run)
    with TemporaryDirectory() as folder:
        # Prepared cases are kept while they are needed.
        session = replace(session, root=Path(folder))
        checked = check_training(described, session, handed=handed)
        python_leaks(found, cohort=checked.data.cohort, cases=checked.data.validation, allowed=allow_leak)
        for sentence in flag_sentences(checked.settings.freeze):
            session.warn(sentence)
        assembled = assemble(checked, session, received=found.received)
        with assembled.batches() as batches:
            result = fit(
                assembled.state,
                lambda epoch, step, part: batches.get((epoch, step, part)),
                assembled.checked.settings,
                validate=assembled.validate,
                listeners=session.listeners,
            )
    return Ended(task=described.task, reason=result.reason)
