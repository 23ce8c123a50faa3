"""Bring in a network that DeepMedic has trained, as a run from which one predicts, fine-tunes and transfers."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from dmx.config.data import CohortSection, NormalizeSection, PreprocessSection, SamplingSection
from dmx.config.deepmedic import read_normalization
from dmx.config.load import apply_overrides, as_dict, as_yaml, build_experiment
from dmx.config.sections import Experiment, PredictionSection, ValidationSection
from dmx.errors import ConfigError
from dmx.model.deepmedic_config import DeepMedicModel, read_model_config
from dmx.model.deepmedic_weights import Variable, deepmedic_variables, epochs_trained, read_deepmedic_state
from dmx.model.network import Network
from dmx.model.tensorflow_checkpoint import open_tensorflow_checkpoint
from dmx.preprocess.contract import Contract, resolve_contract
from dmx.tracking.environment import environment
from dmx.tracking.lineage import file_source_tags
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.training.checkpoint import write_checkpoint
from dmx.workflows.data import check_names, make_network, padded
from dmx.workflows.params import network_params
from dmx.workflows.saving import description
from dmx.workflows.session import Session

_CHANGEABLE = ("name", "description", "preprocess", "prediction", "tracking")
_AS_THEY_ARE = (
    "Intensities go in as they are, which is DeepMedic's default. If the training normalized them (norm_zscore_prms), "
    "give its configuration with --train-config."
)


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import.

    Attributes:
        config: DeepMedic's model configuration.
        checkpoint: Path that the checkpoint's files share, without ``.index``.
        train_config: DeepMedic's training configuration, for the normalization of intensities.
        channels: Names of the channels in DeepMedic's order; ``channel_0`` and so on by default.
        classes: Names of the classes, background first; ``background``, ``class_1`` and so on by default.
        overrides: Changes of ``preprocess``, ``prediction`` and others, ``section.key=value``.
        name: Name of the run.
        uri: Address of the run store; ``None``: as usual.
    """

    config: Path
    checkpoint: Path
    train_config: Path | None = None
    channels: Sequence[str] = ()
    classes: Sequence[str] = ()
    overrides: Sequence[str] = ()
    name: str | None = None
    uri: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """What came in.

    Attributes:
        run: The run that holds the network.
        variables: Number of DeepMedic's variables that it is made of.
        parameters: Number of its trainable parameters.
        epochs: Epochs that DeepMedic had trained it; ``None`` where the checkpoint does not say.
    """

    run: RunInfo
    variables: int
    parameters: int
    epochs: int | None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """All that the run will hold, read and checked."""

    experiment: Experiment
    contract: Contract
    network: Network
    variables: Sequence[Variable]
    epochs: int | None
    file: Path
    sha256: str
    notes: Sequence[str]


def import_deepmedic_model(request: ImportRequest, session: Session) -> ImportedModel:
    """Make a run of a network that DeepMedic has trained; everything is checked before the run exists.

    Its checkpoint is ``initial`` and ``last``. It has no cohort and no optimizer state: DeepMedic's moments are left
    out, and so is the position in its ring of statistics, which its checkpoints do not hold.

    Raises:
        ConfigError: The configuration cannot be read, or options do not fit it.
        CheckpointError: The checkpoint is damaged or not that of the configuration.
    """
    found = _read(request)
    experiment = found.experiment
    store = open_store(request.uri or experiment.tracking.uri, session.root)
    source = {"format": "deepmedic", "file": found.file.name, "sha256": found.sha256, "epochs": found.epochs}
    new = NewRun(
        experiment=experiment.tracking.experiment or experiment.name,
        kind="import",
        words=experiment.name,
        name=request.name,
        params={
            **network_params(experiment, found.contract, found.network),
            "source.file": found.file.name,
            **({} if found.epochs is None else {"source.epoch": found.epochs}),
        },
        tags={"dmx.task": experiment.task, **file_source_tags(found.file, found.sha256)},
        note=experiment.description,
    )
    with start_run(store, new, root=session.root, notify=session.report.say) as run:
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
            variables=len(found.variables),
            parameters=sum(parameter.numel() for parameter in found.network.parameters()),
            epochs=found.epochs,
        )


def _read(request: ImportRequest) -> _Found:
    model = read_model_config(_text(request.config), source=request.config.name)
    checkpoint = open_tensorflow_checkpoint(request.checkpoint)
    counts = {"num_channels": model.num_channels, "num_classes": model.num_classes}
    # Compared with the checkpoint before a network of the configured size is built.
    variables = deepmedic_variables(model.section, **counts)
    state = read_deepmedic_state(checkpoint, variables)
    experiment, notes = _experiment(request, model)
    network, contract = _network(experiment, state)
    return _Found(
        experiment=experiment,
        contract=contract,
        network=network,
        variables=variables,
        epochs=epochs_trained(checkpoint),
        file=checkpoint.data_files()[0],
        sha256=checkpoint.sha256(),
        notes=(*model.notes, *notes),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"Configuration '{path}' cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Configuration '{path}' must be UTF-8 text.") from error


def _experiment(request: ImportRequest, model: DeepMedicModel) -> tuple[Experiment, list[str]]:
    """Return the settings that stand for DeepMedic's, and what to say about them."""
    for word in request.overrides:
        if word.partition("=")[0].partition(".")[0] not in _CHANGEABLE:
            raise ConfigError(
                f"An import may change {', '.join(_CHANGEABLE)}, e.g. preprocess.normalize.method=zscore, got '{word}'."
            )
    channels = tuple(request.channels) or tuple(f"channel_{k}" for k in range(model.num_channels))
    classes = tuple(request.classes) or ("background", *(f"class_{k}" for k in range(1, model.num_classes)))
    for kind, names, count in (("channels", channels, model.num_channels), ("classes", classes, model.num_classes)):
        if len(names) != count:
            raise ConfigError(f"The network has {count} {kind}: name as many, got {len(names)} ({', '.join(names)}).")
    normalize, notes = NormalizeSection(method="none"), []
    if request.train_config is not None:
        text = _text(request.train_config)
        normalize = read_normalization(text, channels=channels, source=request.train_config.name)
    experiment = Experiment(
        name=model.name,
        compatibility="deepmedic",
        cohort=CohortSection(manifest="", channels=channels, classes=classes),
        preprocess=PreprocessSection(orientation="native", normalize=normalize),
        sampling=SamplingSection(segment=model.training_segment),
        model=model.section,
        validation=ValidationSection(segment=model.validation_segment),
        prediction=PredictionSection(tile=model.tile),
    )
    if request.overrides:
        experiment = build_experiment(apply_overrides(as_dict(experiment), request.overrides), source="--set")
    if experiment.preprocess.normalize.method == "none" and request.train_config is None:
        notes.append(_AS_THEY_ARE)
    return experiment, notes


def _network(experiment: Experiment, state: dict[str, Tensor]) -> tuple[Network, Contract]:
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
    network, plan = make_network(experiment, contract)
    network.load_state_dict(state)
    return network, padded(contract, plan)


def _log(run: ActiveRun, found: _Found) -> None:
    run.log_text("config.yaml", as_yaml(found.experiment))
    run.log_text("environment.json", json.dumps(environment(), indent=2))
    table = io.StringIO()
    writer = csv.DictWriter(table, ("source", "target", "shape"), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(variable), "shape": "x".join(map(str, variable.shape))} for variable in found.variables)
    run.log_text("import/variables.csv", table.getvalue())
