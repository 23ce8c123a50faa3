"""The networks that give, from runs and files; names and shapes first, weights when they are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dmx.config.load import build_experiment, section_from_dict
from dmx.config.model import ModelSection
from dmx.config.sections import Experiment
from dmx.config.transfer import SourceSection, TransferSection
from dmx.errors import CheckpointError, TransferError
from dmx.model.image_network import packaged_weights
from dmx.model.sketch import sketch_section
from dmx.preprocess.image_contract import ImageContract
from dmx.tracking.store import RunStore
from dmx.training.checkpoint import prediction_files
from dmx.training.weights import WeightsFile
from dmx.transfer.apply import TensorReader
from dmx.transfer.describe import NetworkSketch
from dmx.transfer.header import check_header, read_header
from dmx.transfer.plan import TransferPlan
from dmx.workflows.checked import AnyContract, has_regions
from dmx.workflows.inherited import transferred
from dmx.workflows.trained import TrainedNetwork, open_network
from dmx.workflows.weights_file import FileSource, open_weights_file


@dataclass(frozen=True, kw_only=True)
class OpenSource:
    """A source network, named and shaped; its weights are read one by one when they are needed.

    Attributes:
        name: What the plan calls it.
        sketch: Names and shapes.
        reader: Gives a tensor by name.
        trained: The run's network; ``None`` for a file.
        file: The file; ``None`` for a run.
        opened: The file's content.
    """

    name: str
    sketch: NetworkSketch
    reader: TensorReader
    trained: TrainedNetwork | None = None
    file: Path | None = None
    opened: FileSource | None = None


def open_source(store: RunStore, name: str, section: TransferSection, *, path: Path, root: Path) -> OpenSource:
    """Open one of the sources that a section names.

    Raises:
        RunError: There is no such run or checkpoint.
        CheckpointError: The weights are missing or damaged.
        ModelError: A package that holds them is unknown or not installed.
    """
    given = section.sources[name]
    if given.package is not None:
        return file_source(name, packaged_weights(given.package), sha256=given.sha256)
    if given.file is not None:
        file = path.resolve().parent / given.file
        file = file if file.is_file() else Path(given.file).resolve()
        return file_source(name, file, sha256=given.sha256, key=given.key)
    return run_source(name, open_network(store, str(given.run), checkpoint=given.checkpoint, root=root))


def file_source(name: str, file: Path, *, sha256: str | None, key: str | None = None) -> OpenSource:
    """Return a file of weights as a source.

    Args:
        name: What the plan calls it.
        file: The file.
        sha256: Hash that it must have; ``None``: any.
        key: Key of the weights in it; ``None``: the usual ones.

    Raises:
        CheckpointError: The file is missing, damaged, or another one.
    """
    opened = open_weights_file(file, name=name, for_scans=True, key=key)
    if sha256 not in (None, opened.sha256):
        raise CheckpointError(
            f"The settings want the file '{file}' with the SHA-256 {sha256}, got {opened.sha256}: its content was "
            "changed. Restore it, or leave sha256 out to take it as it is."
        )
    return OpenSource(name=name, sketch=opened.sketch, reader=opened.reader, file=file, opened=opened)


def run_source(name: str, trained: TrainedNetwork) -> OpenSource:
    """Return a run's checkpoint as a source."""
    weights = prediction_files(trained.folder, trained.manifest)
    sketch = sketch_section(
        section_from_dict(ModelSection, trained.manifest["model"]),
        name=name,
        channels=trained.contract.channels,
        classes=trained.contract.outputs,
        compatibility=trained.manifest["compatibility"],
        scores=trained.task != "segmentation",
        spatial_dims=trained.contract.spatial_dims,
        size=trained.contract.crop if isinstance(trained.contract, ImageContract) else None,
    )
    check_header(sketch, read_header(*weights))
    return OpenSource(name=name, sketch=sketch, reader=WeightsFile(*weights), trained=trained)


def require_same_outputs(plan: TransferPlan, contract: AnyContract, sources: Sequence[OpenSource]) -> None:
    """Require a head that keeps its meaning: softmax scores of classes are no sigmoid scores of regions.

    Raises:
        TransferError: The plan copies the one into the other.
    """
    ours = has_regions(contract)
    heads = {layer.name for layer in plan.target.layers if layer.is_head}
    given = {tensor.network for tensor in plan.tensors if tensor.layer in heads and tensor.received}
    for source in sources:
        if source.name in given and source.trained is not None and has_regions(source.trained.contract) != ours:
            theirs, here = ("classes", "regions") if ours else ("regions", "classes")
            raise TransferError(
                f"The head of {source.name} scores {theirs} ({', '.join(source.trained.contract.outputs)}), that of "
                f"the target {here} ({', '.join(contract.outputs)}), so its weights mean something else there. Leave "
                "the head as initialized."
            )


def pinned(section: TransferSection, sources: Sequence[OpenSource]) -> TransferSection:
    """Return the section with each source named for good: a run by its id and checkpoint, a file by its whole path.

    Weights in a package keep its name, and get their hash.
    """
    named: dict[str, SourceSection] = {}
    for source in sources:
        if source.trained is not None:
            named[source.name] = SourceSection(run=source.trained.run.id, checkpoint=source.trained.checkpoint_name)
        elif source.opened is not None:
            given = section.sources.get(source.name)
            package = None if given is None else given.package
            place = {"file": str(source.file)} if package is None else {"package": package}
            key = None if given is None else given.key
            named[source.name] = SourceSection(**place, key=key, sha256=source.opened.sha256)
    return replace(section, sources=named)


def settings_with(raw: Mapping[str, Any], sources: Sequence[OpenSource], *, path: Path) -> Experiment:
    """Return the settings; what is left out of network and preprocessing comes from the first run among the sources."""
    first = next((source.trained for source in sources if source.trained is not None), None)
    settings = raw if first is None else transferred(first, raw)
    return build_experiment(settings, source=str(path), folder=path.resolve().parent)
