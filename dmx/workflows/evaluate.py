"""Score a run's network on a cohort, as a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dmx.cohort.case import Case, Cohort
from dmx.cohort.digest import cohort_digest
from dmx.cohort.volume import read_volume
from dmx.config.sections import PredictionSection
from dmx.errors import CohortError
from dmx.evaluation.figures import confusion_figure, dice_figure
from dmx.evaluation.metrics import Row, confusion_counts, score_case
from dmx.evaluation.overlay import overlay_figure
from dmx.evaluation.summary import SUMMARY, ScoreTable, Summary, cases_csv
from dmx.evaluation.surface import ELEMENTS, SurfaceDefinition
from dmx.preprocess.contract import Contract
from dmx.preprocess.pipeline import class_indices
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.names import metric_key
from dmx.tracking.privacy import relative
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import CohortInput, RunInfo, RunReader
from dmx.training.device import resolve_device
from dmx.workflows.identity import find_leaks, require_no_leak
from dmx.workflows.predict import cohort_of_run, is_own_cohort
from dmx.workflows.privacy import hiding
from dmx.workflows.session import Session
from dmx.workflows.start import source_params, trained_tags
from dmx.workflows.trained import Trained, TrainedNetwork, open_trained
from dmx.workflows.truth_labels import read_truth
from dmx.workflows.volumes import CasePredictor, NativePrediction, case_predictor, require_channels, with_rois

_OVERLAYS = 4


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What to score, and on which cases.

    Attributes:
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        cohort: Manifest; ``None``: that of the run.
        checkpoint: Name of the checkpoint; ``None``: the best one, else the last one.
        split: Split to score; ``None``: evaluation, else validation, else all cases with a label map.
        settings: Changes of the run's ``prediction`` section.
        surface: What a surface is, and the tolerance of the normalized surface Dice.
        allow_leak: Go on when cases were in the training of the network or of its sources.
        device: Where to predict.
        uri: Run store.
        name: Name of the run.
        no_roi: Predict without rois, also where the network was trained with them.
        labels: Value in the label maps of the cohort: class of the network, by name or index, where the names of the
            classes do not say it. Of whole images and volumes the label, by its name or number.
    """

    run: str
    cohort: Path | None = None
    checkpoint: str | None = None
    split: str | None = None
    settings: PredictionSection | None = None
    surface: SurfaceDefinition = ELEMENTS
    allow_leak: bool = False
    device: str = "auto"
    uri: str | None = None
    name: str | None = None
    no_roi: bool = False
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What came out.

    Attributes:
        run: The run of the evaluation.
        cohort: Name of the cohort.
        split: Split that was scored; empty: all.
        digest: What tells the cases from others, whatever their cohort is called.
        classes: Classes without the background, or regions.
        rows: Scores of each case.
        table: Means with confidence intervals over subjects, and what they are the means of.
        paired_by: How the cohort's classes were paired with the network's: ``names``, ``position``, ``given`` or
            ``training`` (the cohort names none).
        label_values: Class that each value in the label maps was read as.
    """

    run: RunInfo
    cohort: str
    split: str
    digest: str
    classes: tuple[str, ...]
    rows: Sequence[Row]
    table: ScoreTable
    paired_by: str = "names"
    label_values: Mapping[int, str] = field(default_factory=dict)

    @property
    def summary(self) -> Mapping[str, Summary]:
        """Means with confidence intervals over subjects, by ``metric/class``."""
        return self.table.summaries


def evaluate(request: EvaluateRequest, session: Session) -> Evaluated:
    """Predict cases whose truth is known and score them on their own grids.

    Raises:
        DmxError: Something that the user can mend, before the first prediction whenever it can be known before.
    """
    device = resolve_device(request.device)
    store = open_store(request.uri, session.root)
    trained = open_trained(store, request.run, checkpoint=request.checkpoint, root=session.root)
    cohort, split = scored_cases(trained, request.cohort, split=request.split)
    cohort = with_rois(cohort, trained.contract, session, ignored=request.no_roi)
    leak_tags = require_unseen(store, trained, cohort, session, allowed=request.allow_leak)
    truth = read_truth(trained, cohort, request.cohort, given=request.labels, session=session)
    predictor = scoring_predictor(trained, request.settings, device, session=session)
    new = NewRun(
        experiment=trained.run.experiment,
        kind="evaluate",
        words=f"{trained.run.name} {split}".strip(),
        name=request.name,
        params=_params(request, cohort, split) | truth.params() | source_params(trained),
        tags={**trained_tags(trained), **leak_tags},
    )
    classes = (*trained.contract.scored,)
    with (
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hiding(trained.experiment, cohort.cases, session.root)),
    ):
        digest = log_scored_cohort(run, cohort, request.settings, session)
        scoring = _Scoring(trained, truth.contract, predictor, request.surface)
        rows = []
        for number, case in enumerate(cohort.cases, 1):
            session.report.progress("evaluating", number - 1, len(cohort.cases))
            rows.append(row := scoring.score(case, run))
            run.log_metrics({"case/dice": dice} if isinstance(dice := row["dice/mean"], float) else {}, number)
        session.report.progress("evaluating", len(cohort.cases), len(cohort.cases))
        subjects, seed = [case.subject for case in cohort.cases], trained.experiment.seed
        table = ScoreTable.of(rows, subjects, classes=classes, surface=request.surface, seed=seed)
        scoring.log(run, rows, table)
        log_on_scored_run(run, trained, cohort.name, table.main_metrics(), request)
        return Evaluated(
            paired_by=truth.by,
            label_values=truth.values,
            run=run.info,
            cohort=cohort.name,
            split=split,
            digest=digest,
            classes=classes,
            rows=rows,
            table=table,
        )


def _params(request: EvaluateRequest, cohort: Cohort, split: str) -> dict[str, object]:
    return {
        "cohort": cohort.name,
        "split": split or "all",
        "cases": len(cohort.cases),
        "surface": request.surface.kind,
        "tolerance_mm": request.surface.tolerance_mm,
        **({"roi": "ignored"} if request.no_roi else {}),
    }


def scored_cases(trained: Trained, manifest: Path | None, *, split: str | None) -> tuple[Cohort, str]:
    """Return the cases to score and the split that they are.

    Args:
        trained: The network.
        manifest: Manifest; ``None``: that of the run.
        split: Split to score; ``None``: evaluation, else validation, else all cases with a label map.

    Raises:
        CohortError: There are none, or they do not fit the network.
    """
    cohort = cohort_of_run(manifest, trained)
    owner = f"Checkpoint '{trained.checkpoint_name}' of run '{trained.run.experiment}/{trained.run.name}'"
    require_channels(cohort, trained.contract, owner=owner)
    splits: tuple[str, ...] = (split,) if split is not None else ("evaluation", "validation", "")
    if split is None and any(case.split for case in cohort.cases):
        # Cases without a split would be a mixture that nobody asked for.
        splits = ("evaluation", "validation")
    for chosen in splits:
        cases = tuple(case for case in cohort.in_split(chosen) if case.label_map is not None)
        if cases:
            return replace(cohort, cases=cases), chosen
    raise CohortError(
        f"Cohort '{cohort.name}' has no case with a label map in split {' or '.join(repr(name) for name in splits)}."
    )


def require_unseen(
    store: RunReader, trained: TrainedNetwork, cohort: Cohort, session: Session, *, allowed: bool
) -> dict[str, str]:
    """Require cases that neither the network nor its sources were trained on; return the tags of a run that may.

    Raises:
        CohortError: There are such cases, and they are not allowed.
    """
    exposure = find_leaks(store, trained.run, cohort=cohort, cases=cohort.cases)
    notes, tags = require_no_leak(exposure, allowed=allowed)
    for sentence in notes:
        session.warn(sentence)
    return tags


def scoring_predictor(
    trained: Trained, settings: PredictionSection | None, device: torch.device, *, session: Session
) -> CasePredictor:
    """Return what predicts the cases that are scored; ``None``: with the run's own settings."""
    predictor = case_predictor(trained, settings or trained.experiment.prediction, device, session=session)
    if trained.contract.compatibility == "deepmedic":
        # DeepMedic's first variant of the Dice score counts what is predicted outside of the roi.
        predictor = replace(predictor, predictor=replace(predictor.predictor, keep_outside=True))
    return predictor


