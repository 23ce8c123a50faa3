"""Where the weights of a module in Python come from: noted on the module, read when a training begins with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from dmx.cohort.case import Case, Cohort
from dmx.errors import RunError
from dmx.tracking.lineage import Source, file_source_tags, source_tags
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.store import RunInfo
from dmx.transfer.freeze_apply import digest
from dmx.transfer.plan import TransferPlan
from dmx.transfer.values import percent
from dmx.workflows.identity import Seen, compare, distinct, require_no_leak, seen_by, unknown_file
from dmx.workflows.received import option_params, plan_texts
from dmx.workflows.start import Start, across_stores

IN_PYTHON: Final = "dmx.weights"
"""Tag of a run that began with a module in Python, whose weights the run has from its first checkpoint on."""

_NOTES = "_dmx_origin"
_PLAN = "_dmx_plan"


@dataclass(frozen=True, kw_only=True)
class RunOrigin:
    """A checkpoint of a run.

    Attributes:
        run: The run.
        store: Address of its store.
        root: Folder of its project.
        name: ``best``, ``last``, …
        checkpoint: Path below the run's artifacts.
        sha256: Hash of its weights.
        epoch: Epochs done.
        global_step: Steps done.
    """

    run: RunInfo
    store: str
    root: Path
    name: str
    checkpoint: str
    sha256: str
    epoch: int
    global_step: int

    @property
    def key(self) -> str:
        """Return what tells one origin from another."""
        return f"{self.run.id}/{self.checkpoint}"

    def __str__(self) -> str:
        """Return how it is called in a sentence."""
        return f"run {self.run.experiment}/{self.run.name} ({self.run.id[:8]}), checkpoint '{self.name}'"


@dataclass(frozen=True, kw_only=True)
class FileOrigin:
    """A file of weights.

    Attributes:
        file: Its name.
        sha256: Its hash.
    """

    file: str
    sha256: str

    @property
    def key(self) -> str:
        """Return what tells one origin from another."""
        return self.sha256

    def __str__(self) -> str:
        """Return how it is called in a sentence."""
        return f"file {self.file}"


Origin = RunOrigin | FileOrigin


@dataclass(frozen=True)
class Note:
    """What is known of one tensor: where it comes from, how, and the hash that it had then."""

    origin: Origin
    action: str
    sha256: str


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def remember(model: nn.Module, origin: Origin) -> None:
    """Note that all tensors of a module come from somewhere, as they are now; a deep copy keeps the notes."""
    for module in model.modules():
        module.__dict__[_NOTES] = {
            name: Note(origin, "copied", digest(tensor)) for name, tensor in _own_tensors(module).items()
        }
    model.__dict__.pop(_PLAN, None)


def remember_plan(model: nn.Module, plan: TransferPlan, origins: Mapping[str, "Origin | nn.Module"]) -> None:
    """Note on a module what a transfer gave to it.

    Args:
        model: The target, which has received.
        plan: The transfer.
        origins: Where each source comes from, by its name in the plan; of a module its own notes count.
    """
    for tensor in plan.tensors:
        given = origins.get(tensor.network)
        origin = origin_of(given, tensor.source) if isinstance(given, nn.Module) else given
        if tensor.action == "initialized" or origin is None:
            continue
        place, _, name = tensor.name.rpartition(".")
        module = model.get_submodule(place)
        notes = dict(module.__dict__.get(_NOTES, {}))
        notes[name] = Note(origin, tensor.action, digest(_own_tensors(module)[name]))
        module.__dict__[_NOTES] = notes
    model.__dict__[_PLAN] = plan


def origin_of(model: nn.Module, name: str) -> Origin | None:
    """Return where a tensor of a module comes from, if that was noted."""
    place, _, own = name.rpartition(".")
    module = dict(model.named_modules()).get(place)
    note = None if module is None else module.__dict__.get(_NOTES, {}).get(own)
    return note.origin if isinstance(note, Note) else None


@dataclass
class Lineage:
    """Where the weights of a module come from.

    Attributes:
        origins: The sources, each once.
        received: Tensor → how it came: ``copied``, ``sliced`` or ``adapted``, also by what was done to it since.
        shares: Share of the parameters that each source gave, by its key.
        num_received: Number of parameters that a source decides.
        num_changed: Number of tensors that are no longer what they were.
        plan: The last transfer that was applied.
    """

    origins: dict[str, Origin] = field(default_factory=dict)
    received: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    num_received: int = 0
    num_changed: int = 0
    plan: TransferPlan | None = None

    @property
    def runs(self) -> list[RunOrigin]:
        """Return the sources that are runs, the one that gave most first."""
        found = [origin for origin in self.origins.values() if isinstance(origin, RunOrigin)]
        return sorted(found, key=lambda origin: -self.shares.get(origin.key, 0.0))


def _noted(model: nn.Module) -> Iterator[tuple[str, Tensor, Note, bool]]:
    """Yield each tensor that has a note: name, tensor, note, whether it is a parameter."""
    for place, module in model.named_modules():
        notes = module.__dict__.get(_NOTES, {})
        for name, tensor in _own_tensors(module).items():
            if isinstance(notes.get(name), Note):
                yield f"{place}.{name}".lstrip("."), tensor, notes[name], isinstance(tensor, nn.Parameter)


def lineage(model: nn.Module, *, prefix: str = "") -> Lineage:
    """Return what is noted on a module, compared with the weights that it has now.

    Args:
        model: The module.
        prefix: What stands before its names where it trains.
    """
    found = Lineage(plan=next((m.__dict__[_PLAN] for m in model.modules() if _PLAN in m.__dict__), None))
    total = sum(parameter.numel() for parameter in model.parameters())
    for name, tensor, note, learned in _noted(model):
        same = digest(tensor) == note.sha256
        found.num_changed += not same
        if learned:
            found.origins[note.origin.key] = note.origin
            # What was changed since is neither the source's nor as it was initialized.
            found.received[prefix + name] = note.action if same else "adapted"
            found.num_received += tensor.numel()
            share = tensor.numel() / max(total, 1)
            found.shares[note.origin.key] = found.shares.get(note.origin.key, 0.0) + share
    return found


def python_start(start: Start, found: Lineage, *, experiment: str, store: str) -> Start:
    """Return the beginning of a training of a module whose weights come from somewhere.

    Args:
        start: The beginning without that.
        found: What is noted on the module.
        experiment: MLflow experiment of the new run.
        store: Address of the new run's store.
    """
    start = replace(start, tags={**start.tags, IN_PYTHON: "given in Python"})
    if not found.origins:
        return start
    main = found.runs[0] if found.runs else None
    params: dict[str, object] = {**start.params, "network.received_parameters": found.num_received}
    texts = dict(start.texts)
    if found.plan is not None:
        texts |= plan_texts(found.plan, [str(origin) for origin in found.origins.values()])
        params |= {"transfer.received": found.plan.received, "transfer.share": f"{found.plan.share:.3f}"}
        params |= option_params(found.plan.options)
    files = [origin for origin in found.origins.values() if isinstance(origin, FileOrigin)]
    if files:
        params["source.file"] = ",".join(origin.file for origin in files)
    if main is not None:
        params |= {
            "source.run": f"{main.run.experiment}/{main.run.name}",
            "source.checkpoint": main.name,
            "source.epochs": main.epoch,
            "source.step": main.global_step,
        }
    return replace(
        start,
        uninitialized=False,
        reason="initialized: weights of another run" if main else "initialized: weights of a file",
        sentences=[*start.sentences, *_sentences(found)],
        tags={**start.tags, **_tags(found, files, experiment=experiment, store=store)},
        params=params,
        source=None if main is None else _described(main),
        texts=texts,
        received=found.received,
        seen=python_seen(found),
    )


def _sentences(found: Lineage) -> list[str]:
    lines = [
        f"{percent(found.shares[key])} of the parameters come from {origin}." for key, origin in found.origins.items()
    ]
    if found.num_changed:
        tensors = "1 tensor was" if found.num_changed == 1 else f"{found.num_changed} tensors were"
        lines.append(f"{tensors} changed since they were loaded, so this training does not begin exactly there.")
    return lines


def _tags(found: Lineage, files: Sequence[FileOrigin], *, experiment: str, store: str) -> dict[str, str]:
    tags: dict[str, str] = {}
    for origin in files:
        tags |= file_source_tags(Path(origin.file), origin.sha256)
    if found.runs:
        sources = [
            Source(run=one.run, checkpoint=one.checkpoint, sha256=one.sha256, share=found.shares.get(one.key, 0.0))
            for one in found.runs
        ]
        tags |= across_stores(source_tags(sources, experiment=experiment), found.runs[0].store, store)
    if found.num_changed:
        tags["dmx.source_changed"] = str(found.num_changed)
    return tags


def _described(origin: RunOrigin) -> dict[str, Any]:
    return {
        "run_id": origin.run.id,
        "run": f"{origin.run.experiment}/{origin.run.name}",
        "checkpoint": origin.checkpoint,
        "sha256": origin.sha256,
        "epoch": origin.epoch,
        "global_step": origin.global_step,
    }


def python_seen(found: Lineage) -> list[Seen]:
    """Return whom the sources of a module, and theirs, have seen."""
    seen: list[Seen] = []
    for origin in found.origins.values():
        if isinstance(origin, FileOrigin):
            seen.append(unknown_file(origin.file))
            continue
        try:
            seen += seen_by(open_store(origin.store, origin.root), origin.run)
        except RunError:
            seen.append(Seen(origin.run.id, f"{origin.run.experiment}/{origin.run.name}", known=False))
    return distinct(seen)


def python_leaks(
    found: Lineage, *, cohort: Cohort, cases: Sequence[Case], allowed: bool
) -> tuple[list[str], dict[str, str]]:
    """Return warnings and tags about held-out cases that the sources of a module have seen.

    Raises:
        CohortError: A held-out case was trained on and that is not allowed.
    """
    return require_no_leak(compare(python_seen(found), cohort=cohort, cases=cases), allowed=allowed)
