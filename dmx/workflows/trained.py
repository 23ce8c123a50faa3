"""A network that a run has trained, opened from one of the run's checkpoints."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmx.config.files import with_absolute_files
from dmx.config.load import apply_overrides, as_dict, build_experiment, section_from_dict
from dmx.config.model import ModelSection
from dmx.config.sections import Experiment, PredictionSection
from dmx.config.yaml_loader import read_yaml
from dmx.errors import CheckpointError, ConfigError, ModelError, RunError
from dmx.model.by_task import build_by_task
from dmx.model.network import Network, TrainableNetwork
from dmx.paths import within
from dmx.preprocess.contract import Contract
from dmx.preprocess.image_contract import KIND, ImageContract
from dmx.tracking.checkpoints import checkpoint_names
from dmx.tracking.location import project_of
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import checkpoint_path
from dmx.tracking.store import RunInfo, RunStore
from dmx.training.checkpoint import Checkpoint, read_checkpoint, weights_sha256
from dmx.transfer.finite import listed, not_finite
from dmx.workflows.checked import AnyContract
from dmx.workflows.identity import read_identity


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A trained network of any task, and what it expects of its input.

    Attributes:
        run: The run that trained it.
        checkpoint_name: ``best``, ``last``, …
        folder: Folder of the checkpoint.
        manifest: What the checkpoint says about itself.
        network: The network in inference mode, with the averaged weights if there are any.
        contract: Channels, classes or targets, preprocessing.
        experiment: The run's resolved configuration.
        seen: Asks the run whom its training has seen, and what it has read.
    """

    run: RunInfo
    checkpoint_name: str
    folder: Path
    manifest: Mapping[str, Any]
    network: TrainableNetwork
    contract: AnyContract
    experiment: Experiment
    seen: Callable[[], Mapping[str, Any] | None] = lambda: None

    @property
    def task(self) -> str:
        """Return what it has learned."""
        return str(self.manifest.get("task", "segmentation"))

    @property
    def sha256(self) -> str:
        """Return the hash of the weights that it predicts with."""
        return weights_sha256(self.manifest)


