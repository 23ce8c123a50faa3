"""Fine-tune: a run's network on another cohort, with an optimizer that begins anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmx.config.load import as_dict, build_experiment, config_diff, read_given, tracking_uri
from dmx.config.sections import Experiment
from dmx.errors import ConfigError, ModelError
from dmx.preprocess.contract import Contract
from dmx.preprocess.image_contract import ImageContract
from dmx.tracking.mlflow_store import open_store
from dmx.training.checkpoint import read_checkpoint
from dmx.transfer.channels import by_name, by_name_or_place
from dmx.workflows.assemble import check_training
from dmx.workflows.checked import AnyContract, Checked, has_regions
from dmx.workflows.identity import find_leaks, require_no_leak
from dmx.workflows.inherited import difference_file, difference_table, differences, inherited, resolved
from dmx.workflows.session import Session
from dmx.workflows.start import Start, across_stores, described_source, source_params, trained_tags
from dmx.workflows.train import Trainee, run_training
from dmx.workflows.trained import TrainedNetwork, open_network

_RECIPES = ("inherited", "default")
_LEAVE_OUT = "Leave 'model' out to fine-tune, or use 'dmx transfer' for another network."

KEPT = "kept: --keep-optimizer"
"""What the tag ``dmx.optimizer_state`` says where the source's moments are kept."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """What to fine-tune and how.

    Attributes:
        experiment: YAML file of the new training; whatever it leaves out is as in the source.
        run: The source: id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        checkpoint: Name of its checkpoint; ``None``: the best one, else the last one.
        overrides: Changes of settings, ``section.key=value``.
        keep_optimizer: Keep the source's moments; the schedule still begins anew.
        allow_leak: Go on when validation cases were in the training of the source.
        strict: Refuse to freeze what is still as it was initialized.
        recipe: ``inherited`` or ``default``, see :func:`settings_for`; ``None``: as the experiment says.
        source_uri: Store of the source; ``None``: that of the new run.
        name: Name of the run.
        settings: Settings instead of the file's, which need not be there then.
    """

    experiment: Path
    run: str
    checkpoint: str | None = None
    overrides: Sequence[str] = ()
    keep_optimizer: bool = False
    allow_leak: bool = False
    strict: bool = False
    recipe: str | None = None
    source_uri: str | None = None
    name: str | None = None
    settings: Mapping[str, Any] | None = None


def finetune(request: FinetuneRequest, session: Session, *, uri: str | None = None) -> Trainee:
    """Train a source's network on another cohort, as a new run that names its source.

    Args:
        request: What to fine-tune and how.
        session: Where, and whom to tell.
        uri: Store of the new run, and of the source unless the request names another; ``None``: as the experiment says.

    Raises:
        DmxError: Something that the user can mend, before the run exists whenever it can be known before.
    """
    given = request.settings
    raw = read_given(request.experiment, request.overrides) if given is None else dict(given)
    if request.recipe is not None:
        raw["recipe"] = request.recipe
    if uri is not None:
        raw["tracking"] = {**(raw.get("tracking") or {}), "uri": uri}
    target = open_store(tracking_uri(raw), session.root)
    store = target if request.source_uri is None else open_store(request.source_uri, session.root)
    trained = open_network(store, request.run, checkpoint=request.checkpoint, root=session.root)
    experiment, notes = settings_for(raw, trained, path=request.experiment)
    checked = check_training(experiment, session)
    checked = replace(checked, contract=paired(checked.contract, trained, notes))
    require_same_network(checked, trained)
    changed = _changed_preprocessing(checked.contract, trained.contract)
    warnings = [
        f"{key} is {after} here and was {before} when the source was trained."
        for key, (before, after) in changed.items()
    ]
    exposure = find_leaks(store, trained.run, cohort=checked.data.cohort, cases=checked.data.validation)
    told, leak_tags = require_no_leak(exposure, allowed=request.allow_leak)
    start = finetune_start(checked, trained, notes, keep_optimizer=request.keep_optimizer)
    start = replace(
        start,
        tags={**across_stores(start.tags, store.uri, target.uri), **leak_tags},
        warnings=[*warnings, *told],
        seen=exposure.seen,
    )
    return run_training(checked, session, start=start, name=request.name, strict=request.strict)


def settings_for(raw: Mapping[str, Any], trained: TrainedNetwork, *, path: Path) -> tuple[Experiment, list[str]]:
    """Return the settings of a fine-tuning: whatever is left out is as in the source.

    With ``recipe: default`` only the network and what it sees are the source's.

    Returns:
        The experiment, and what to say about it.

    Raises:
        ConfigError: The experiment names other sources, or a setting cannot be used.
    """
    if raw.get("transfer"):
        raise ConfigError(
            f"{path}: a fine-tuning takes its weights from one run, so the section 'transfer' has no place. Leave it "
            "out, or use 'dmx train', which transfers and trains in one run."
        )
    recipe = raw.get("recipe", "inherited")
    if recipe not in _RECIPES:
        raise ConfigError(f"recipe must be {' or '.join(_RECIPES)}, got {recipe!r}.")
    filled = inherited(trained, raw, recipe=recipe == "inherited")
    notes = []
    schedule = dict(filled.get("schedule") or {})
    if schedule.get("warmup") is None and filled.get("compatibility", "none") == "none":
        filled["schedule"] = {**schedule, "warmup": 1.0}
        notes.append("The learning rate grows linearly during the first epoch (schedule.warmup: 0 turns that off).")
    return build_experiment(filled, source=str(path), folder=path.resolve().parent), notes


def paired(contract: AnyContract, trained: TrainedNetwork, notes: list[str]) -> AnyContract:
    """Pair channels and classes with those of the source: the same names, and what is left by position.

    Case, blanks and punctuation make no difference between names.

    Raises:
        ConfigError: Their numbers differ.
    """
    theirs = trained.contract
    kind_of_output = "targets" if _of_targets(contract) else "regions" if has_regions(contract) else "classes"
    _require_same_outputs(contract, trained)
    for kind, ours, known in (
        ("channels", contract.channels, theirs.channels),
        (kind_of_output, contract.outputs, theirs.outputs),
    ):
        if len(ours) != len(known):
            raise ConfigError(
                f"The cohort has {len(ours)} {kind} ({', '.join(ours)}), checkpoint '{trained.checkpoint_name}' of run "
                f"'{trained.run.experiment}/{trained.run.name}' has {len(known)} ({', '.join(known)}). Use "
                "'dmx transfer' to give what was learned to a network of another shape."
            )
    if isinstance(contract, Contract):
        contract = replace(contract, channels=_in_their_order("channels", theirs.channels, contract.channels, notes))
    outputs = _in_their_order(kind_of_output, theirs.outputs, contract.outputs, notes)
    return contract if contract.outputs == outputs else _reordered(contract, outputs)


def _in_their_order(kind: str, theirs: Sequence[str], ours: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
    """Return names in the order of the source's: those that both have, the others as they come; note what differs."""
    pairs = by_name_or_place(theirs, ours)
    ordered = tuple(ours[pairs[index]] for index in range(len(theirs)))
    named = by_name(theirs, ours)
    alike = [f"{theirs[i]} = {ordered[i]}" for i in named if theirs[i] != ordered[i]]
    placed = [f"{name} → {ordered[i]}" for i, name in enumerate(theirs) if i not in named]
    if alike:
        notes.append(f"The {kind} are paired by name: {', '.join(alike)}.")
    if placed:
        notes.append(f"The {kind} are paired by position: {', '.join(placed)}.")
    return ordered