def log_scored_cohort(run: ActiveRun, cohort: Cohort, settings: PredictionSection | None, session: Session) -> str:
    """Keep which cases were scored, and the settings where they are not the run's own; return the cases' digest."""
    digest = cohort_digest(cohort)
    run.log_cohort(
        CohortInput(
            name=cohort.name,
            digest=digest,
            context="evaluation",
            source=relative(cohort.manifest, session.root) if cohort.manifest else "",
            summary={"cases": len(cohort.cases), "subjects": len(cohort.subjects)},
        )
    )
    if settings is not None:
        run.log_text("prediction.json", json.dumps(asdict(settings), indent=2))
    return digest


def log_on_scored_run(
    run: ActiveRun, trained: TrainedNetwork, cohort: str, values: Mapping[str, float], request: EvaluateRequest
) -> None:
    """Log what an evaluation has found on the run that was scored, too, where runs are compared.

    The cases that a run keeps for its evaluation give ``evaluation/dice`` and so on. Another split or cohort has its
    name in the key, ``evaluation/<cohort>/dice``, so that one score never stands for the other.

    Args:
        run: The evaluation.
        trained: What was scored.
        cohort: Name of the cohort.
        values: Metrics of the evaluation, ``evaluation/…``.
        request: What was asked for.
    """
    parts = [] if is_own_cohort(request.cohort, trained) else [cohort]
    parts += [] if request.split in (None, "evaluation") else [request.split]
    prefix = "/".join(["evaluation", *(metric_key(part) for part in parts)])
    named = {f"{prefix}/{key.partition('/')[2]}": value for key, value in values.items()}
    run.log_metrics_of(trained.run, named, int(trained.manifest["global_step"]))


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """Scores of a case, and what they were made from.

    Attributes:
        scores: From :func:`~dmx.evaluation.metrics.score_case`.
        truth: Class indices [I, J, K].
        roi: Region that was scored; ``None``: all.
    """

    scores: Row
    truth: NDArray[np.integer]
    roi: NDArray[np.bool_] | None


