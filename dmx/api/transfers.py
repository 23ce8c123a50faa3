"""Plan a transfer between any two networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from dmx.api.models import stored_origin
from dmx.api.places import Logged, open_place, run_name
from dmx.api.planned import PlannedTransfer
from dmx.config.load import section_from_dict
from dmx.config.transfer import TransferSection
from dmx.errors import TransferError, suggest
from dmx.model.network import Network
from dmx.model.sketch import sketch_module, sketch_network
from dmx.training.checkpoint import prediction_files
from dmx.training.weights import WeightsFile
from dmx.transfer.apply import TensorReader
from dmx.transfer.describe import NetworkSketch
from dmx.transfer.header import read_header
from dmx.transfer.layout import sketch_tensors
from dmx.transfer.planning import plan_transfer as plan
from dmx.workflows.options import transfer_options
from dmx.workflows.provenance import FileOrigin, Origin
from dmx.workflows.sources import run_source
from dmx.workflows.trained import contract_of, open_network, stored_checkpoint
from dmx.workflows.weights_file import open_weights_file, sketch_state

Source = nn.Module | str | Path | Mapping[str, Tensor]

_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def plan_transfer(
    source: Source | Mapping[str, Source],
    target: nn.Module,
    *,
    layers: Sequence[int | str] = (),
    head: Literal["initialized", "copy"] = "initialized",
    classes_from: Literal["position", "names"] = "position",
    extra: Literal["random", "zero-cross"] = "random",
    match_channels: Literal["name", "position"] = "name",
    input_channels: Literal["pair", "repeat", "mean"] = "pair",
    exclude: Sequence[int | str] = (),
    adapt_kernels: bool = False,
    map: Mapping[str, str] | Sequence[Mapping[str, str]] = (),  # noqa: A002  # the word of the experiment's section
    head_name: str | None = None,
    source_head_name: str | None = None,
    channels: Sequence[str] = (),
    classes: Sequence[str] = (),
    source_channels: Sequence[str] = (),
    source_classes: Sequence[str] = (),
    checkpoint: str | None = None,
    key: str | None = None,
    store: str | Path | None = None,
) -> PlannedTransfer:
    """Plan what a network receives from others, by names and shapes; no weight is changed before ``plan.apply``.

    The rules are those of ``dmx transfer`` (docs/transfer.md). Multi-scale networks are paired by pathway and position,
    all others by the names of their tensors.

    Args:
        source: A module, a run (as for ``load_model``), a state dict, or a file of weights; several as a mapping from
            names to these, which needs a `map`.
        target: The module that is to receive.
        layers: Depths of the source, from 1, or names of its layers; empty: every layer but the head.
        head: Whether the classification layer is copied.
        classes_from: How the rows of a copied head correspond.
        extra: What extra channels of a wider target hold: as initialized, or without influence on the old ones.
        match_channels: How input channels correspond, where both sides name them.
        input_channels: What the layers that read the scan receive where its channels differ in number: each channel
            from its counterpart; or the source's again and again, or their mean for each, scaled so that the sum stays.
        exclude: Depths or names of layers that stay as initialized.
        adapt_kernels: Adapt kernels of another size instead of refusing them.
        map: Explicit rules, source name → target name, ``*`` for any text; with several sources a list of mappings with
            ``source``, ``target`` and ``network``.
        head_name: Module of the target that gives the scores; ``None``: the last kernel of a plain module.
        source_head_name: The same for a source that is a plain module.
        channels: Names of the target's input channels, if they are to be matched by name.
        classes: Names of the target's classes.
        source_channels: The same for a source that is no run.
        source_classes: The same for a source that is no run.
        checkpoint: Checkpoint of a source that is a run; ``None``: the best one, else the last one.
        key: Key of the weights in a torch file that has several, such as ``model`` beside ``ema``; ``None``: averaged
            ones first.
        store: Run store, as for ``load_model``.

    Returns:
        The plan; ``print`` shows it.

    Raises:
        TransferError: The networks do not fit in the way that is asked for, or nothing would be transferred.
        RunError: There is no such run or checkpoint.
        CheckpointError: A file or checkpoint cannot be read.
    """
    if not isinstance(target, nn.Module):
        raise TransferError(f"The target must be a torch.nn.Module, got {type(target).__name__}.")
    words: dict[str, Any] = {
        "layers": list(layers),
        "head": head,
        "classes_from": classes_from,
        "extra": extra,
        "match_channels": match_channels,
        "channels": input_channels,
        "exclude": list(exclude),
        "adapt_kernels": adapt_kernels,
        "map": _rules(map),
    }
    opener = _Opener(source_head_name, tuple(source_channels), tuple(source_classes), checkpoint, key, store)
    sources = opener.open_all(source)
    sketch = _sketch(target, "target", head=head_name, channels=channels, classes=classes)
    planned = plan([found for found, _ in sources], sketch, transfer_options(section_from_dict(TransferSection, words)))
    return PlannedTransfer(planned, {found.name: reader for found, reader in sources}, opener.origins)


def _rules(rules: Mapping[str, str] | Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    if isinstance(rules, Mapping):
        return [{"source": source, "target": target} for source, target in rules.items()]
    return [dict(rule) for rule in rules]


def _sketch(
    module: nn.Module, name: str, *, head: str | None, channels: Sequence[str], classes: Sequence[str]
) -> NetworkSketch:
    if isinstance(module, Network):
        return sketch_network(module, name=name, channels=channels, classes=classes)
    known = dict(module.named_modules())
    if head is not None and head not in known:
        raise TransferError(f"The head must be a module of the {name}, got '{head}'.{suggest(head, known)}")
    return sketch_module(module, name=name, head=head, channels=channels, classes=classes)


@dataclass(frozen=True)
class _Opener:
    """Opens whatever a person may give as a source."""

    head: str | None
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    checkpoint: str | None
    key: str | None
    store: str | Path | None
    origins: dict[str, Origin | nn.Module] = field(default_factory=dict)

    def open_all(self, source: Source | Mapping[str, Source]) -> list[tuple[NetworkSketch, TensorReader]]:
        """Return names and shapes, and the tensors, of each source."""
        if isinstance(source, Mapping) and not all(isinstance(value, Tensor) for value in source.values()):
            return [self._open(given, name) for name, given in source.items()]
        return [self._open(source, "source")]

    def _open(self, source: object, name: str) -> tuple[NetworkSketch, TensorReader]:
        if isinstance(source, nn.Module):
            self.origins[name] = source
            sketch = _sketch(source, name, head=self.head, channels=self.channels, classes=self.classes)
            return sketch, _Live(source)
        if isinstance(source, Mapping) and source and all(isinstance(value, Tensor) for value in source.values()):
            return sketch_state(source, name=name, channels=self.channels, classes=self.classes), source
        if isinstance(source, Path) or (isinstance(source, str) and _names_file(source)):
            opened = open_weights_file(Path(source), name=name, key=self.key)
            for sentence in opened.sentences() if opened.beside else ():
                Logged().warn(sentence)
            self.origins[name] = FileOrigin(file=Path(source).name, sha256=opened.sha256)
            return opened.sketch, opened.reader
        if isinstance(source, str):
            return self._open_run(run_name(source), name)
        raise TransferError(
            "A source must be a torch.nn.Module, a run, a state dict of tensors, or a file of weights, got "
            f"{type(source).__name__}."
        )

    def _open_run(self, run: str, name: str) -> tuple[NetworkSketch, TensorReader]:
        store, session = open_place(self.store)
        stored = stored_checkpoint(store, run, checkpoint=self.checkpoint, root=session.root)
        self.origins[name] = stored_origin(stored, store.uri, session.root)
        manifest = stored.content.manifest
        if ":" not in manifest["model"]["name"]:
            trained = open_network(store, run, checkpoint=self.checkpoint, root=session.root)
            opened = run_source(name, trained)
            return opened.sketch, opened.reader
        # Names and shapes are enough: no code of the run's maker is needed to build the network.
        files = prediction_files(stored.folder, manifest)
        contract = contract_of(manifest)
        sketch = sketch_tensors(read_header(*files), name=name, channels=contract.channels, classes=contract.outputs)
        return sketch, WeightsFile(*files)


def _names_file(text: str) -> bool:
    """Return whether a text is meant as a file: by its ending, or because there is one."""
    return Path(text).suffix in _FILES or Path(text).is_file()


class _Live:
    """The tensors that a module has when they are read."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getitem__(self, name: str, /) -> Tensor:
        tensor: Tensor = self._module.state_dict()[name]
        return tensor
