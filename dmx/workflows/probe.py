"""Read classes or numbers out of layers, cross-validated, as a run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmx.errors import CohortError, suggest
from dmx.evaluation.layer_outputs import chosen_layers
from dmx.evaluation.probe import ProbeReport, Task, probe_figure, probe_folds, probe_layers
from dmx.tracking.history import write_table
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo, RunReader
from dmx.training.device import resolve_device
from dmx.workflows.identity import find_leaks
from dmx.workflows.inside import LayerData, LayerRequest, Wanted, layer_data
from dmx.workflows.privacy import hiding
from dmx.workflows.session import Session
from dmx.workflows.start import source_params, trained_tags
from dmx.workflows.trained import TrainedNetwork, open_network

LABEL = "label"
"""The target that says what a case is."""


@dataclass(frozen=True, kw_only=True)
class ProbeRequest(LayerRequest):
    """What to read out of which layers.

    Attributes:
        pool: As of a :class:`LayerRequest`; here the mean unless something else is said.
        target: ``label``, which is classified, or the name of a column of numbers (``NAME`` of ``target_NAME``).
        folds: Number of folds; a subject is never in two.
        seed: Decides which subjects make up a fold.
    """

    pool: Wanted = "mean"
    target: str = LABEL
    folds: int = 5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What came out.

    Attributes:
        run: The run.
        report: Score of each layer, mean and per fold.
    """

    run: RunInfo
    report: ProbeReport


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What is read out: the cases that have it, their values, their subjects."""

    task: Task
    used: NDArray[np.intp]
    values: NDArray[Any]
    subjects: tuple[str, ...]


def probe(request: ProbeRequest, session: Session) -> Probed:
    """Read a target out of layers with linear models; each case runs through the network once for all layers.

    Raises:
        DmxError: Something that the user can mend, before the first case whenever it can be known before.
    """
    device = resolve_device(request.device)
    store = open_store(request.uri, session.root)
    trained = open_network(store, request.run, checkpoint=request.checkpoint, root=session.root)
    modules, _ = chosen_layers(trained.network, request.layers)
    data = layer_data(trained, request, device, session)
    target = _target(data, request.target, session)
    probe_folds(target.values, task=target.task, groups=target.subjects, folds=request.folds, seed=request.seed)
    _say_seen(store, trained, data, session)
    hide = hiding(trained.experiment, data.cohort.cases, session.root)
    new = NewRun(
        experiment=trained.run.experiment,
        kind="probe",
        words=f"{hide(data.name)} {request.target}",
        name=request.name,
        params={
            "cohort": hide(data.name),
            "split": request.split or "all",
            "cases": len(target.values),
            "layers": ", ".join(modules),
            "pool": data.pool or "none",
            "target": request.target,
            "folds": request.folds,
            "seed": request.seed,
            **source_params(trained),
        },
        tags=trained_tags(trained),
    )
    with (
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hide),
    ):
        features = _features(data, request, target, session)
        report = probe_layers(
            features,
            target.values,
            task=target.task,
            groups=target.subjects,
            folds=request.folds,
            seed=request.seed,
        )
        for note in report.notes:
            session.report.say(note)
        _log(run, report, request.target)
        return Probed(run=run.info, report=report)


def _target(data: LayerData, name: str, session: Session) -> _Target:
    """Return what is read out of which cases; those that lack it are left out."""
    known: Mapping[str, tuple[str | float | None, ...]] = {LABEL: data.labels, **data.targets}
    if name not in known:
        raise CohortError(
            f"'{data.name}' has no target '{name}'.{suggest(name, known)} It has: {', '.join(known)} "
            "(columns label and target_NAME)."
        )
    column = known[name]
    used = np.array([place for place, value in enumerate(column) if value is not None], dtype=np.intp)
    if not len(used):
        raise CohortError(f"No case of '{data.name}' says in its column '{name}' what is to be read out of layers.")
    if len(used) < len(column):
        session.report.say(f"{len(column) - len(used)} of {len(column)} cases have no {name} and are left out.")
    return _Target(
        task="classification" if name == LABEL else "regression",
        used=used,
        values=np.array([column[place] for place in used]),
        subjects=tuple(data.subjects[place] for place in used),
    )


def _say_seen(store: RunReader, trained: TrainedNetwork, data: LayerData, session: Session) -> None:
    exposure = find_leaks(store, trained.run, cohort=data.cohort, cases=data.cohort.cases)
    seen = len({leak.case for leak in exposure.trained_on})
    if seen:
        session.warn(
            f"{seen} of {len(data.names)} cases were in the training of the network or of its sources: the readout's "
            "folds are held out, the layers' features are not."
        )


def _features(
    data: LayerData, request: ProbeRequest, target: _Target, session: Session
) -> dict[str, NDArray[np.float32]]:
    """Return [cases, features] of each layer, for the cases that have the target."""
    parts: dict[str, list[torch.Tensor]] = {}
    done = 0
    for outputs in data.outputs(request.layers):
        session.report.progress("reading layers", done, len(data.names))
        for layer, values in outputs.items():
            parts.setdefault(layer, []).append(values.flatten(1))
        done += len(next(iter(outputs.values())))
    session.report.progress("reading layers", len(data.names), len(data.names))
    return {layer: torch.cat(values).numpy()[target.used] for layer, values in parts.items()}


def _log(run: ActiveRun, report: ProbeReport, target: str) -> None:
    best = max(report.layers, key=lambda score: score.mean)
    # One key for all layers: MLflow draws their course, and runs with other layers have the same keys.
    for place, score in enumerate(report.layers, start=1):
        run.log_metrics({"probe/score": score.mean, "probe/spread": score.spread}, place)
    run.log_metrics({"probe/best": best.mean, "probe/chance": report.chance}, len(report.layers))
    with run.guarded("probe"):
        write_table(run.files / "probe" / "layers.csv", [dict(row) for row in report.rows()])
        run.log_file("probe")
    summary = {"target": target, "best_layer": best.layer, **asdict(report)}
    run.log_text("probe/summary.json", json.dumps(summary, indent=2) + "\n")
    run.log_figure("figures/probe.png", probe_figure(report))