def score_prediction(
    case: Case, found: NativePrediction, contract: Contract, *, surface: SurfaceDefinition
) -> ScoredCase:
    """Score what was predicted for a case on the grid of its scan.

    Args:
        case: The case.
        found: What was predicted.
        contract: How its label map is read; see :func:`~dmx.workflows.truth_labels.truth_labels`.
        surface: How distances between surfaces are measured.

    Raises:
        CohortError: The case has no label map, or one that cannot be read.
    """
    if case.label_map is None:
        raise CohortError(f"Case '{case.name}' has no label map to score against.")
    truth = class_indices(read_volume(case.label_map).array, contract, case=case.name, path=case.label_map)
    roi = None if case.roi is None else np.rint(read_volume(case.roi).array) > 0
    scores = score_case(
        truth,
        found.labels,
        spacing=found.grid.spacing,
        classes=contract.scored,
        roi=roi,
        surface=surface,
    )
    return ScoredCase(scores=scores, truth=truth, roi=roi)


class _Scoring:
    """Scores cases and keeps what the figures need."""

    def __init__(self, trained: Trained, truth: Contract, predictor: CasePredictor, surface: SurfaceDefinition) -> None:
        self._trained = trained
        self._truth = truth
        self._predictor = predictor
        self._surface = surface
        count = len(trained.contract.classes)
        self._confusion: NDArray[np.int64] = np.zeros((count, count), dtype=np.int64)
        self._drawn = 0

    def score(self, case: Case, run: ActiveRun) -> Row:
        """Predict and score one case."""
        contract = self._trained.contract
        found = self._predictor(case)
        scored = score_prediction(case, found, self._truth, surface=self._surface)
        self._confusion += confusion_counts(
            scored.truth, found.labels, num_classes=len(contract.classes), roi=scored.roi
        )
        row: Row = {"case": run.hide(case.name), "subject": run.hide(case.subject), **scored.scores}
        if self._drawn < _OVERLAYS:
            self._drawn += 1
            self._draw(run, case, found, scored.truth)
        return row

    def _draw(self, run: ActiveRun, case: Case, found: NativePrediction, truth: NDArray[np.integer]) -> None:
        """Draw the case as the network saw it where the grids agree, else the scans as they are."""
        contract = self._trained.contract
        files = [(name, case.channels.get(name)) for name in contract.channels]
        scans = {name: read_volume(path).array for name, path in files if path is not None}
        figure = overlay_figure(
            scans,
            found.labels,
            truth=truth,
            classes=contract.scored,
            spacing=found.grid.spacing,
            title=run.hide(case.name),
        )
        run.log_figure(f"figures/overlay_{run.hide(case.name)}.png", figure)

    def log(self, run: ActiveRun, rows: Sequence[Row], table: ScoreTable) -> None:
        """Keep tables, means and figures."""
        contract = self._trained.contract
        run.log_text("evaluation/cases.csv", cases_csv(rows))
        run.log_text(SUMMARY, table.to_json())
        run.log_figure("figures/dice_per_case.png", dice_figure(rows, contract.scored))
        if not contract.regions:
            # Regions overlap: none is taken for another.
            run.log_figure("figures/confusion.png", confusion_figure(self._confusion, contract.classes))
        run.log_metrics(table.metrics(), len(rows))
