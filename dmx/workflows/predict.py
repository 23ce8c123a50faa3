"""Predict new scans with a run's network, as a run."""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dmx.cohort.case import Case, Cohort
from dmx.cohort.splits import k_fold
from dmx.cohort.volume import integer_type, write_volume
from dmx.config.sections import PredictionSection
from dmx.errors import CohortError, ConfigError, ModelError
from dmx.preprocess.contract import Contract
from dmx.tracking.history import write_table
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun, NewRun, start_run
from dmx.tracking.store import RunInfo
from dmx.training.device import resolve_device
from dmx.workflows.data import read_cohort
from dmx.workflows.loose_files import cohort_of_files, with_roi_files
from dmx.workflows.privacy import hiding
from dmx.workflows.reads import is_own, own_source, require_own
from dmx.workflows.session import Session
from dmx.workflows.start import source_params, trained_tags
from dmx.workflows.trained import Trained, TrainedNetwork, open_trained
from dmx.workflows.volumes import (
    CasePredictor,
    NativePrediction,
    case_predictor,
    check_scans,
    require_channels,
    with_rois,
)

_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """What to predict, with what, and where to.

    Attributes:
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        inputs: One manifest, or NIfTI files: of a network with one channel each is a case; else one file per channel,
            in the network's order, of one case.
        output: Folder for what is predicted.
        checkpoint: Name of the checkpoint; ``None``: the best one, else the last one.
        split: Only cases of this split of the manifest.
        probabilities: Also write a probability map per class or region.
        features: Layer → first and last channel of its feature maps to write.
        settings: Changes of the run's ``prediction`` section.
        device: Where to predict.
        uri: Run store.
        name: Name of the run.
        overwrite: Replace files that are there.
        class_indices: Write the index of each class, instead of the value that it has in the label maps that the
            network was trained on.
        rois: Roi of each case, where single files are predicted.
        no_roi: Predict without rois, also where the network was trained with them.
    """

    run: str
    inputs: Sequence[Path]
    output: Path
    checkpoint: str | None = None
    split: str | None = None
    probabilities: bool = False
    features: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    settings: PredictionSection | None = None
    device: str = "auto"
    uri: str | None = None
    name: str | None = None
    overwrite: bool = False
    class_indices: bool = False
    rois: Sequence[Path] = ()
    no_roi: bool = False


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What came out.

    Attributes:
        run: The run of the prediction.
        rows: One mapping per case: file, seconds, volume of each class or region in ml.
        label_values: Class that each value in the label maps is; empty where there are none.
    """

    run: RunInfo
    rows: Sequence[Mapping[str, object]]
    label_values: Mapping[int, str] = field(default_factory=dict)


def predict(request: PredictRequest, session: Session) -> Predicted:
    """Predict scans and write label maps on their own grids.

    Raises:
        DmxError: Something that the user can mend, before the first prediction whenever it can be known before.
    """
    device = resolve_device(request.device)
    store = open_store(request.uri, session.root)
    trained = open_trained(store, request.run, checkpoint=request.checkpoint, root=session.root)
    cohort = chosen_cases(request.inputs, trained, split=request.split, session=session, rois=request.rois)
    cohort = with_rois(cohort, trained.contract, session, ignored=request.no_roi)
    check_layers(trained, request.features)
    _require_free_names(cohort, request)
    check_scans(cohort, trained.contract, session, with_labels=False)
    predictor = case_predictor(
        trained,
        request.settings or trained.experiment.prediction,
        device,
        with_probabilities=request.probabilities,
        layers=request.features,
        session=session,
    )
    hide = hiding(trained.experiment, cohort.cases, session.root)
    values = written_values(trained.contract, request)
    words = ", ".join(f"{value}={name}" for value, name in values.items())
    if list(values) != list(range(len(values))):
        session.report.say(f"The label maps have the values of the training's: {words}.")
    new = NewRun(
        experiment=trained.run.experiment,
        kind="predict",
        words=hide(cohort.name),
        name=request.name,
        params={"cohort": hide(cohort.name), "cases": len(cohort.cases), "labels.values": words}
        | ({"roi": "ignored"} if request.no_roi else {})
        | source_params(trained),
        tags=trained_tags(trained),
    )
    with (
        start_run(store, new, root=session.root, notify=session.report.say) as run,
        session.keeping(run, hide),
    ):
        rows = []
        for number, case in enumerate(cohort.cases, 1):
            session.report.progress("predicting", number - 1, len(cohort.cases))
            rows.append(_predict_case(case, predictor, request, trained))
            run.log_metrics({"time/case": float(str(rows[-1]["seconds"]))}, number)
        session.report.progress("predicting", len(cohort.cases), len(cohort.cases))
        _log(run, rows)
        return Predicted(run=run.info, rows=rows, label_values=values)


def written_values(contract: Contract, request: PredictRequest) -> dict[int, str]:
    """Return the value that each class gets in the label maps: the name of the class by value."""
    values = range(len(contract.classes)) if request.class_indices else contract.written_values
    return dict(zip(values, contract.classes, strict=True))


def cohort_of_run(manifest: Path | None, trained: TrainedNetwork) -> Cohort:
    """Return a cohort; that of the run itself is split as it was for the training.

    Args:
        manifest: Manifest; ``None``: that of the run.
        trained: The network.

    Raises:
        CohortError: There is no such manifest, or it cannot be used.
    """
    section, known = trained.experiment.cohort, trained.seen
    if manifest is None:
        cohort = read_cohort(own_source(trained.run, trained.experiment))
        require_own(trained.run, known(), cohort)
    else:
        cohort = read_cohort(manifest)
        if section.fold is None or not (section.manifest == str(manifest.resolve()) or is_own(known(), cohort)):
            return cohort
    if section.fold is not None:
        return k_fold(cohort, fold=section.fold, folds=section.folds, seed=trained.experiment.seed)
    return cohort


def is_own_cohort(given: Path | None, trained: TrainedNetwork) -> bool:
    """Return whether a manifest or list of images, or ``None``, is that of the training of a network."""
    if given is None:
        return True
    with suppress(CohortError):
        return own_source(trained.run, trained.experiment).resolve() == given.resolve()
    return False


def chosen_cases(
    inputs: Sequence[Path],
    trained: TrainedNetwork,
    *,
    split: str | None,
    session: Session,
    rois: Sequence[Path] = (),
) -> Cohort:
    """Return the cases that a manifest or single files name.

    Args:
        inputs: A manifest, or files.
        trained: The network.
        split: Only cases of this split of the manifest.
        session: Told how files were understood.
        rois: Roi of each case of single files.

    Raises:
        CohortError: They do not fit the network's channels, or nothing is left.
        ConfigError: The words are neither a manifest nor NIfTI files.
    """
    owner = f"Checkpoint '{trained.checkpoint_name}' of run '{trained.run.experiment}/{trained.run.name}'"
    if len(inputs) == 1 and inputs[0].suffix == ".csv":
        if rois:
            raise ConfigError("--roi is for single files; a manifest names rois in its column 'roi'.")
        cohort = cohort_of_run(inputs[0], trained)
        require_channels(cohort, trained.contract, owner=owner)
        if split is not None:
            cohort = replace(cohort, cases=cohort.in_split(split))
            if not cohort.cases:
                raise CohortError(f"Cohort '{cohort.name}' has no case in split '{split}'.")
        return cohort
    for path in (*inputs, *rois):
        if not path.name.endswith(_NIFTI):
            raise ConfigError(f"Give one manifest (.csv) or NIfTI files (.nii, .nii.gz), got '{path}'.")
        if not path.is_file():
            raise CohortError(f"'{path}' does not exist.")
    cohort = cohort_of_files(inputs, trained.contract.channels, owner, session)
    return with_roi_files(cohort, rois, trained, session)


def check_layers(trained: Trained, features: Mapping[str, tuple[int, int]]) -> None:
    """Require that the network has the layers whose feature maps are wanted.

    Raises:
        ModelError: It lacks one.
    """
    from dmx.evaluation.features import FeatureMaps
    from dmx.model.sketch import sketch_network

    if not features:
        return
    with FeatureMaps(features).watching(trained.network):
        pass
    for layer in sketch_network(trained.network, name=trained.run.name).layers:
        _, last = features.get(layer.name, (0, 0))
        if last >= layer.out_channels > 0:
            raise ModelError(f"Layer '{layer.name}' has {layer.out_channels} feature maps, from 0 on, got {last}.")


def _files(case: Case, request: PredictRequest, outputs: Sequence[str]) -> dict[str, Path]:
    """Return the files of a case: segmentation, one probability map per class or region."""
    files = {"segmentation": request.output / f"{case.name}_segmentation.nii.gz"}
    if request.probabilities:
        files |= {name: request.output / f"{case.name}_probability_{_slug(name)}.nii.gz" for name in outputs}
    return files


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _require_free_names(cohort: Cohort, request: PredictRequest) -> None:
    there = [path for case in cohort.cases for path in _files(case, request, ()).values() if path.exists()]
    if there and not request.overwrite:
        raise ConfigError(
            f"'{there[0]}' exists ({len(there)} of {len(cohort.cases)} predictions do). Give another folder, or "
            "--overwrite."
        )
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder '{request.output}' cannot be made: {error.strerror}.") from None


def _predict_case(case: Case, predictor: CasePredictor, request: PredictRequest, trained: Trained) -> dict[str, object]:
    start = time.perf_counter()
    found = predictor(case)
    outputs, scored = trained.contract.outputs, trained.contract.scored
    files = _files(case, request, outputs)
    values = np.array(list(written_values(trained.contract, request)))
    kind = integer_type(int(values.max()), int(values.min()))
    write_volume(files["segmentation"], values.astype(kind)[found.labels], found.grid, dtype=kind)
    if found.probabilities is not None:
        for name, one in zip(outputs, found.probabilities, strict=True):
            write_volume(files[name], one, found.grid, dtype=np.float32)
    _write_features(case, found, request)
    voxel_ml = float(np.prod(found.grid.spacing)) / 1000
    counts = np.bincount(found.labels.ravel(), minlength=len(trained.contract.classes))
    volumes = {f"volume_ml/{name}": round(int(counts[[*k]].sum()) * voxel_ml, 4) for name, k in scored.items()}
    seconds = round(time.perf_counter() - start, 3)
    return {"case": case.name, "file": files["segmentation"].name, "seconds": seconds, **volumes}


def _write_features(case: Case, found: NativePrediction, request: PredictRequest) -> None:
    for layer, maps in found.features.items():
        first, _ = request.features[layer]
        for channel, one in enumerate(maps, first):
            path = request.output / f"{case.name}_features_{_slug(layer)}_{channel:03d}.nii.gz"
            write_volume(path, one, found.grid, dtype=np.float32)


def _log(run: ActiveRun, rows: Sequence[Mapping[str, object]]) -> None:
    with run.guarded("predictions"):
        hidden = [{k: run.hide(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
        write_table(run.files / "predictions" / "predictions.csv", hidden)
        run.log_file("predictions")
