"""Bring in a network that nnU-Net v2 has trained, as a run from which one predicts, fine-tunes and transfers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmx.cohort.digest import file_sha256
from dmx.config.data import CohortSection, SamplingSection
from dmx.config.sections import Experiment, PredictionSection
from dmx.errors import CheckpointError, ConfigError
from dmx.model.build import build_network
from dmx.model.nnunet_checkpoint import NnUNetCheckpoint, as_nnunet_checkpoint
from dmx.model.nnunet_plans import NnUNetModel, read_plans, turn_kernel
from dmx.model.spec import size_text
from dmx.model.torch_file import load_torch_file
from dmx.workflows.import_run import FoundModel, ImportedModel, ImportedTensor, changed, loaded, make_import_run
from dmx.workflows.session import Session

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_latest.pth")
_OVERLAP = 0.5


@dataclass(frozen=True, kw_only=True)
class NnUNetImportRequest:
    """What to import; what is not named is looked for in the folder, then in the checkpoint itself.

    Attributes:
        folder: Folder of a trained model (``nnUNetTrainer__nnUNetPlans__3d_fullres``) or of one of its folds.
        checkpoint: The checkpoint; ``None``: ``checkpoint_final.pth``, else ``_best``, else ``_latest`` of the folder.
        plans: ``plans.json``.
        dataset: ``dataset.json``.
        configuration: Name of the configuration, ``3d_fullres``.
        channels: Names of the channels in nnU-Net's order; empty: as in the dataset.
        classes: Names of the classes by label, or of the regions; empty: as in the dataset.
        overrides: Changes of ``preprocess``, ``prediction`` and others, ``section.key=value``.
        name: Name of the run.
        uri: Address of the run store; ``None``: as usual.
    """

    folder: Path | None = None
    checkpoint: Path | None = None
    plans: Path | None = None
    dataset: Path | None = None
    configuration: str | None = None
    channels: Sequence[str] = ()
    classes: Sequence[str] = ()
    overrides: Sequence[str] = ()
    name: str | None = None
    uri: str | None = None


def import_nnunet_model(request: NnUNetImportRequest, session: Session) -> ImportedModel:
    """Make a run of a network that nnU-Net v2 has trained; everything is checked before the run exists.

    Its checkpoint is ``initial`` and ``last``. It has no cohort and no optimizer state: nnU-Net's moments are left out.

    Raises:
        ConfigError: A file is missing or cannot be read, or options do not fit.
        CheckpointError: The checkpoint holds code, is damaged, or is not that of the plans.
        ModelError: The network is of a kind that dmx does not have.
    """
    return make_import_run(_read(request), session, name=request.name, uri=request.uri)


def _read(request: NnUNetImportRequest) -> FoundModel:
    file = request.checkpoint or _find_checkpoint(request.folder)
    if not file.is_file():
        raise ConfigError(f"The checkpoint '{file}' does not exist.")
    checkpoint = as_nnunet_checkpoint(load_torch_file(file))
    if checkpoint is None:
        raise CheckpointError(
            f"'{file}' is no checkpoint of nnU-Net v2: it must hold network_weights with trainer_name or init_args."
        )
    model = read_plans(
        _settings(request.plans, file, "plans.json", checkpoint.plans),
        _settings(request.dataset, file, "dataset.json", checkpoint.dataset),
        configuration=_configuration(request, checkpoint, file),
        channels=request.channels,
        classes=request.classes,
    )
    state, tensors = _weights(checkpoint, model)
    experiment = changed(_experiment(checkpoint, model), request.overrides)
    network, contract = loaded(experiment, state)
    return FoundModel(
        tool="nnunet",
        experiment=experiment,
        contract=contract,
        network=network,
        tensors=tensors,
        epochs=checkpoint.epochs,
        file=file,
        sha256=file_sha256(file),
        notes=(_told(checkpoint, model, file), *model.notes),
    )


def _find_checkpoint(folder: Path | None) -> Path:
    if folder is None:
        raise ConfigError("Name a folder of nnU-Net, or a checkpoint with --checkpoint.")
    if not folder.is_dir():
        raise ConfigError(
            f"'{folder}' is no folder. Name the folder of a trained model of nnU-Net, or one of its folds."
        )
    for name in _CHECKPOINTS:
        if (folder / name).is_file():
            return folder / name
    folds = sorted(fold for fold in folder.glob("fold_*") if any((fold / name).is_file() for name in _CHECKPOINTS))
    if len(folds) == 1:
        return _find_checkpoint(folds[0])
    if folds:
        raise ConfigError(
            f"'{folder}' has {len(folds)} folds ({', '.join(fold.name for fold in folds)}), each a network of its own. "
            f"Name one: {folder / folds[0].name}."
        )
    raise ConfigError(f"'{folder}' has no {' or '.join(_CHECKPOINTS)}, and no fold_… with one.")


def _settings(given: Path | None, file: Path, name: str, kept: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a JSON file holds: the given one, one beside or above the checkpoint, else the checkpoint's copy."""
    near = next((folder / name for folder in file.resolve().parents[:2] if (folder / name).is_file()), None)
    path = given or near
    if path is None:
        if not kept:
            raise ConfigError(f"{name} is needed and was not found near '{file}'. Name it with --{name[:-5]}.")
        return kept
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is no JSON: {str(error).splitlines()[0]}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"'{path}' must hold a JSON object, got {type(content).__name__}.")
    return content


