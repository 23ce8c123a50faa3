"""Make a run of a network that another tool has trained."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from dmx.config.load import apply_overrides, as_dict, as_yaml, build_experiment
from dmx.config.sections import Experiment
from dmx.errors import CheckpointError, ConfigError
from dmx.model.network import Network
from dmx.preprocess.contract import Contract, resolve_contract
from dmx.tracking.environment import environment
from dmx.tracking.lineage import file_source_tags
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.training.checkpoint import write_checkpoint
from dmx.transfer.finite import listed, not_finite
from dmx.workflows.data import check_names, make_network, padded
from dmx.workflows.params import network_params
from dmx.workflows.saving import description
from dmx.workflows.session import Session

CHANGEABLE = ("name", "description", "preprocess", "prediction", "tracking")
"""Settings that an import may change."""


@dataclass(frozen=True, kw_only=True)
class ImportedTensor:
    """A tensor of the other tool's file.

    Attributes:
        source: Its name there.
        target: Its name here.
        shape: Its size there.
    """

    source: str
    target: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """All that the run will hold, read and checked.

    Attributes:
        tool: ``deepmedic`` or ``nnunet``.
        experiment: Settings that stand for the other tool's.
        contract: What the network sees.
        network: The network with its weights.
        tensors: Where its weights come from.
        epochs: Epochs of the other tool's training; ``None`` where it does not say.
        file: The file of weights.
        sha256: Its hash.
        notes: What is to be said.
    """

    tool: str
    experiment: Experiment
    contract: Contract
    network: Network
    tensors: Sequence[ImportedTensor]
    epochs: int | None
    file: Path
    sha256: str
    notes: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """What came in.

    Attributes:
        run: The run that holds the network.
        tensors: Number of the other tool's tensors that it is made of.
        parameters: Number of its trainable parameters.
        epochs: Epochs that it was trained; ``None`` where the file does not say.
    """

    run: RunInfo
    tensors: int
    parameters: int
    epochs: int | None


def changed(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """Return the settings with the user's changes.

    Raises:
        ConfigError: A change concerns something that an import decides.
    """
    for word in overrides:
        if word.partition("=")[0].partition(".")[0] not in CHANGEABLE:
            raise ConfigError(
                f"An import may change {', '.join(CHANGEABLE)}, e.g. preprocess.normalize.method=zscore, got '{word}'."
            )
    if not overrides:
        return experiment
    return build_experiment(apply_overrides(as_dict(experiment), overrides), source="--set")


def loaded(experiment: Experiment, state: Mapping[str, Tensor]) -> tuple[Network, Contract]:
    """Return the network with its weights, and what it sees."""
    contract = resolve_contract(
        experiment.cohort,
        experiment.preprocess,
        cases=(),
        channels=experiment.cohort.channels,
        classes=experiment.cohort.classes,
        compatibility=experiment.compatibility,
    )
    check_names(contract)
    if bad := not_finite(state):
        raise CheckpointError(
            f"{len(bad)} tensors of the file hold NaN or infinite values, as after a training that diverged: "
            f"{listed(bad)}. Import an earlier checkpoint, or copy the file again."
        )
    network, plan = make_network(experiment, contract)
    network.load_state_dict(dict(state))
    return network, padded(contract, plan)


def make_import_run(found: FoundModel, session: Session, *, name: str | None, uri: str | None) -> ImportedModel:
    """Make a run whose one checkpoint, ``initial`` and ``last``, holds the network.

    Args:
        found: The network, checked.
        session: Where runs are kept and who is told.
        name: Name of the run.
        uri: Address of the run store; ``None``: as usual.
    """
    experiment = found.experiment
    store = open_store(uri or experiment.tracking.uri, session.root)
    source = {"format": found.tool, "file": found.file.name, "sha256": found.sha256, "epochs": found.epochs}
    new = NewRun(
        experiment=experiment.tracking.experiment or experiment.name,
        kind="import",
        words=experiment.name,
        name=name,
        params={
            **network_params(experiment, found.contract, found.network),
            "source.file": found.file.name,
            **({} if found.epochs is None else {"source.epochs": found.epochs}),
        },
        tags={"dmx.task": experiment.task, **file_source_tags(found.file, found.sha256)},
        note=experiment.description,
    )
    with start_run(store, new, root=session.root, notify=session.report.say) as run, session.keeping(run):
        for note in found.notes:
            session.report.say(note)
            run.log_line(note)
        _log(run, found)
        folder = run.checkpoints.folder(0, 0)
        write_checkpoint(
            folder,
            model_state=found.network.state_dict(),
            training_state={"optimizer": {}},
            manifest={
                **description(experiment, found.contract, run_id=run.info.id, source=source),
                "epoch": 0,
                "step": 0,
                "global_step": 0,
                "metrics": {},
            },
        )
        run.checkpoints.publish(folder, ("initial", "last"))
        return ImportedModel(
            run=run.info,
            tensors=len(found.tensors),
            parameters=sum(parameter.numel() for parameter in found.network.parameters()),
            epochs=found.epochs,
        )


def _log(run: ActiveRun, found: FoundModel) -> None:
    run.log_text("config.yaml", as_yaml(found.experiment))
    run.log_text("environment.json", json.dumps(environment(), indent=2))
    table = io.StringIO()
    writer = csv.DictWriter(table, ("source", "target", "shape"), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(tensor), "shape": "x".join(map(str, tensor.shape))} for tensor in found.tensors)
    run.log_text("import/variables.csv", table.getvalue())