def _require_same_outputs(contract: AnyContract, trained: TrainedNetwork) -> None:
    """Raise ``ConfigError`` where classes would take the place of regions, or the reverse."""
    if has_regions(contract) != has_regions(trained.contract):
        theirs, ours = ("classes", "regions") if has_regions(contract) else ("regions", "classes")
        raise ConfigError(
            f"Run '{trained.run.experiment}/{trained.run.name}' has learned {theirs} "
            f"({', '.join(trained.contract.outputs)}), the cohort has {ours} ({', '.join(contract.outputs)}). Set "
            "cohort.regions as the source has it (or {} for classes), or use 'dmx transfer', which gives the network a "
            "new head."
        )


def _of_targets(contract: AnyContract) -> bool:
    """Return whether the outputs of a contract are numbers of images."""
    return isinstance(contract, ImageContract) and bool(contract.targets)


def _reordered(contract: AnyContract, outputs: tuple[str, ...]) -> AnyContract:
    """Return a contract whose classes or targets have the order of the source's."""
    order = [contract.outputs.index(name) for name in outputs]
    index = {old: new for new, old in enumerate(order)}
    labels = {label: index[k] for label, k in contract.labels.items()}
    if isinstance(contract, Contract) and contract.regions:
        raise ConfigError(
            f"The regions must be in the order of the source, {', '.join(outputs)}, got {', '.join(contract.outputs)}. "
            "Set cohort.regions and cohort.regions_class_order in that order."
        )
    if isinstance(contract, Contract):
        if not contract.labels_complete:
            labels = {k: new for k, new in index.items() if k not in contract.labels} | labels
        written = tuple(contract.written_values[k] for k in order)
        return replace(contract, classes=outputs, labels=labels, label_values=written)
    if contract.targets:
        return replace(contract, targets=outputs)
    return replace(contract, classes=outputs, labels=labels)


