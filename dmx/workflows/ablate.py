"""Score a run's network without some channels of a layer, beside the whole network, as a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dmx.config.sections import PredictionSection
from dmx.errors import ConfigError
from dmx.evaluation.ablation import ablated
from dmx.evaluation.paired import PairedDifference
from dmx.evaluation.summary import cases_csv
from dmx.tracking.history import write_table
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.training.device import resolve_device
from dmx.workflows.ablate_scores import LabelMapScorer, Scored, Scorer, WholeScorer
from dmx.workflows.evaluate import require_unseen, scored_cases, scoring_predictor
from dmx.workflows.privacy import hiding
from dmx.workflows.score_inputs import known_inputs
from dmx.workflows.session import Session
from dmx.workflows.start import source_params, trained_tags
from dmx.workflows.trained import Trained, TrainedNetwork, open_network
from dmx.workflows.truth_labels import read_truth
from dmx.workflows.volumes import with_rois


@dataclass(frozen=True, kw_only=True)
class AblateRequest:
    """Which channels to switch off, and which cases to score.

    Attributes:
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        layer: Name of a convolution or linear layer, or of a module that holds exactly one.
        channels: Channels, counted from 1; ``None``: all.
        cohort: Manifest, or list or folder of images; ``None``: that of the run.
        checkpoint: Name of the checkpoint; ``None``: the best one, else the last one.
        split: Split to score; ``None``: evaluation, else validation, else cases without one.
        settings: Changes of the run's ``prediction`` section.
        allow_leak: Go on when cases were in the training of the network or of its sources.
        device: Where to predict.
        uri: Run store.
        name: Name of the run.
        labels: Value in the label maps, or label: class of the network, as for an evaluation.
    """

    run: str
    layer: str
    channels: Sequence[int] | None = None
    cohort: Path | None = None
    checkpoint: str | None = None
    split: str | None = None
    settings: PredictionSection | None = None
    allow_leak: bool = False
    device: str = "auto"
    uri: str | None = None
    name: str | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """What came out.

    Attributes:
        run: The run.
        cohort: Name of the cohort.
        split: Split that was scored; empty: all.
        cases: Number of cases.
        tensors: Tensors of the network in which channels were zero.
        changes: ``metric/class``, or ``metric`` of all classes → scores of the whole network, of the ablated one, and
            their difference over subjects; ``None`` where no case has both.
    """

    run: RunInfo
    cohort: str
    split: str
    cases: int
    tensors: tuple[str, ...]
    changes: Mapping[str, PairedDifference | None]


def ablate(request: AblateRequest, session: Session) -> Ablated:
    """Score a network whole and with channels of a layer switched off, on the same cases.

    Raises:
        DmxError: Something that the user can mend, before the first prediction whenever it can be known before.
    """
    device = resolve_device(request.device)
    store = open_store(request.uri, session.root)
    trained = open_network(store, request.run, checkpoint=request.checkpoint, root=session.root)
    with ablated(trained.network, request.layer, request.channels) as tensors:
        pass
    scorer = _scorer(request, trained, device, session)
    cohort, split = scorer.cohort, scorer.split
    leak_tags = require_unseen(store, trained, cohort, session, allowed=request.allow_leak)
    new = NewRun(
        experiment=trained.run.experiment,
        kind="ablate",
        words=f"{request.layer} {channels_text(request.channels)}",
        name=request.name,
        params={
            "cohort": cohort.name,
            "split": split or "all",
            "cases": len(cohort.cases),
            "layer": request.layer,
            "channels": channels_text(request.channels),
            **source_params(trained),
        },
        tags={**trained_tags(trained), **leak_tags},
    )
    with (
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hiding(trained.experiment, cohort.cases, session.root)),
    ):
        scorer.log_inputs(run)
        whole = scorer.score(run, what="scoring the whole network")
        with ablated(trained.network, request.layer, request.channels):
            rest = scorer.score(run, what="scoring without the channels")
        changes = scorer.changes(whole, rest)
        _log(run, scorer, {"unablated": whole, "ablated": rest}, changes)
        return Ablated(
            run=run.info,
            cohort=cohort.name,
            split=split,
            cases=len(cohort.cases),
            tensors=tensors,
            changes=changes,
        )


def _scorer(request: AblateRequest, trained: TrainedNetwork, device: torch.device, session: Session) -> Scorer:
    """Return what scores a network in the way of what it has learned, with its cases checked."""
    if not isinstance(trained, Trained):
        if request.settings is not None:
            raise ConfigError("--set prediction.… belongs to segmentation; whole images and volumes need none.")
        inputs = known_inputs(
            trained, request.cohort, split=request.split, device=device, session=session, labels=request.labels
        )
        return WholeScorer(trained=trained, inputs=inputs, device=device, session=session)
    cohort, split = scored_cases(trained, request.cohort, split=request.split)
    cohort = with_rois(cohort, trained.contract, session)
    truth = read_truth(trained, cohort, request.cohort, given=request.labels, session=session)
    return LabelMapScorer(
        trained=trained,
        truth=truth.contract,
        cohort=cohort,
        split=split,
        predictor=scoring_predictor(trained, request.settings, device, session=session),
        settings=request.settings,
        session=session,
    )


def channels_text(channels: Sequence[int] | None) -> str:
    """Return channels as a person writes them.

    >>> channels_text([1, 2, 3, 12]), channels_text(None)
    ('1-3,12', 'all')
    """
    if channels is None:
        return "all"
    ranges: list[list[int]] = []
    for number in sorted(set(channels)):
        if ranges and ranges[-1][-1] == number - 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, one)) for one in ranges)


def _log(
    run: ActiveRun, scorer: Scorer, tables: Mapping[str, Scored], changes: Mapping[str, PairedDifference | None]
) -> None:
    """Keep tables, scores and figures."""
    for name, scored in tables.items():
        run.log_text(f"ablation/{name}.csv", cases_csv(scored.rows))
        scorer.log_figure(run, scored, name=name)
        # dice, of all classes, and dice/<class>
        prefix = "ablation" if name == "ablated" else name
        means = {f"{prefix}/{key.removesuffix('/mean')}": mean for key, mean in scored.means.items()}
        run.log_metrics(means, len(scored.rows))
    known = {key: change for key, change in changes.items() if change is not None}
    with run.guarded("ablation"):
        write_table(run.files / "ablation" / "changes.csv", [_change_row(key, known[key]) for key in known])
        run.log_file("ablation")


def _change_row(key: str, change: PairedDifference) -> dict[str, object]:
    metric, _, name = key.partition("/")
    return {
        "metric": metric,
        "class": name,
        "unablated": change.first,
        "ablated": change.second,
        "difference": change.difference,
        "low": change.low,
        "high": change.high,
        "cases": change.cases,
        "subjects": change.subjects,
    }
