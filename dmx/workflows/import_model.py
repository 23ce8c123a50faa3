"""Bring in a network that DeepMedic has trained, as a run from which one predicts, fine-tunes and transfers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmx.config.data import CohortSection, NormalizeSection, PreprocessSection, SamplingSection
from dmx.config.deepmedic import read_normalization
from dmx.config.sections import Experiment, PredictionSection, ValidationSection
from dmx.errors import ConfigError
from dmx.model.deepmedic_config import DeepMedicModel, read_model_config
from dmx.model.deepmedic_weights import deepmedic_variables, epochs_trained, read_deepmedic_state
from dmx.model.tensorflow_checkpoint import open_tensorflow_checkpoint
from dmx.workflows.import_run import FoundModel, ImportedModel, ImportedTensor, changed, loaded, make_import_run
from dmx.workflows.session import Session

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


def import_deepmedic_model(request: ImportRequest, session: Session) -> ImportedModel:
    """Make a run of a network that DeepMedic has trained; everything is checked before the run exists.

    Its checkpoint is ``initial`` and ``last``. It has no cohort and no optimizer state: DeepMedic's moments are left
    out, and so is the position in its ring of statistics, which its checkpoints do not hold.

    Raises:
        ConfigError: The configuration cannot be read, or options do not fit it.
        CheckpointError: The checkpoint is damaged or not that of the configuration.
    """
    return make_import_run(_read(request), session, name=request.name, uri=request.uri)


def _read(request: ImportRequest) -> FoundModel:
    model = read_model_config(_text(request.config), source=request.config.name)
    checkpoint = open_tensorflow_checkpoint(request.checkpoint)
    counts = {"num_channels": model.num_channels, "num_classes": model.num_classes}
    # Compared with the checkpoint before a network of the configured size is built.
    variables = deepmedic_variables(model.section, **counts)
    state = read_deepmedic_state(checkpoint, variables)
    experiment, notes = _experiment(request, model)
    network, contract = loaded(experiment, state)
    return FoundModel(
        tool="deepmedic",
        experiment=experiment,
        contract=contract,
        network=network,
        tensors=[ImportedTensor(source=one.source, target=one.target, shape=one.shape) for one in variables],
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
    experiment = changed(experiment, request.overrides)
    if experiment.preprocess.normalize.method == "none" and request.train_config is None:
        notes.append(_AS_THEY_ARE)
    return experiment, notes
