"""The section of what a new network receives from others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_STRICT = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, kw_only=True)
class SourceSection:
    """A network that gives: a run's checkpoint, a file of weights that another tool wrote, or an installed package."""

    __pydantic_config__ = _STRICT

    run: str | None = None
    """Run id, unique prefix, EXPERIMENT/RUN-NAME or EXPERIMENT/last."""
    checkpoint: str | None = None
    """best, last, initial or epoch=N; empty: the best one, else the last one."""
    file: str | None = None
    """State dict as safetensors, or a torch file that opens with weights_only=True; relative to the experiment."""
    key: str | None = None
    """Key of the weights in a torch file that has several, such as `model` beside `ema`; empty: averaged ones first."""
    package: str | None = None
    """Published weights that an installed package holds: `efficientnet-lite0`."""
    sha256: str | None = None
    """Hash that the file must have; empty: any. A run's `config.yaml` names that of the file it was made with."""

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.run, self.file, self.package)) != 1:
            raise ValueError("a source must name either a run or a file or a package")
        if self.run is None and self.checkpoint is not None:
            raise ValueError("checkpoint belongs to a run, not to a file")
        if self.run is not None and self.sha256 is not None:
            raise ValueError("sha256 belongs to a file, not to a run")
        if self.file is None and self.key is not None:
            raise ValueError("key belongs to a file, not to a run or package")


@dataclass(frozen=True, kw_only=True)
class MapSection:
    """A rule that says where something of a source goes."""

    __pydantic_config__ = _STRICT

    source: str
    """Layer or tensor of the source; * stands for any text."""
    target: str
    """Layer or tensor of the new network; its stars stand for what the source's stood for."""
    network: str = ""
    """Name of the source, where there are several."""


@dataclass(frozen=True, kw_only=True)
class TransferSection:
    """What is received, and how; the rules are in docs/transfer.md."""

    __pydantic_config__ = _STRICT

    sources: Mapping[str, SourceSection] = field(default_factory=dict)
    """Name: source. One source needs no `map`; several need rules that say what each gives."""
    layers: tuple[int | str, ...] = ()
    """Depths of the source, from 1, or names of its layers where it has no pathways; empty: every layer but the
    head."""
    exclude: tuple[int | str, ...] = ()
    """Depths or names of layers that stay as initialized, with stars."""
    head: Literal["initialized", "copy"] = "initialized"
    """Whether the classification layer is copied."""
    classes_from: Literal["position", "names"] = "position"
    """How the rows of a copied head correspond."""
    extra: Literal["random", "zero-cross"] = "random"
    """What extra channels of a wider network hold: as initialized, or without influence on the old ones."""
    match_channels: Literal["name", "position"] = "name"
    """How input channels correspond."""
    channels: Literal["pair", "repeat", "mean"] = "pair"
    """What the layers that read the scan receive where its channels differ in number: each channel from its
    counterpart; or the source's channels again and again, or their mean for each, scaled so that the sum stays."""
    adapt_kernels: bool = False
    """Adapt kernels of another size instead of refusing them."""
    map: tuple[MapSection, ...] = ()
    """Explicit rules."""
