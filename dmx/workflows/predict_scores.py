"""Score new images or volumes with a run's network: a table of classes or numbers, as a run."""

import csv
import io
import time

import torch

from dmx.cohort.files import atomic_file
from dmx.errors import ConfigError, ModelError
from dmx.evaluation.scores import collect_scores, probabilities
from dmx.tracking.history import write_table
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import NewRun, start_run
from dmx.training.device import resolve_device
from dmx.training.step import DTYPES
from dmx.workflows.predict import Predicted, PredictRequest
from dmx.workflows.privacy import hiding
from dmx.workflows.score_inputs import ScoreInputs, chosen_inputs
from dmx.workflows.session import Session
from dmx.workflows.start import source_params, trained_tags
from dmx.workflows.trained import TrainedNetwork, open_network


def predict_scores(request: PredictRequest, session: Session) -> Predicted:
    """Score images or volumes and write a table.

    Raises:
        DmxError: Something that the user can mend, before the first prediction whenever it can be known before.
    """
    _check_options(request)
    device = resolve_device(request.device)
    store = open_store(request.uri, session.root)
    trained = open_network(store, request.run, checkpoint=request.checkpoint, root=session.root)
    inputs = chosen_inputs(trained, request.inputs, split=request.split, device=device, session=session)
    start = time.perf_counter()
    rows = score_rows(trained, inputs, network_scores(trained, inputs, device))
    seconds = round((time.perf_counter() - start) / len(rows), 5)
    hide = hiding(trained.experiment, inputs.cohort.cases, session.root)
    new = NewRun(
        experiment=trained.run.experiment,
        kind="predict",
        words=hide(inputs.cohort.name),
        name=request.name,
        params={"cohort": hide(inputs.cohort.name), "cases": len(rows), **source_params(trained)},
        tags=trained_tags(trained),
    )
    with (
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hide),
    ):
        _write(request, rows)
        run.log_metrics({"time/case": seconds}, len(rows))
        with run.guarded("predictions"):
            hidden = [{k: hide(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
            write_table(run.files / "predictions" / "predictions.csv", hidden)
            run.log_file("predictions")
        return Predicted(run=run.info, rows=[{**row, "seconds": seconds} for row in rows])


def _check_options(request: PredictRequest) -> None:
    if request.features or request.probabilities:
        option = "--features" if request.features else "--probabilities"
        raise ConfigError(
            f"{option} belongs to segmentation; here the table holds all probabilities, and 'dmx activations' writes "
            "what layers give."
        )
    if request.rois or request.no_roi:
        raise ConfigError("--roi and --no-roi are for networks that segment; this one scores whole images or volumes.")
    if request.output.suffix != ".csv":
        raise ConfigError(f"Scores are written to a table: -o must end in .csv, got '{request.output}'.")
    if request.output.exists() and not request.overwrite:
        raise ConfigError(f"'{request.output}' exists. Give another name, or --overwrite.")


def network_scores(trained: TrainedNetwork, inputs: ScoreInputs, device: torch.device) -> torch.Tensor:
    """Return the scores of a network, float32 [cases, outputs], on the CPU."""
    section = trained.experiment
    precision = section.prediction.precision or section.training.precision
    network = trained.network.to(device).eval()
    scores, _ = collect_scores(network, inputs.batches, dtype=DTYPES[precision])
    bad = scores.isnan().any(dim=1).nonzero()[:, 0].tolist()
    if bad:
        raise ModelError(
            f"The network gives scores that are no numbers (NaN) for {len(bad)} of {len(scores)} cases, first "
            f"'{inputs.cohort.cases[bad[0]].name}'. Look at the case for extreme values, and use precision fp32 or "
            "another checkpoint."
        )
    return scores.cpu()


def score_rows(trained: TrainedNetwork, inputs: ScoreInputs, scores: torch.Tensor) -> list[dict[str, object]]:
    """Return a row per case: the class and all probabilities, or the numbers."""
    outputs = trained.contract.outputs
    cases = inputs.cohort.cases
    if trained.task == "regression":
        return [
            {"case": case.name, **dict(zip(outputs, map(float, row), strict=True))}
            for case, row in zip(cases, scores.tolist(), strict=True)
        ]
    return [
        {
            "case": case.name,
            "predicted": outputs[int(row.argmax())],
            **{f"probability/{name}": round(float(p), 6) for name, p in zip(outputs, row, strict=True)},
        }
        for case, row in zip(cases, probabilities(scores), strict=True)
    ]


def _write(request: PredictRequest, rows: list[dict[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        request.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(request.output) as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        raise ConfigError(f"'{request.output}' cannot be written: {error.strerror or error}.") from error
