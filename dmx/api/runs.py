"""The commands that make runs, as functions; each calls the workflow that the command calls."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dmx.api.models import load_model
from dmx.api.places import Logged, locate, open_place, run_name
from dmx.api.results import History, Training
from dmx.config.load import apply_overrides, read_raw, section_from_dict
from dmx.config.sections import PredictionSection
from dmx.config.trust import trust_given
from dmx.errors import ConfigError
from dmx.evaluation.surface import SurfaceDefinition, surface_kind
from dmx.tracking.course import read_course
from dmx.workflows.by_task import evaluate_by_task, predict_by_task
from dmx.workflows.evaluate import Evaluated, EvaluateRequest
from dmx.workflows.evaluate_scores import EvaluatedScores
from dmx.workflows.finetune import FinetuneRequest
from dmx.workflows.finetune import finetune as run_finetuning
from dmx.workflows.predict import Predicted, PredictRequest
from dmx.workflows.resume import Extension
from dmx.workflows.resume import resume as run_on
from dmx.workflows.session import Session
from dmx.workflows.train import Trainee

Settings = Mapping[str, Any]
Store = str | Path | None


def finetune(
    source: str,
    experiment: str | Path | Settings,
    *,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    keep_optimizer: bool = False,
    allow_leak: bool = False,
    strict: bool = False,
    recipe: Literal["inherited", "default"] | None = None,
    name: str | None = None,
    store: Store = None,
    source_store: Store = None,
) -> Training:
    """Train a run's network further on another cohort, as a new run with a fresh optimizer; ``dmx finetune``.

    Args:
        source: The run whose network it is, as for ``load_model``.
        experiment: YAML file of the new training, or its settings as a mapping; whatever it leaves out is as in the
            source. A relative manifest is taken from the file's folder, else from the working directory.
        checkpoint: ``best``, ``last``, ``initial`` or ``epoch=N`` of the source; ``None``: the best, else the last.
        overrides: Changes of settings, ``section.key=value``, as after ``--set``.
        keep_optimizer: Keep the source's moments; the schedule still begins anew.
        allow_leak: Go on when validation cases were in the training of the source.
        strict: Refuse to freeze what is still as it was initialized.
        recipe: ``default``: only the network and what it sees are as in the source, all else that is left out is dmx's
            default; ``None``: as the experiment says, else ``inherited``.
        name: The run's name.
        store: Store of the new run; ``None``: as on the command line. There is always a run.
        source_store: Store of the source; ``None``: that of the new run.

    Returns:
        The network with the weights that predict best, its history and the run.

    Raises:
        DmxError: Something that can be mended, in one sentence.
    """
    uri, root = locate(store)
    file = Path("settings") if isinstance(experiment, Mapping) else Path(experiment)
    raw = apply_overrides(experiment if isinstance(experiment, Mapping) else read_raw(file), overrides)
    if isinstance(experiment, Mapping):
        trust_given(raw)
    request = FinetuneRequest(
        experiment=file,
        run=run_name(source),
        checkpoint=checkpoint,
        keep_optimizer=keep_optimizer,
        allow_leak=allow_leak,
        strict=strict,
        recipe=recipe,
        source_uri=None if source_store is None else locate(source_store)[0],
        name=name,
        settings=raw,
    )
    return _trained(lambda session: run_finetuning(request, session, uri=uri), root, store=store)


def resume(
    run: str,
    *,
    epochs: int | None = None,
    schedule: str | None = None,
    device: str | None = None,
    cohort: str | Path | None = None,
    take_over: bool = False,
    store: Store = None,
) -> Training:
    """Go on with an interrupted run exactly where it was, or extend one; ``dmx resume``.

    Args:
        run: The run, as for ``load_model``.
        epochs: Train to this many epochs in all.
        schedule: With `epochs`: ``keep``, ``stretch`` or ``restart`` the learning-rate curve.
        device: Where to train from now on; ``None``: as before.
        cohort: Where the manifest, or the list or folder of images, of the run lies now; ``None``: as before.
        take_over: Take the place of a process of another machine at once; if that still lives, both write to the run
            until it notices.
        store: Run store, as for ``load_model``.

    Returns:
        The network, the history of the whole run, and the run.

    Raises:
        DmxError: Something that can be mended, in one sentence.
    """
    uri, root = locate(store)
    if (epochs is None) != (schedule is None):
        raise ConfigError("epochs and schedule belong together: resume(run, epochs=60, schedule='keep').")
    extension = None if epochs is None or schedule is None else Extension(epochs=epochs, schedule=schedule)
    changes = {key: value for key, value in (("device", device), ("cohort", cohort)) if value is not None}

    def work(session: Session) -> Trainee:
        return run_on(run_name(run), session, uri=uri, changes=changes, extension=extension, take_over=take_over)

    return _trained(work, root, store=store)


def _trained(work: Callable[[Session], Trainee], root: Path, *, store: Store) -> Training:
    """Train, and return what the run has kept."""
    done = work(Session(root=root, report=Logged()))
    return Training(
        model=load_model(done.run.id, store=store or done.store),
        history=history(done.run.id, store=store or done.store),
        run=done.run,
        reason=done.reason,
    )


def history(run: str, *, store: Store = None) -> History:
    """Return the course of a training from its run.

    Args:
        run: The run, as for ``load_model``.
        store: Run store, as for ``load_model``.

    Returns:
        ``epoch_loss``; ``step_loss``, a list per epoch with every step; ``score_train`` and ``score_validation``, a
        value per epoch or None, empty where the score was never measured.

    Raises:
        RunError: There is no such run, or it has not trained.
    """
    opened, _ = open_place(store)
    return History(**read_course(opened, opened.find_run(run_name(run))))


def predict(
    run: str,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    checkpoint: str | None = None,
    split: str | None = None,
    probabilities: bool = False,
    settings: Settings | None = None,
    device: str = "auto",
    name: str | None = None,
    overwrite: bool = False,
    class_indices: bool = False,
    roi: str | Path | Sequence[str | Path] = (),
    no_roi: bool = False,
    store: Store = None,
) -> Predicted:
    """Predict scans or images with a run's network, as a run; ``dmx predict``.

    A segmentation network writes label maps on the scans' own grids, one that scores whole images or volumes a table.

    Args:
        run: The run whose network it is, as for ``load_model``.
        inputs: A manifest, or NIfTI files: one per channel in the network's order, or one per case for one channel. For
            images: a list (``.stim.csv``, ``.csv``), a folder, or image files.
        output: Folder for label maps, or a file ``.csv`` for scores.
        checkpoint: As for ``load_model``.
        split: Only cases of this split of the manifest.
        probabilities: Also write a probability map per class or region.
        settings: The section ``prediction``, instead of the run's.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        name: The run's name.
        overwrite: Replace files that are there.
        class_indices: Write the index of each class instead of its value in the label maps of the training.
        roi: Roi of each case of single files; ``roi.nii.gz`` beside a scan is found.
        no_roi: Predict without rois, also where the network was trained with them.
        store: Run store, as for ``load_model``.

    Returns:
        The run, ``rows``: one mapping per case, and ``label_values``: the class that each value is.

    Raises:
        DmxError: Something that can be mended, in one sentence.
    """
    uri, root = locate(store)
    files = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    request = PredictRequest(
        run=run_name(run),
        inputs=[Path(file) for file in files],
        output=Path(output),
        checkpoint=checkpoint,
        split=split,
        probabilities=probabilities,
        settings=_prediction(settings),
        device=device,
        uri=uri,
        name=name,
        overwrite=overwrite,
        class_indices=class_indices,
        rois=[Path(file) for file in ([roi] if isinstance(roi, str | Path) else roi)],
        no_roi=no_roi,
    )
    return predict_by_task(request, Session(root=root, report=Logged()))


def evaluate(
    run: str,
    cohort: str | Path | None = None,
    *,
    checkpoint: str | None = None,
    split: str | None = None,
    tolerance_mm: float = 1.0,
    surface: str = "elements",
    allow_leak: bool = False,
    labels: Mapping[int | str, int | str] | None = None,
    no_roi: bool = False,
    settings: Settings | None = None,
    device: str = "auto",
    name: str | None = None,
    store: Store = None,
) -> Evaluated | EvaluatedScores:
    """Score a run's network on cases or images whose truth is known, as a run; ``dmx evaluate``.

    Args:
        run: The run whose network it is, as for ``load_model``.
        cohort: Manifest, or list or folder of images; ``None``: that of the run.
        checkpoint: As for ``load_model``.
        split: Split to score; ``None``: evaluation, else validation, else cases without one.
        tolerance_mm: Tolerance of the normalized surface Dice.
        surface: What distances are measured between: ``elements`` of the surface, or centers of ``voxels``.
        allow_leak: Score cases that were in the training, too.
        labels: Value in the label maps of the cohort: class of the network, by name or index, e.g. ``{17: "Anterior",
            53: "Posterior"}``, where the names of the classes do not say it. Of whole images and volumes the label
            (``{0: "benign"}``), or the column of a target.
        no_roi: Score without rois, also where the network was trained with them.
        settings: The section ``prediction``, instead of the run's.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        name: The run's name.
        store: Run store, as for ``load_model``.

    Returns:
        The run, ``rows`` per case, ``paired_by`` and ``label_values`` (what the values in the label maps were taken
        for), and ``summary`` with intervals over subjects; of whole images and volumes also
        ``scores``, what all together are worth.

    Raises:
        DmxError: Something that can be mended, in one sentence.
    """
    uri, root = locate(store)
    request = EvaluateRequest(
        run=run_name(run),
        cohort=None if cohort is None else Path(cohort),
        checkpoint=checkpoint,
        split=split,
        settings=_prediction(settings),
        surface=SurfaceDefinition(kind=surface_kind(surface), tolerance_mm=tolerance_mm),
        allow_leak=allow_leak,
        device=device,
        uri=uri,
        name=name,
        labels=None if labels is None else {str(value): str(label) for value, label in labels.items()},
        no_roi=no_roi,
    )
    return evaluate_by_task(request, Session(root=root, report=Logged()))


def _prediction(settings: Settings | None) -> PredictionSection | None:
    return None if settings is None else section_from_dict(PredictionSection, settings)