def _configuration(request: NnUNetImportRequest, checkpoint: NnUNetCheckpoint, file: Path) -> str:
    """Return the configuration: that of the checkpoint, which an option must not contradict."""
    folder = next((parent.name for parent in file.resolve().parents[:2] if parent.name.count("__") == 2), "")
    known = checkpoint.configuration or folder.rpartition("__")[2]
    if request.configuration and known and request.configuration != known:
        raise ConfigError(
            f"The checkpoint was trained with the configuration '{known}', got --configuration "
            f"{request.configuration}. Leave the option out."
        )
    if not (known or request.configuration):
        raise ConfigError("The checkpoint does not name its configuration. Name it: --configuration 3d_fullres.")
    return known or str(request.configuration)


def _weights(checkpoint: NnUNetCheckpoint, model: NnUNetModel) -> tuple[dict[str, Tensor], list[ImportedTensor]]:
    """Return the state dict of the network here, and where each tensor comes from.

    Raises:
        CheckpointError: The tensors are not those of the plans' network.
    """
    # Compared with the file before memory is taken for a network of the planned size.
    with torch.device("meta"):
        network = build_network(model.section, num_channels=len(model.channels), num_classes=len(model.outputs))
    every = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    every |= {name for name, _ in network.named_buffers(remove_duplicate=False)}
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {f"network.{name}": (name, turn_kernel(tensor, model.axes)) for name, tensor in checkpoint.weights.items()}
    found = {name: tuple(tensor.shape) for name, (_, tensor) in given.items()}
    wrong = [name for name in wanted if found.get(name) != wanted[name]] + [name for name in found if name not in every]
    if wrong:
        first = wrong[0]
        raise CheckpointError(
            f"The weights are not those of configuration {model.configuration} in the plans: {len(wrong)} tensors "
            f"differ, first '{first.removeprefix('network.')}' with {found.get(first, 'none')} in the file and "
            f"{wanted.get(first, 'none')} by the plans (axes i, j, k). A trainer may have built another network."
        )
    tensors = [
        ImportedTensor(source=given[name][0], target=name, shape=tuple(checkpoint.weights[given[name][0]].shape))
        for name in wanted
    ]
    return {name: given[name][1] for name in wanted}, tensors


def _experiment(checkpoint: NnUNetCheckpoint, model: NnUNetModel) -> Experiment:
    """Return the settings that stand for nnU-Net's."""
    return Experiment(
        name=model.name,
        cohort=CohortSection(
            manifest="",
            channels=model.channels,
            classes=(*model.labels.classes,),
            regions=model.labels.regions,
            regions_class_order=model.labels.order,
            ignore=model.labels.ignore,
        ),
        preprocess=model.preprocess,
        sampling=SamplingSection(segment=model.patch),
        model=model.section,
        prediction=PredictionSection(
            tile=model.patch,
            overlap=_OVERLAP,
            mirror=model.mirrored(checkpoint.mirror_axes),
        ),
    )


def _told(checkpoint: NnUNetCheckpoint, model: NnUNetModel, file: Path) -> str:
    spacing = model.preprocess.spacing
    assert not isinstance(spacing, str)
    fold = f", fold {checkpoint.fold}" if checkpoint.fold else ""
    trainer = f", trained by {checkpoint.trainer}" if checkpoint.trainer else ""
    prefix = f", names without '{checkpoint.prefix}'" if checkpoint.prefix else ""
    return (
        f"nnU-Net's {model.configuration} of {model.name} from {file.name}{fold}{trainer}{prefix}: "
        f"patches of {size_text(model.patch)} voxels of {' x '.join(f'{size:g}' for size in spacing)} mm (i, j, k)."
    )