def require_same_network(checked: Checked, trained: TrainedNetwork, *, advice: str = _LEAVE_OUT) -> None:
    """Require that the experiment's network has the source's tensors.

    Args:
        checked: The experiment.
        trained: The source.
        advice: What to do otherwise.

    Raises:
        ModelError: A tensor's name or shape differs.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in checked.network.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in trained.network.state_dict().items()}
    if ours == theirs:
        return
    names = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    first = names[0]
    raise ModelError(
        f"The experiment's model differs from the network of run '{trained.run.experiment}/{trained.run.name}' in "
        f"{len(names)} tensors, first '{first}': {ours.get(first, 'none')} here, {theirs.get(first, 'none')} there. "
        f"{advice}"
    )


def _changed_preprocessing(ours: AnyContract, theirs: AnyContract) -> dict[str, tuple[Any, Any]]:
    """Return what of the preprocessing differs, by key: (source's value, value here)."""
    return config_diff(_preprocessing(theirs), _preprocessing(ours))


def _preprocessing(contract: AnyContract) -> dict[str, Any]:
    """Return how cases are prepared, with the voxel size that ``median`` came to."""
    labels = ("classes", "labels", "labels_complete", "label_values", "regions", "ignore", "roi")
    skipped = ("channels", *labels, "targets", "fill", "spacing")
    values = contract.as_dict()
    values = resolved(values, contract) if isinstance(contract, Contract) else values
    return {key: value for key, value in values.items() if key not in skipped}


def _arrows(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{key}: {before} → {after}" for key, (before, after) in changed.items())


def finetune_start(checked: Checked, trained: TrainedNetwork, notes: Sequence[str], *, keep_optimizer: bool) -> Start:
    """Return the beginning of a fine-tuning.

    Args:
        checked: The experiment.
        trained: The source.
        notes: What else to say.
        keep_optimizer: Whether the source's moments are kept.
    """
    experiment = checked.experiment
    different = differences(trained, as_dict(experiment), checked.contract)
    preprocessing = _changed_preprocessing(checked.contract, trained.contract)
    weights, optimizer = _state(trained, keep_optimizer=keep_optimizer)
    epoch, step = trained.manifest["epoch"], trained.manifest["global_step"]
    begin = (
        f"Fine-tuning from run {trained.run.experiment}/{trained.run.name} ({trained.run.id[:8]}), checkpoint "
        f"'{trained.checkpoint_name}' after {epoch} epochs and {step} steps."
    )
    target = experiment.tracking.experiment or experiment.name
    return Start(
        kind="finetune",
        words=experiment.description or experiment.name,
        weights=weights,
        optimizer=optimizer,
        uninitialized=False,
        reset=not keep_optimizer,
        reason=KEPT if keep_optimizer else "initialized: reset requested by fine-tuning",
        sentences=[begin, *notes, *difference_table(different)],
        tags=trained_tags(trained, experiment=target),
        params={
            **source_params(trained),
            "recipe": experiment.recipe,
            "network.received_parameters": sum(parameter.numel() for parameter in checked.network.parameters()),
            **({"preprocess.changed": _arrows(preprocessing)} if preprocessing else {}),
        },
        source=described_source(trained),
        received={name: "copied" for name, _ in checked.network.named_parameters()},
        texts=difference_file(different),
    )


def _state(trained: TrainedNetwork, *, keep_optimizer: bool) -> tuple[Mapping[str, Tensor], Mapping[str, Any] | None]:
    """Return the weights that predict best; with kept moments the weights that those belong to."""
    if not keep_optimizer:
        return {name: tensor.clone() for name, tensor in trained.network.state_dict().items()}, None
    content = read_checkpoint(trained.folder)
    state = content.training_state or {}
    moments: dict[str, Any] = state["optimizer"]
    if not any(torch.is_tensor(value) for entry in moments.values() for value in _leaves(entry)):
        raise ConfigError(
            f"Checkpoint '{trained.checkpoint_name}' has no optimizer state to keep. Leave --keep-optimizer out."
        )
    return content.model_state, moments


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for entry in value.values() for leaf in _leaves(entry)]
    return [leaf for entry in value for leaf in _leaves(entry)] if isinstance(value, list | tuple) else [value]
