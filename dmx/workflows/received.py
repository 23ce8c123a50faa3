"""How a run says what its network received: params, tags, artifacts."""

import csv
import io
import json
from collections.abc import Mapping, Sequence

from dmx.tracking.lineage import Source, file_source_tags, source_tags
from dmx.training.scales import resolve_scales
from dmx.transfer.freeze_parts import network_parts
from dmx.transfer.options import TransferOptions
from dmx.transfer.picture import mapping_html
from dmx.transfer.plan import TransferPlan
from dmx.transfer.unused import lost_parameters
from dmx.workflows.checked import Checked
from dmx.workflows.sources import OpenSource
from dmx.workflows.start import Start, described_source, source_params

PLAN = "transfer/plan.json"
"""The artifact that keeps the plan."""


def received(plan: TransferPlan) -> dict[str, str]:
    """Return parameter → ``copied``, ``sliced`` or ``adapted``."""
    return {tensor.name: tensor.action for tensor in plan.tensors if tensor.learned and tensor.action != "initialized"}


def found_sentences(sources: Sequence[OpenSource]) -> list[str]:
    """Return what is to be said about how the networks were found in their files."""
    return [told for source in sources if source.opened is not None for told in source.opened.sentences()]


def transfer_start(
    checked: Checked,
    plan: TransferPlan,
    sources: Sequence[OpenSource],
    *,
    notes: Sequence[str],
    tags: Mapping[str, str],
) -> Start:
    """Return the beginning of a run from a plan that has been carried out.

    Args:
        checked: The experiment.
        plan: The plan.
        sources: Where weights came from; the one that gave most is the parent.
        notes: What else to say.
        tags: Further tags.
    """
    experiment = checked.experiment
    shares = _shares(plan)
    files = [source for source in sources if source.file is not None and source.opened is not None]
    runs = [
        Source(
            run=source.trained.run,
            checkpoint=f"checkpoints/{source.trained.folder.name}",
            sha256=source.trained.sha256,
            share=shares.get(source.name, 0.0),
        )
        for source in sources
        if source.trained is not None
    ]
    lineage = source_tags(runs, experiment=experiment.tracking.experiment or experiment.name) if runs else {}
    for source in files:
        if source.file is not None and source.opened is not None:
            # Where there is a run too, the hash is that of its checkpoint.
            lineage = file_source_tags(source.file, source.opened.sha256) | lineage
    origins = [_origin(source) for source in sources]
    main = max((s for s in sources if s.trained is not None), key=lambda s: shares.get(s.name, 0.0), default=None)
    trained = None if main is None else main.trained
    return Start(
        kind="transfer",
        words=experiment.description or experiment.name,
        reason="initialized: transferred network",
        sentences=[*origins, *found_sentences(sources), *notes, *plan.summary(folded=True, warnings=False)],
        warnings=plan.warnings,
        tags={**lineage, **tags},
        params={
            **({} if trained is None else source_params(trained)),
            **({"source.file": ",".join(source.file.name for source in files if source.file)} if files else {}),
            "network.received_parameters": plan.received,
            "transfer.received": plan.received,
            "transfer.share": f"{plan.share:.3f}",
            "transfer.unused": lost_parameters(plan.source_tensors),
            **option_params(plan.options),
        },
        source=None if trained is None else described_source(trained),
        texts=plan_texts(plan, origins),
        received=received(plan),
    )


def plan_texts(plan: TransferPlan, origins: Sequence[str]) -> dict[str, str]:
    """Return the artifacts that keep a plan.

    Args:
        plan: The plan.
        origins: Where the weights come from, a sentence each.
    """
    return {
        PLAN: json.dumps(plan.as_dict(), indent=1),
        "transfer/mapping.csv": _csv(plan.rows()),
        "transfer/mapping.html": mapping_html(plan, origins=origins),
    }


def _origin(source: OpenSource) -> str:
    """Say where a source's weights come from."""
    trained = source.trained
    if trained is None:
        name = "" if source.file is None else source.file.name
        return f"Weights of '{source.name}': file {name}."
    place = f"run {trained.run.experiment}/{trained.run.name} ({trained.run.id[:8]})"
    done = f"after {trained.manifest['epoch']} epochs and {trained.manifest['global_step']} steps"
    return f"Weights of '{source.name}': {place}, checkpoint '{trained.checkpoint_name}' {done}."


def option_params(options: TransferOptions) -> dict[str, object]:
    """Return what a transfer was asked to do; the rarer options only where they are set."""
    params: dict[str, object] = {
        "transfer.layers": ",".join(map(str, options.layers)) or "all",
        "transfer.head": options.head,
        "transfer.extra": options.extra,
    }
    if options.classes_from != "position":
        params["transfer.classes_from"] = options.classes_from
    if options.match_channels != "name":
        params["transfer.match_channels"] = options.match_channels
    if options.channels != "pair":
        params["transfer.channels"] = options.channels
    if options.exclude:
        params["transfer.exclude"] = ",".join(map(str, options.exclude))
    if options.adapt_kernels:
        params["transfer.adapt_kernels"] = "true"
    if options.map:
        params["transfer.map"] = ", ".join(
            f"{rule.network}{':' if rule.network else ''}{rule.source} → {rule.target}" for rule in options.map
        )
    return params


def origin_params(checked: Checked, received: Mapping[str, str]) -> dict[str, object]:
    """Return the params of a training that depend on where its weights come from, where they are set.

    Args:
        checked: The training.
        received: Parameter → how it came from a source; one that is missing was initialized.
    """
    experiment = checked.experiment
    params: dict[str, object] = {}
    given = experiment.optimizer.lr_scale
    if given:
        words = ", ".join(f"{name}={factor:g}" for name, factor in given.items())
        params["optimizer.lr_scale"] = f"{words} ({_factors(checked, given, received)})"
    if experiment.regularization.l2_to_source:
        params["regularization.l2_to_source"] = experiment.regularization.l2_to_source
    if experiment.schedule.warmup is not None:
        params["schedule.warmup"] = experiment.schedule.warmup
    return params


def _factors(checked: Checked, given: Mapping[str, float], received: Mapping[str, str]) -> str:
    """Say which factor of the learning rate acts on how many parameters."""
    factors = resolve_scales(given, network_parts(checked.network), received)
    counts: dict[float, int] = {}
    for name, parameter in checked.network.named_parameters():
        factor = factors.get(name, 1.0)
        counts[factor] = counts.get(factor, 0) + parameter.numel()
    return ", ".join(f"{factor:g} on {count} parameters" for factor, count in sorted(counts.items()))


def _shares(plan: TransferPlan) -> dict[str, float]:
    """Return the share of the network's parameters that each source gave."""
    shares: dict[str, float] = {}
    for tensor in plan.tensors:
        if tensor.learned and tensor.network:
            shares[tensor.network] = shares.get(tensor.network, 0.0) + tensor.received / plan.parameters
    return shares


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
