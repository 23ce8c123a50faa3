"""Predict and evaluate with a run's network in the way of what it has learned."""

from dmx.errors import ConfigError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.evaluate import Evaluated, EvaluateRequest, evaluate
from dmx.workflows.evaluate_scores import EvaluatedScores, evaluate_scores
from dmx.workflows.predict import Predicted, PredictRequest, predict
from dmx.workflows.predict_scores import predict_scores
from dmx.workflows.session import Session

_SEGMENTATION = "segmentation"


def task_of(run: str, session: Session, *, uri: str | None) -> str:
    """Return what a run's network has learned.

    Raises:
        RunError: There is no such run.
    """
    return open_store(uri, session.root).find_run(run).tags.get("dmx.task", _SEGMENTATION)


def predict_by_task(request: PredictRequest, session: Session) -> Predicted:
    """Predict label maps, or a table of scores; see :func:`predict` and :func:`predict_scores`."""
    segments = task_of(request.run, session, uri=request.uri) == _SEGMENTATION
    return predict(request, session) if segments else predict_scores(request, session)


def evaluate_by_task(request: EvaluateRequest, session: Session) -> Evaluated | EvaluatedScores:
    """Score a network; see :func:`evaluate` and :func:`evaluate_scores`."""
    if task_of(request.run, session, uri=request.uri) == _SEGMENTATION:
        return evaluate(request, session)
    if request.no_roi:
        raise ConfigError("--no-roi is for networks that segment; this one scores whole images or volumes.")
    return evaluate_scores(request, session)
