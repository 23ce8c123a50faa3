"""Transfer: a network of the experiment's shape receives weights from other runs or files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmx.config.load import as_dict, build_experiment, section_from_dict, tracking_uri
from dmx.config.sections import Experiment
from dmx.config.transfer import TransferSection
from dmx.errors import ConfigError, DmxError, ModelError, RunError
from dmx.model.network import Network
from dmx.model.sketch import sketch_network
from dmx.preprocess.image_contract import ImageContract
from dmx.tracking.files import read_text
from dmx.tracking.lineage import UNTRAINED, Source, source_tags
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo, RunStore
from dmx.training.events import CheckpointDue
from dmx.training.state import new_state
from dmx.transfer.apply import apply_plan
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer
from dmx.workflows.assemble import check_training
from dmx.workflows.checked import Checked
from dmx.workflows.data import make_network, resolve_data
from dmx.workflows.equivalence import equivalence_error
from dmx.workflows.finetune import require_same_network
from dmx.workflows.freezing import check_origin
from dmx.workflows.identity import Seen, cannot_tell, distinct, find_leaks, require_no_leak, unknown_file
from dmx.workflows.inherited import difference_file, difference_table, differences, inherited
from dmx.workflows.inputs import complete_inputs, first_texts
from dmx.workflows.options import transfer_options
from dmx.workflows.params import training_params
from dmx.workflows.privacy import hiding
from dmx.workflows.received import PLAN, found_sentences, origin_params, received, transfer_start
from dmx.workflows.saving import saver
from dmx.workflows.session import Session
from dmx.workflows.sources import OpenSource, open_source, pinned, require_same_outputs, settings_with
from dmx.workflows.start import Start, described_source, log_start, source_params
from dmx.workflows.train import Trainee, run_training
from dmx.workflows.trained import TrainedNetwork, open_network


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A transfer that has been planned and carried out on a network in memory.

    Attributes:
        checked: The experiment, its network holding what was received.
        plan: The plan.
        start: How a run says where its weights come from.
        error: Largest relative difference of outputs that the plan implies to be equal; ``None`` without any.
        notes: What is to be said about freezing.
    """

    checked: Checked
    plan: TransferPlan
    start: Start
    error: float | None
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """What came out.

    Attributes:
        run: The new run.
        plan: The plan.
        notes: What is to be said about freezing.
    """

    run: RunInfo
    plan: TransferPlan
    notes: Sequence[str] = ()


def prepare_transfer(
    raw: Mapping[str, Any],
    session: Session,
    *,
    path: Path,
    allow_leak: bool = False,
    strict: bool = False,
    trains: bool = False,
) -> Transfer:
    """Plan a transfer and carry it out on a fresh network; nothing is written.

    Args:
        raw: Settings with a section ``transfer``; ``model``, ``preprocess`` and ``compatibility`` may be left out.
        session: Where the project is and whom to tell.
        path: File of the experiment.
        allow_leak: Go on when validation cases were in the training of a source.
        strict: Refuse to freeze what is still as it was initialized.
        trains: Whether the network is trained right away, which takes label maps.

    Raises:
        DmxError: Something that the user can mend.
    """
    section = _section(raw)
    store = open_store(tracking_uri(raw), session.root)
    sources = [open_source(store, name, section, path=path, root=session.root) for name in section.sources]
    for sentence in () if trains else found_sentences(sources):
        session.report.say(sentence)
    checked = _checked(
        settings_with(raw, sources, path=path), session, inherited="compatibility" not in raw, trains=trains
    )
    checked = replace(checked, experiment=replace(checked.experiment, transfer=pinned(section, sources)))
    done = carry_out(checked, sources, store=store, allow_leak=allow_leak)
    notes = check_origin(
        checked.experiment, checked.settings, checked.network, received=done.start.received, strict=strict
    )
    return replace(done, notes=notes)


def _checked(experiment: Experiment, session: Session, *, inherited: bool, trains: bool) -> Checked:
    """Check the experiment; say so where only the source's compatibility mode, taken over, makes it impossible.

    Raises:
        DmxError: Something that the user can mend.
    """
    if not inherited or experiment.compatibility == "none":
        return check_training(experiment, session, trains=trains)
    try:
        return check_training(experiment, session, trains=trains)
    except (ConfigError, ModelError) as error:
        free = replace(experiment, compatibility="none")
        try:
            make_network(free, resolve_data(free, trains=trains).contract)
        except DmxError:
            raise error from None
        raise type(error)(
            f"{error} 'compatibility: {experiment.compatibility}' was taken over from the source; the experiment is "
            "possible with 'compatibility: none' in it (or --set compatibility=none)."
        ) from error


