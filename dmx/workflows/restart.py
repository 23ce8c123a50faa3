"""Begin a run again that was ended before its first checkpoint, from its seed or its source, as it began first."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmx.errors import RunError
from dmx.model.image_network import packaged_weights
from dmx.tracking.checkpoints import checkpoint_names
from dmx.tracking.lineage import SOURCE_RUN, SOURCES, UNTRAINED
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun
from dmx.tracking.store import RunInfo, RunStore
from dmx.transfer.plan import TransferPlan
from dmx.workflows.checked import Checked
from dmx.workflows.finetune import KEPT, finetune_start, paired
from dmx.workflows.inputs import complete_inputs
from dmx.workflows.provenance import IN_PYTHON
from dmx.workflows.received import PLAN
from dmx.workflows.session import Session
from dmx.workflows.sources import OpenSource, file_source, run_source
from dmx.workflows.start import SOURCE_STORE, Start
from dmx.workflows.train import Trainee, assemble_from, begin
from dmx.workflows.trained import TrainedNetwork, open_network
from dmx.workflows.transfer import Transfer, carry_out, keep_transferred, transferred_start


@dataclass(frozen=True)
class _Given:
    """A checkpoint that a run's tags name as a source, below the source's artifacts."""

    run: str
    checkpoint: str


def start_again(run: ActiveRun, checked: Checked, session: Session) -> Trainee:
    """Do again what the run was made for; its tags say from which checkpoints.

    Args:
        run: The run, which has no checkpoint.
        checked: Its experiment; its network has fresh weights.
        session: Where the project is and whom to tell.

    Raises:
        RunError: A checkpoint from which it began is gone.
        CheckpointError: A file from which it began is gone or was changed.
    """
    info = run.info
    if IN_PYTHON in info.tags:
        raise RunError(
            f"Run '{info.experiment}/{info.name}' began with a module that was made in Python and was ended before its "
            "first checkpoint, so its weights are gone. Train it again from Python, as a new run."
        )
    given = _given(info)
    moved = info.kind == "transfer" and checked.experiment.transfer is not None
    origin = "its sources" if moved else f"run {given[0].run[:8]}, its source" if given else "its seed"
    session.report.say(
        f"Run {info.experiment}/{info.name} ({info.id[:8]}) was ended before its first checkpoint; it begins again "
        f"from {origin}."
    )
    complete_inputs(run, checked, session.root)
    if moved:
        done = _transferred_again(run, checked, given, session)
        if info.tags.get("dmx.optimizer_state") == UNTRAINED:
            keep_transferred(run, done)
            return Trainee(run=info, reason="transferred", best_metric="", best_value=None, store=_uri(checked))
        checked, start = done.checked, done.start
    elif given:
        place = info.tags.get(SOURCE_STORE)
        store = run.store if place is None else open_store(place, session.root)
        checked, start = _from_source(run, checked, _opened(store, given[0], session.root))
    else:
        start = Start(words="")
    return begin(run, assemble_from(start, checked, session), session, start=start)


def _uri(checked: Checked) -> str | None:
    return checked.experiment.tracking.uri


def _given(info: RunInfo) -> list[_Given]:
    """Return the checkpoints that a run began with, in the order of its settings."""
    if SOURCES in info.tags:
        return [_Given(entry["run"], entry["checkpoint"]) for entry in json.loads(info.tags[SOURCES])]
    if SOURCE_RUN in info.tags:
        return [_Given(info.tags[SOURCE_RUN], info.tags["dmx.source_checkpoint"])]
    return []


def _from_source(run: ActiveRun, checked: Checked, source: TrainedNetwork) -> tuple[Checked, Start]:
    """Return the beginning of a fine-tuning, or of the training of a transferred network."""
    if run.info.kind == "train":
        return checked, transferred_start(run.store, checked, source)
    checked = replace(checked, contract=paired(checked.contract, source, []))
    kept = run.info.tags.get("dmx.optimizer_state") == KEPT
    return checked, finetune_start(checked, source, [], keep_optimizer=kept)


def _transferred_again(run: ActiveRun, checked: Checked, given: Sequence[_Given], session: Session) -> Transfer:
    """Carry out a transfer again, from the same weights.

    Raises:
        RunError: The same plan does not come out.
    """
    assert checked.experiment.transfer is not None
    sources: list[OpenSource] = []
    runs = iter(given)
    for name, section in checked.experiment.transfer.sources.items():
        if section.package is not None:
            sources.append(file_source(name, packaged_weights(section.package), sha256=section.sha256))
        elif section.file is None:
            sources.append(run_source(name, _opened(run.store, next(runs), session.root)))
        else:
            sources.append(file_source(name, session.root / section.file, sha256=section.sha256))
    # What leaks was decided when the run was made.
    done = carry_out(checked, sources, store=run.store, allow_leak=True)
    _require_same_plan(run, done.plan)
    return done


def _opened(store: RunStore, given: _Given, root: Path) -> TrainedNetwork:
    """Open the very checkpoint with which a run began, whatever its name is now."""
    source = store.get_run(given.run)
    name = next((name for name, path in checkpoint_names(source.tags).items() if path == given.checkpoint), None)
    if name is None:
        raise RunError(
            f"The run began with {given.checkpoint} of run '{source.experiment}/{source.name}', which is gone, so it "
            "cannot begin again. Make a new run."
        )
    return open_network(store, source.id, checkpoint=name, root=root)


def _require_same_plan(run: ActiveRun, plan: TransferPlan) -> None:
    """Require the plan that the run has kept, if it came so far."""
    file = run.files / PLAN
    if file.is_file() and TransferPlan.from_json(file.read_text(encoding="utf-8")) != plan:
        raise RunError(
            f"The transfer of run '{run.info.experiment}/{run.info.name}' comes out differently than at first, so it "
            "cannot begin again. Make a new run."
        )
