"""Score a run's network on images or volumes whose class or numbers are known, as a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from dmx.cohort.digest import cohort_digest
from dmx.evaluation.figures import confusion_figure
from dmx.evaluation.metrics import Row
from dmx.evaluation.scores import confusion, measure
from dmx.evaluation.summary import Summary, cases_csv, summarize
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.privacy import relative
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import CohortInput, RunInfo
from dmx.training.device import resolve_device
from dmx.workflows.evaluate import EvaluateRequest, log_on_scored_run, require_unseen
from dmx.workflows.predict_scores import network_scores, score_rows
from dmx.workflows.privacy import hiding
from dmx.workflows.score_inputs import ScoreInputs, known_inputs
from dmx.workflows.session import Session
from dmx.workflows.start import source_params, trained_tags
from dmx.workflows.trained import TrainedNetwork, open_network

_LOGGED = {"classification": ("accuracy", "balanced_accuracy", "auc"), "regression": ("r2", "mse", "dnnbrain_r2")}
_MOST_CLASSES = 30


@dataclass(frozen=True, kw_only=True)
class EvaluatedScores:
    """What came out.

    Attributes:
        run: The run of the evaluation.
        task: ``classification`` or ``regression``.
        cohort: Name of the images or of the cohort.
        split: Split that was scored; empty: all.
        digest: What tells the cases from others, whatever their cohort is called.
        outputs: Classes or targets.
        rows: Truth, prediction and score of each case.
        scores: What all together are worth.
        summary: Mean of each case's score with its interval over subjects.
        paired_by: How the cohort's classes were paired with the network's: ``names``, ``position``, ``given`` or
            ``training`` (the cohort names none).
        label_values: Class that each label was read as, or target that each column was.
    """

    run: RunInfo
    task: str
    cohort: str
    split: str
    digest: str
    outputs: tuple[str, ...]
    rows: Sequence[Row]
    scores: Row
    summary: Mapping[str, Summary]
    paired_by: str = "names"
    label_values: Mapping[str, str] = field(default_factory=dict)


def evaluate_scores(request: EvaluateRequest, session: Session) -> EvaluatedScores:
    """Score a network on cases that it has not seen.

    Raises:
        DmxError: Something that the user can mend, before the first prediction whenever it can be known before.
    """
    device = resolve_device(request.device)
    store = open_store(request.uri, session.root)
    trained = open_network(store, request.run, checkpoint=request.checkpoint, root=session.root)
    inputs = known_inputs(
        trained, request.cohort, split=request.split, device=device, session=session, labels=request.labels
    )
    cohort, truth = inputs.cohort, inputs.truth
    assert truth is not None
    leak_tags = require_unseen(store, trained, cohort, session, allowed=request.allow_leak)
    scores = network_scores(trained, inputs, device)
    rows = truth_rows(trained, inputs, scores)
    found = measure(trained.task, scores, inputs.target, outputs=trained.contract.outputs)
    summary = summarize(rows, [case.subject for case in cohort.cases], seed=trained.experiment.seed)
    split = inputs.split or "all"
    new = NewRun(
        experiment=trained.run.experiment,
        kind="evaluate",
        words=f"{trained.run.name} {inputs.split}".strip(),
        name=request.name,
        params={
            "cohort": cohort.name,
            "split": split,
            "cases": len(rows),
            **(truth.params() | source_params(trained)),
        },
        tags={**trained_tags(trained), **leak_tags},
    )
    with (
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hiding(trained.experiment, cohort.cases, session.root)),
    ):
        digest = log_scored_inputs(run, inputs, session)
        values = _log(run, trained, rows, found, summary)
        log_on_scored_run(run, trained, cohort.name, values, request)
        if trained.task == "classification" and len(trained.contract.outputs) <= _MOST_CLASSES:
            counts = confusion(inputs.target, scores, num_classes=len(trained.contract.outputs))
            run.log_figure("figures/confusion.png", confusion_figure(counts, trained.contract.outputs, unit="cases"))
        return EvaluatedScores(
            run=run.info,
            task=trained.task,
            cohort=cohort.name,
            split=inputs.split,
            digest=digest,
            outputs=trained.contract.outputs,
            rows=rows,
            scores=found,
            summary=summary,
            paired_by=truth.by,
            label_values=truth.outputs,
        )


def truth_rows(trained: TrainedNetwork, inputs: ScoreInputs, scores: torch.Tensor) -> list[Row]:
    """Return truth, prediction and score of each case."""
    outputs, rows = trained.contract.outputs, []
    for case, predicted, truth in zip(
        inputs.cohort.cases, score_rows(trained, inputs, scores), inputs.target.tolist(), strict=True
    ):
        row: Row = {"case": case.name, "subject": case.subject}
        if trained.task == "regression":
            pairs = {name: (true, float(str(predicted[name]))) for name, true in zip(outputs, truth, strict=True)}
            errors = [(true - got) ** 2 for true, got in pairs.values()]
            row["squared_error"] = sum(errors) / len(errors)
            row |= {
                f"{what}/{name}": pair[k]
                for name, pair in pairs.items()
                for k, what in enumerate(("true", "predicted"))
            }
        else:
            row |= {"truth": outputs[truth], "predicted": str(predicted["predicted"])}
            row["accuracy"] = float(predicted["predicted"] == outputs[truth])
            row |= {key: float(str(value)) for key, value in predicted.items() if key.startswith("probability/")}
        rows.append(row)
    return rows


def log_scored_inputs(run: ActiveRun, inputs: ScoreInputs, session: Session) -> str:
    """Keep which images or volumes were scored, and return their digest."""
    cohort = inputs.cohort
    digest = inputs.digest or cohort_digest(cohort)
    run.log_cohort(
        CohortInput(
            name=cohort.name,
            digest=digest,
            context="evaluation",
            source=relative(cohort.manifest, session.root) if cohort.manifest else "",
            summary={"cases": len(cohort.cases), "subjects": len(cohort.subjects)},
        )
    )
    return digest


def _log(
    run: ActiveRun, trained: TrainedNetwork, rows: Sequence[Row], found: Row, summary: Mapping[str, Summary]
) -> dict[str, float]:
    """Keep the table and the scores; return the metrics."""
    hidden = [{key: run.hide(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    run.log_text("evaluation/cases.csv", cases_csv(hidden))
    first = "squared_error" if trained.task == "regression" else "accuracy"
    content = {"cases": len(rows), "scores": found, first: asdict(summary[first])}
    run.log_text("evaluation/summary.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    values = {name: found[name] for name in _LOGGED[trained.task]}
    if trained.task == "classification" and len(trained.contract.outputs) <= _MOST_CLASSES:
        keys = (f"{what}/{name}" for what in ("recall", "count") for name in trained.contract.outputs)
        values |= {key: found[key] for key in keys}
    values["cases"] = float(len(rows))
    metrics = {f"evaluation/{name}": value for name, value in values.items() if isinstance(value, float)}
    run.log_metrics(metrics, len(rows))
    return metrics