def carry_out(checked: Checked, sources: Sequence[OpenSource], *, store: RunStore, allow_leak: bool) -> Transfer:
    """Plan the transfer of a checked experiment and carry it out on the experiment's fresh network.

    Raises:
        TransferError: The networks do not fit.
        CohortError: Validation cases were in the training of a source, and that is not allowed.
    """
    contract, section = checked.contract, checked.experiment.transfer or TransferSection()
    if isinstance(contract, ImageContract):
        checked.network.example_shape = contract.crop
    target = sketch_network(checked.network, name="target", channels=contract.channels, classes=contract.outputs)
    plan = plan_transfer([source.sketch for source in sources], target, transfer_options(section))
    require_same_outputs(plan, contract, sources)
    apply_plan(plan, {source.name: source.reader for source in sources}, checked.network.state_dict())
    notes, tags, seen = _leaks(store, sources, checked, allowed=allow_leak)
    error = _measured_error(plan, checked, sources)
    if error is not None:
        notes.append(f"Outputs that must equal the source's differ by at most {error:.2g} (relative).")
    start = replace(transfer_start(checked, plan, sources, notes=notes, tags=tags), seen=seen)
    if error is not None:
        start = replace(start, metrics={"transfer/equivalence_error": error})
    return Transfer(checked=checked, plan=plan, start=start, error=error)


def _measured_error(plan: TransferPlan, checked: Checked, sources: Sequence[OpenSource]) -> float | None:
    """Return how far outputs that must be equal differ, where segmentation networks give and receive."""
    given = {source.name: source.trained.network for source in sources if source.trained is not None}
    networks = {name: network for name, network in given.items() if isinstance(network, Network)}
    return equivalence_error(plan, checked.network, networks) if isinstance(checked.network, Network) else None


def transfer(
    raw: Mapping[str, Any],
    session: Session,
    *,
    path: Path,
    name: str | None = None,
    allow_leak: bool = False,
    strict: bool = False,
) -> Transferred:
    """Make a run whose artifact is the experiment's network with received weights, untrained.

    Raises:
        DmxError: Something that the user can mend, before the run exists whenever it can be known before.
    """
    done = prepare_transfer(raw, session, path=path, allow_leak=allow_leak, strict=strict)
    done = replace(done, start=replace(done.start, sentences=[*done.notes, *done.start.sentences]))
    experiment, start = done.checked.experiment, done.start
    store = open_store(experiment.tracking.uri, session.root)
    new = NewRun(
        experiment=experiment.tracking.experiment or experiment.name,
        kind="transfer",
        words=start.words,
        name=name,
        params={
            **training_params(done.checked),
            **origin_params(done.checked, start.received),
            "optimizer_state": "none",
            **start.params,
        },
        tags={"dmx.task": experiment.task, "dmx.optimizer_state": UNTRAINED, **start.tags},
        note=experiment.description,
        texts=first_texts(done.checked, session.root, start.seen),
    )
    with (
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hiding(experiment, done.checked.data.cohort.cases, session.root)),
    ):
        complete_inputs(run, done.checked, session.root)
        for sentence in start.warnings:
            session.warn(sentence)
        keep_transferred(run, done)
        return Transferred(run=run.info, plan=done.plan, notes=done.notes)


def keep_transferred(run: ActiveRun, done: Transfer) -> None:
    """Keep the plan and the new network, untrained, as the run's checkpoint ``initial``."""
    log_start(run, done.start)
    state = new_state(done.checked.network, done.checked.settings)
    due = CheckpointDue(state=state, position=state.position, names=("initial",))
    folder = run.checkpoints.folder(0, 0)
    if not folder.exists():
        saver(done.checked, run_id=run.info.id, source=done.start.source)(due, folder)
    run.checkpoints.publish(folder, due.names)


def transfer_and_train(
    raw: Mapping[str, Any], session: Session, *, path: Path, name: str | None, strict: bool, allow_leak: bool
) -> Trainee:
    """Transfer and train in one run."""
    done = prepare_transfer(raw, session, path=path, allow_leak=allow_leak, trains=True)
    return run_training(done.checked, session, start=done.start, name=name, strict=strict)


