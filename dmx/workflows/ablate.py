"""Score a run's network without some channels of a layer, beside the whole network, as a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmx.cohort.case import Cohort
from dmx.config.sections import PredictionSection
from dmx.evaluation.ablation import ablated
from dmx.evaluation.figures import dice_figure
from dmx.evaluation.metrics import FOREGROUND, Row
from dmx.evaluation.paired import PairedDifference, paired_difference
from dmx.evaluation.summary import cases_csv
from dmx.tracking.history import write_table
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.training.device import resolve_device
from dmx.workflows.evaluate import log_scored_cohort, require_unseen, score_prediction, scored_cases, scoring_predictor
from dmx.workflows.privacy import hiding
from dmx.workflows.session import Session
from dmx.workflows.start import source_params, trained_tags
from dmx.workflows.trained import Trained, open_trained
from dmx.workflows.volumes import CasePredictor, check_scans

METRICS = ("dice", "sensitivity", "precision")


@dataclass(frozen=True, kw_only=True)
class AblateRequest:
    """Which channels to switch off, and which cases to score.

    Attributes:
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        layer: Name of a convolution or linear layer, or of a module that holds exactly one.
        channels: Channels, counted from 1; ``None``: all.
        cohort: Manifest; ``None``: that of the run.
        checkpoint: Name of the checkpoint; ``None``: the best one, else the last one.
        split: Split to score; ``None``: evaluation, else validation, else all cases with a label map.
        settings: Changes of the run's ``prediction`` section.
        allow_leak: Go on when cases were in the training of the network or of its sources.
        device: Where to predict.
        uri: Run store.
        name: Name of the run.
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


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """What came out.

    Attributes:
        run: The run.
        cohort: Name of the cohort.
        split: Split that was scored; empty: all.
        cases: Number of cases.
        tensors: Tensors of the network in which channels were zero.
        changes: ``metric/class`` → scores of the whole network, of the ablated one, and their difference over subjects;
            ``None`` where no case has both.
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
    trained = open_trained(store, request.run, checkpoint=request.checkpoint, root=session.root)
    with ablated(trained.network, request.layer, request.channels) as tensors:
        pass
    cohort, split = scored_cases(trained, request.cohort, split=request.split)
    leak_tags = require_unseen(store, trained, cohort, session, allowed=request.allow_leak)
    check_scans(cohort, trained.contract, session, with_labels=True)
    predictor = scoring_predictor(trained, request.settings, device)
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
    with start_run(store, new, root=session.root, notify=session.report.say) as run:
        run.hide = hiding(trained.experiment, cohort.cases, session.root)
        log_scored_cohort(run, cohort, request.settings, session)
        whole = _rows(cohort, predictor, run, session, what="scoring the whole network")
        with ablated(trained.network, request.layer, request.channels):
            rows = _rows(cohort, predictor, run, session, what="scoring without the channels")
        changes = _changes(whole, rows, trained)
        _log(run, trained, {"unablated": whole, "ablated": rows}, changes)
        return Ablated(
            run=run.info,
            cohort=cohort.name,
            split=split,
            cases=len(rows),
            tensors=tensors,
            changes=changes,
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


def _rows(cohort: Cohort, predictor: CasePredictor, run: ActiveRun, session: Session, *, what: str) -> list[Row]:
    """Score every case with the network as it is now."""
    rows: list[Row] = []
    for number, case in enumerate(cohort.cases):
        session.report.progress(what, number, len(cohort.cases))
        found = predictor(case)
        scored = score_prediction(case, found, predictor.trained.contract, tolerance_mm=1.0)
        rows.append({"case": run.hide(case.name), "subject": run.hide(case.subject), **scored.scores})
    session.report.progress(what, len(cohort.cases), len(cohort.cases))
    return rows


def _changes(whole: Sequence[Row], rows: Sequence[Row], trained: Trained) -> dict[str, PairedDifference | None]:
    """Return what the ablation changed, per metric and class, paired by case."""
    subjects = {str(row["case"]): str(row["subject"]) for row in whole}
    names = [FOREGROUND, *trained.contract.classes[1:]]
    changes = {}
    for key in ("dice/mean", *(f"{metric}/{name}" for metric in METRICS for name in names)):
        first, second = (
            {str(row["case"]): value for row in table if isinstance(value := row[key], float)}
            for table in (whole, rows)
        )
        changes[key] = paired_difference(first, second, subjects, seed=trained.experiment.seed)
    return changes


def _log(
    run: ActiveRun,
    trained: Trained,
    tables: Mapping[str, Sequence[Row]],
    changes: Mapping[str, PairedDifference | None],
) -> None:
    """Keep tables, means and figures."""
    for name, rows in tables.items():
        run.log_text(f"ablation/{name}.csv", cases_csv(rows))
        run.log_figure(f"figures/dice_{name}.png", dice_figure(rows, trained.contract.classes))
    known = {key: change for key, change in changes.items() if change is not None}
    with run.guarded("ablation"):
        write_table(run.files / "ablation" / "changes.csv", [_change_row(key, known[key]) for key in known])
        run.log_file("ablation")
    # dice, of all classes, and dice/<class>
    keys = {key: key.removesuffix("/mean") for key in known if key.startswith("dice/")}
    run.log_metrics({f"ablation/{short}": known[key].second for key, short in keys.items()}, len(tables["ablated"]))
    run.log_metrics({f"unablated/{short}": known[key].first for key, short in keys.items()}, len(tables["ablated"]))


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
