"""Scores of a network as it is now, for whoever changes it in between: label maps, or whole images and volumes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from dmx.cohort.case import Cohort
from dmx.config.sections import PredictionSection
from dmx.evaluation.figures import dice_figure
from dmx.evaluation.metrics import FOREGROUND, Row
from dmx.evaluation.paired import PairedDifference, paired_difference
from dmx.evaluation.scores import measure
from dmx.evaluation.summary import summarize
from dmx.evaluation.surface import ELEMENTS
from dmx.preprocess.contract import Contract
from dmx.tracking.session import ActiveRun
from dmx.workflows.evaluate import log_scored_cohort, score_prediction
from dmx.workflows.evaluate_scores import log_scored_inputs, truth_rows
from dmx.workflows.predict_scores import network_scores
from dmx.workflows.score_inputs import ScoreInputs
from dmx.workflows.session import Session
from dmx.workflows.trained import Trained, TrainedNetwork
from dmx.workflows.volumes import CasePredictor

_METRICS = ("dice", "sensitivity", "precision")
# What is counted is no score.
_COUNTS = ("cases", "count/", "status/")

Changes = dict[str, PairedDifference | None]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a network is worth on some cases.

    Attributes:
        rows: One per case, with ``case`` and ``subject``.
        means: ``metric/class`` or ``metric`` → score of all cases.
    """

    rows: Sequence[Row]
    means: Mapping[str, float]

    def by_case(self, key: str) -> dict[str, float]:
        """Return the values of a column by the number of the case, where there are any."""
        return {str(n): value for n, row in enumerate(self.rows) if isinstance(value := row[key], float)}

    @property
    def subjects(self) -> dict[str, str]:
        """Return the subject of each case by its number."""
        return {str(n): str(row["subject"]) for n, row in enumerate(self.rows)}


class Scorer(Protocol):
    """Scores the same cases again and again."""

    @property
    def cohort(self) -> Cohort:
        """The cases."""
        ...

    @property
    def split(self) -> str:
        """The split that they are; empty: all."""
        ...

    def log_inputs(self, run: ActiveRun) -> None:
        """Keep which cases are scored."""
        ...

    def score(self, run: ActiveRun, *, what: str) -> Scored:
        """Score the network as it is now."""
        ...

    def changes(self, before: Scored, after: Scored) -> Changes:
        """Compare two scores of the same cases."""
        ...

    def log_figure(self, run: ActiveRun, scored: Scored, *, name: str) -> None:
        """Draw the scores of the cases, where there is something to see."""
        ...


@dataclass(frozen=True, kw_only=True)
class LabelMapScorer:
    """Scores predicted label maps on the grids of the scans; ``truth`` says how the cases' own are read."""

    trained: Trained
    truth: Contract
    cohort: Cohort
    split: str
    predictor: CasePredictor
    settings: PredictionSection | None
    session: Session

    def log_inputs(self, run: ActiveRun) -> None:
        """Keep which cases are scored."""
        log_scored_cohort(run, self.cohort, self.settings, self.session)

    def score(self, run: ActiveRun, *, what: str) -> Scored:
        """Predict and score every case."""
        rows: list[Row] = []
        for number, case in enumerate(self.cohort.cases):
            self.session.report.progress(what, number, len(self.cohort.cases))
            found = score_prediction(case, self.predictor(case), self.truth, surface=ELEMENTS)
            rows.append({"case": run.hide(case.name), "subject": run.hide(case.subject), **found.scores})
        self.session.report.progress(what, len(self.cohort.cases), len(self.cohort.cases))
        summary = summarize(rows, [str(row["subject"]) for row in rows], resamples=1)
        means = {key: mean for key in self._keys() if (mean := summary[key].mean) is not None}
        return Scored(rows=rows, means=means)

    def _keys(self) -> list[str]:
        names = [FOREGROUND, *self.trained.contract.scored]
        return ["dice/mean", *(f"{metric}/{name}" for metric in _METRICS for name in names)]

    def changes(self, before: Scored, after: Scored) -> Changes:
        """Compare the scores case by case; the means are those over subjects."""
        seed = self.trained.experiment.seed
        return {
            key: paired_difference(before.by_case(key), after.by_case(key), before.subjects, seed=seed)
            for key in self._keys()
        }

    def log_figure(self, run: ActiveRun, scored: Scored, *, name: str) -> None:
        """Draw the Dice of each case."""
        run.log_figure(f"figures/dice_{name}.png", dice_figure(scored.rows, self.trained.contract.scored))


@dataclass(frozen=True, kw_only=True)
class WholeScorer:
    """Scores classes or numbers of whole images and volumes."""

    trained: TrainedNetwork
    inputs: ScoreInputs
    device: torch.device
    session: Session

    @property
    def cohort(self) -> Cohort:
        """The images or volumes as cases."""
        return self.inputs.cohort

    @property
    def split(self) -> str:
        """The split that they are."""
        return self.inputs.split

    def log_inputs(self, run: ActiveRun) -> None:
        """Keep which images or volumes are scored."""
        log_scored_inputs(run, self.inputs, self.session)

    def score(self, run: ActiveRun, *, what: str) -> Scored:
        """Score all images or volumes."""
        self.session.report.progress(what, 0, 1)
        scores = network_scores(self.trained, self.inputs, self.device)
        self.session.report.progress(what, 1, 1)
        rows = [
            {**row, "case": run.hide(str(row["case"])), "subject": run.hide(str(row["subject"]))}
            for row in truth_rows(self.trained, self.inputs, scores)
        ]
        found = measure(self.trained.task, scores, self.inputs.target, outputs=self.trained.contract.outputs)
        means = {k: v for k, v in found.items() if isinstance(v, float) and not k.startswith(_COUNTS)}
        return Scored(rows=rows, means=means)

    def changes(self, before: Scored, after: Scored) -> Changes:
        """Compare the scores; accuracy and mean squared error, which are means over cases, have an interval."""
        # Score of all cases that is the mean of a column of the table.
        overall, column = ("mse", "squared_error") if self.trained.task == "regression" else ("accuracy", "accuracy")
        paired = paired_difference(
            before.by_case(column), after.by_case(column), before.subjects, seed=self.trained.experiment.seed
        )
        assert paired is not None
        changes: Changes = {}
        for name, first in before.means.items():
            second = after.means.get(name)
            low, high, p = (paired.low, paired.high, paired.p) if name == overall else (None, None, None)
            changes[name] = (
                None
                if second is None
                else replace(paired, first=first, second=second, difference=second - first, low=low, high=high, p=p)
            )
        return changes

    def log_figure(self, run: ActiveRun, scored: Scored, *, name: str) -> None:
        """Draw nothing: the table of cases says it."""