def train_transferred(  # noqa: PLR0913  # what the command takes
    raw: Mapping[str, Any],
    run: str,
    session: Session,
    *,
    path: Path,
    name: str | None = None,
    strict: bool = False,
    allow_leak: bool = False,
) -> Trainee:
    """Train the network of a transfer, whose optimizer does not exist yet.

    What the experiment leaves out is as in the transfer, which was made for this training.

    Raises:
        RunError: The run has been trained already.
        ConfigError: The experiment's network is another one.
        CohortError: Validation cases were in the training of a source, and that is not allowed.
    """
    store = open_store(tracking_uri(raw), session.root)
    source = open_network(store, run, checkpoint=None, root=session.root)
    place = f"'{source.run.experiment}/{source.run.name}'"
    if source.manifest["global_step"] > 0 or source.run.kind != "transfer":
        raise RunError(
            f"Run {place} has been trained. Use 'dmx resume' to go on with it, or 'dmx finetune' to train its network "
            "as a new run."
        )
    settings = inherited(source, raw, recipe=True, start=True)
    experiment = build_experiment(settings, source=str(path), folder=path.resolve().parent)
    checked = check_training(experiment, session)
    if (checked.contract.channels, checked.contract.outputs) != (source.contract.channels, source.contract.outputs):
        raise ConfigError(
            f"The cohort has the channels {', '.join(checked.contract.channels)} and classes "
            f"{', '.join(checked.contract.outputs)}; run {place} was made for the channels "
            f"{', '.join(source.contract.channels)} and classes {', '.join(source.contract.outputs)}. Transfer again "
            "with this experiment."
        )
    require_same_network(checked, source, advice="Leave 'model' out, or transfer again with this experiment.")
    exposure = find_leaks(store, source.run, cohort=checked.data.cohort, cases=checked.data.validation)
    told, tags = require_no_leak(exposure, allowed=allow_leak)
    start = transferred_start(store, checked, source)
    changed = differences(source, as_dict(experiment), checked.contract)
    start = replace(
        start,
        warnings=told,
        seen=exposure.seen,
        sentences=difference_table(changed) if changed else [],
        tags={**start.tags, **tags},
        texts={**start.texts, **difference_file(changed)},
    )
    return run_training(checked, session, start=start, name=name, strict=strict)


def transferred_start(store: RunStore, checked: Checked, source: TrainedNetwork) -> Start:
    """Return the beginning of a training of a transferred network, whose optimizer never existed."""
    experiment = checked.experiment
    plan = _plan_of(store, source)
    return Start(
        words=experiment.description or experiment.name,
        weights=dict(source.network.state_dict()),
        tags=source_tags(
            [Source(run=source.run, checkpoint=f"checkpoints/{source.folder.name}", sha256=source.sha256)],
            experiment=experiment.tracking.experiment or experiment.name,
        ),
        params={**source_params(source), "network.received_parameters": plan.received},
        source=described_source(source),
        received=received(plan),
    )


def _plan_of(store: RunStore, source: TrainedNetwork) -> TransferPlan:
    """Return the plan that a transfer has kept.

    Raises:
        RunError: It is gone.
    """
    text = read_text(store, source.run.id, PLAN)
    if text is None:
        raise RunError(
            f"Run '{source.run.experiment}/{source.run.name}' has lost its {PLAN}, which says what was received. "
            "Transfer again."
        )
    return TransferPlan.from_json(text)


def _section(raw: Mapping[str, Any]) -> TransferSection:
    section = section_from_dict(TransferSection, raw.get("transfer") or {}, name="transfer")
    if not section.sources:
        raise ConfigError("transfer.sources must name a run or a file; '--from-run RUN' names one, too.")
    return section


def _leaks(
    store: RunStore, sources: Sequence[OpenSource], checked: Checked, *, allowed: bool
) -> tuple[list[str], dict[str, str], list[Seen]]:
    notes: list[str] = []
    tags: dict[str, str] = {}
    seen: list[Seen] = []
    for source in sources:
        if source.trained is None:
            notes.append("Warning: " + cannot_tell(f"'{source.name}'"))
            seen.append(unknown_file(source.name if source.file is None else source.file.name))
            continue
        exposure = find_leaks(store, source.trained.run, cohort=checked.data.cohort, cases=checked.data.validation)
        told, found = require_no_leak(exposure, allowed=allowed)
        notes += [f"Warning: {sentence}" for sentence in told]
        tags |= found
        seen += exposure.seen
    return notes, tags, distinct(seen)
