"""How a run says what its network received: params, tags, artifacts."""

import csv
import io
import json
from collections.abc import Mapping, Sequence

from dmx.tracking.lineage import Source, file_source_tags, source_tags
from dmx.transfer.picture import mapping_html
from dmx.transfer.plan import TransferPlan
from dmx.workflows.assemble import Checked
from dmx.workflows.sources import OpenSource
from dmx.workflows.start import Start, described_source, source_params


def received(plan: TransferPlan) -> dict[str, str]:
    """Return parameter → ``copied``, ``sliced`` or ``adapted``."""
    return {tensor.name: tensor.action for tensor in plan.tensors if tensor.learned and tensor.action != "initialized"}


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
    options = plan.options
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
    wrappers = [
        f"The state dict of '{source.name}' was found inside of '{source.opened.wrapper}'."
        for source in files
        if source.opened is not None and source.opened.wrapper
    ]
    main = max((s for s in sources if s.trained is not None), key=lambda s: shares.get(s.name, 0.0), default=None)
    trained = None if main is None else main.trained
    return Start(
        kind="transfer",
        words=experiment.description or experiment.name,
        reason="initialized: transferred network",
        sentences=[*wrappers, *notes, *plan.summary()],
        tags={**lineage, **tags},
        params={
            **({} if trained is None else source_params(trained)),
            "transfer.received": plan.received,
            "transfer.share": f"{plan.share:.3f}",
            "transfer.layers": ",".join(map(str, options.layers)) or "all",
            "transfer.head": options.head,
            "transfer.extra": options.extra,
        },
        source=None if trained is None else described_source(trained),
        texts={
            "transfer/plan.json": json.dumps(plan.as_dict(), indent=1),
            "transfer/mapping.csv": _csv(plan.rows()),
            "transfer/mapping.html": mapping_html(plan),
        },
        received=received(plan),
    )


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