@dataclass(frozen=True, kw_only=True)
class Trained(TrainedNetwork):
    """A trained segmentation network."""

    network: Network
    contract: Contract


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint of a run, on this machine.

    Attributes:
        run: The run.
        name: ``best``, ``last``, …
        folder: Its folder.
        content: What it holds, without the training state.
    """

    run: RunInfo
    name: str
    folder: Path
    content: Checkpoint


def stored_checkpoint(store: RunStore, run: str, *, checkpoint: str | None, root: Path) -> StoredCheckpoint:
    """Read a run's checkpoint; the network that it belongs to is not built.

    Args:
        store: Where the run is kept.
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last`` (the last training).
        checkpoint: ``best``, ``last``, ``initial`` or ``epoch=N``; ``None``: the best one, else the last one.
        root: Folder of the project.

    Raises:
        RunError: There is no such run or checkpoint.
        CheckpointError: The checkpoint is damaged.
    """
    info = store.find_run(run)
    names = checkpoint_names(info.tags)
    if not names:
        raise RunError(
            f"Run '{info.experiment}/{info.name}' ({info.kind or 'of another program'}) has no checkpoint. "
            "Name a run that has trained; 'dmx runs list --kind train' lists them."
        )
    name = checkpoint or ("best" if "best" in names else "last" if "last" in names else "initial")
    folder = checkpoint_path(store, info, name, root=root)
    content = read_checkpoint(folder, with_training_state=False)
    require_described(content.manifest, folder)
    if bad := not_finite(content.prediction_state):
        raise CheckpointError(
            f"Checkpoint '{name}' of run '{info.experiment}/{info.name}' holds NaN or infinite weights ({listed(bad)}):"
            f" its training had diverged. Take another one with --checkpoint, e.g. epoch=N; there are "
            f"{', '.join(names)}."
        )
    return StoredCheckpoint(run=info, name=name, folder=folder, content=content)


def open_trained(store: RunStore, run: str, *, checkpoint: str | None, root: Path) -> Trained:
    """Open a run's segmentation network; the arguments are those of :func:`stored_checkpoint`.

    Raises:
        RunError: There is no such run or checkpoint, or its network has learned something else.
        CheckpointError: The checkpoint is damaged or is that of another network.
    """
    opened = open_network(store, run, checkpoint=checkpoint, root=root)
    if not isinstance(opened, Trained):
        raise RunError(
            f"Run '{opened.run.experiment}/{opened.run.name}' has learned a {opened.task}, not a segmentation, so this "
            "cannot be done with its network."
        )
    return opened


def open_network(store: RunStore, run: str, *, checkpoint: str | None, root: Path) -> TrainedNetwork:
    """Open a run's network, whatever it has learned; the arguments are those of :func:`stored_checkpoint`.

    Returns:
        :class:`Trained` for a segmentation network.

    Raises:
        RunError: There is no such run or checkpoint.
        CheckpointError: The checkpoint is damaged or is that of another network.
    """
    stored = stored_checkpoint(store, run, checkpoint=checkpoint, root=root)
    content = stored.content
    contract = contract_of(content.manifest)
    network = network_of(content, contract)
    segments = isinstance(network, Network) and isinstance(contract, Contract)
    made: type[TrainedNetwork] = Trained if segments else TrainedNetwork
    return made(
        run=stored.run,
        checkpoint_name=stored.name,
        folder=stored.folder,
        manifest=content.manifest,
        network=network,
        contract=contract,
        experiment=run_experiment(store, stored.run, root=root),
        seen=lambda: read_identity(store, stored.run),
    )


def require_described(manifest: Mapping[str, Any], folder: Path) -> None:
    """Require that a checkpoint says all that is needed to use its network.

    Raises:
        CheckpointError: Something is missing or of another kind.
    """
    kinds: dict[str, tuple[type, ...]] = {
        **{"epoch": (int,), "global_step": (int,), "compatibility": (str,)},
        **{"model": (Mapping,), "contract": (Mapping,)},
    }
    wrong = [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]
    wrong += ["task"] if not isinstance(manifest.get("task", ""), str) else []
    wrong += ["source"] if not isinstance(manifest.get("source"), Mapping | None) else []
    if not wrong and not isinstance(manifest["model"].get("name", ""), str):
        wrong = ["model.name"]
    if wrong:
        raise CheckpointError(
            f"Checkpoint '{folder}' is damaged: its checkpoint.json lacks {', '.join(wrong)}, or holds something else "
            "there. Restore the file, or take another checkpoint with --checkpoint."
        )


def contract_of(manifest: Mapping[str, Any]) -> AnyContract:
    """Return what the network of a checkpoint sees.

    Raises:
        CheckpointError: The checkpoint does not say it.
    """
    values = manifest.get("contract")
    if not isinstance(values, Mapping):
        raise CheckpointError("The checkpoint is damaged: its checkpoint.json does not say what the network sees.")
    return ImageContract.from_dict(values) if values.get("kind") == KIND else Contract.from_dict(values)


def network_of(checkpoint: Checkpoint, contract: AnyContract) -> TrainableNetwork:
    """Build the network that a checkpoint describes, with the weights to predict with."""
    manifest = checkpoint.manifest
    try:
        network = build_by_task(
            section_from_dict(ModelSection, manifest["model"]),
            task=manifest.get("task", "segmentation"),
            num_channels=len(contract.channels),
            num_outputs=len(contract.outputs),
            compatibility=manifest["compatibility"],
            spatial_dims=contract.spatial_dims,
        )
        network.load_state_dict(dict(checkpoint.prediction_state))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ModelError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint's weights do not fit the network that it describes: {error}") from error
    network.eval()
    return network


def run_experiment(store: RunStore, info: RunInfo, *, root: Path) -> Experiment:
    """Return the resolved configuration of a run, the newest one when it was resumed with changes.

    Its files lie in the project of the store, never in whatever folder a command is called in.

    Args:
        store: Where the run is kept.
        info: The run.
        root: Folder of the project that is worked in, for stores that are those of no project.

    Raises:
        RunError: The run has none.
    """
    resumed = int(info.tags.get("dmx.resumed", "0"))
    available = store.list_artifacts(info.id)
    for name in (*(f"config.resume_{count}.yaml" for count in range(resumed, 0, -1)), "config.yaml"):
        if name in available:
            raw = with_absolute_files(_read(store, info, name), project_of(store.uri, root), elsewhere=False)
            return build_experiment(raw, source=f"{info.name}/{name}")
    place = f"Run '{info.experiment}/{info.name}'"
    if "dmx.version" in info.tags:
        raise RunError(
            f"{place} was ended before its settings were kept, so there is nothing to go on from. Begin a new run; "
            "'dmx runs reap' closes this one."
        )
    raise RunError(f"{place} has no config.yaml, so it was not made by dmx.")


def _read(store: RunStore, info: RunInfo, name: str) -> Any:
    local = store.local_artifacts(info.id)
    if local is not None:
        return read_yaml(within(local, name, what=f"Run {info.id[:8]}"))
    with tempfile.TemporaryDirectory() as folder:
        return read_yaml(store.download(info.id, name, Path(folder)))


def changed_prediction(run: str, overrides: Sequence[str], *, uri: str | None, root: Path) -> PredictionSection:
    """Return the prediction settings of a run with changes such as ``prediction.mirror=[0]``.

    Raises:
        ConfigError: A change concerns another section, or is not allowed.
    """
    for word in overrides:
        if not word.startswith("prediction."):
            raise ConfigError(
                f"Here --set changes settings of 'prediction', e.g. prediction.overlap=0.5, got '{word}'."
            )
    store = open_store(uri, root)
    raw = as_dict(run_experiment(store, store.find_run(run), root=root))
    return build_experiment(apply_overrides(raw, overrides), source="--set").prediction
