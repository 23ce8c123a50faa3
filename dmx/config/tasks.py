"""What a task allows: sections that it does not use must be as they are by default, so that nothing is ignored."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal

Task = Literal["segmentation", "classification", "regression"]
"""What a network learns: a class for every voxel, a class for a whole image or volume, or numbers for it."""

# Settings that a task on whole images or volumes uses of the sections that speak of segments.
_SCORING = {
    "sampling": ("workers", "memory_gb", "balanced", "reuse_features"),
    "validation": ("every_epochs", "score_train"),
    "prediction": ("batch_size", "precision"),
}
_OF_SCORING = {"sampling": ("balanced", "reuse_features"), "validation": ("score_train",)}


def with_task_defaults(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain settings with the defaults that depend on the task, where the user says nothing else."""
    values = dict(raw)
    task = values.get("task", "segmentation")
    if task not in ("classification", "regression"):
        return values
    training = values.get("training", {})
    if isinstance(training, Mapping):
        values["training"] = {"steps_per_epoch": 0, **training}
    # DeepMedic's small penalties would pull the weights of photographs to 0.
    penalties = values.get("regularization", {})
    if values.get("stimuli") and isinstance(penalties, Mapping):
        values["regularization"] = {"l1": 0.0, "l2": 0.0, **penalties}
    losses = values.get("losses", {})
    if task == "regression" and isinstance(losses, Mapping):
        values["losses"] = {"cross_entropy": 0.0, "mse": 1.0, **losses}
    return values


def check_task(experiment: Any) -> None:
    """Require settings that fit the task.

    Raises:
        ValueError: One does not.
    """
    if experiment.task == "segmentation":
        _check_segmentation(experiment)
    else:
        _check_scoring(experiment)


def _check_segmentation(experiment: Any) -> None:
    if experiment.stimuli is not None:
        raise ValueError("stimuli belong to task 'classification' or 'regression', got task 'segmentation'")
    if experiment.training.steps_per_epoch < 1:
        raise ValueError("training.steps_per_epoch must be at least 1 for segmentation, got 0")
    if experiment.losses.mse:
        raise ValueError("losses.mse belongs to task 'regression', got task 'segmentation'")
    if experiment.cohort.targets:
        raise ValueError("cohort.targets belong to task 'regression', got task 'segmentation'")
    for name in ("image_preprocess", "image_augmentation"):
        _refuse_changed(experiment, name, (), why="belongs to images, got task 'segmentation'")
    for name, own in _OF_SCORING.items():
        section = getattr(experiment, name)
        changed = [key for key in _changed(section) if key in own]
        if changed:
            raise ValueError(f"{name}.{changed[0]} belongs to task 'classification' or 'regression'")


def _check_scoring(experiment: Any) -> None:
    task, of_images = experiment.task, experiment.stimuli is not None
    if of_images == bool(experiment.cohort.manifest):
        got = "both" if of_images else "neither"
        raise ValueError(f"task '{task}' needs either stimuli (images) or cohort (volumes), got {got}")
    if experiment.compatibility != "none":
        raise ValueError(f"compatibility must be none for task '{task}', which DeepMedic does not have")
    for name, used in _SCORING.items():
        _refuse_changed(experiment, name, used, why=f"belongs to segmentation, got task '{task}'")
    if of_images:
        why = f"belongs to volumes, got task '{task}' on stimuli; images have image_augmentation"
        _refuse_changed(experiment, "augmentation", (), why=why)
        _refuse_changed(experiment, "cohort", (), why="belongs to volumes, got stimuli")
        _refuse_changed(experiment, "preprocess", (), why="belongs to volumes; images have image_preprocess")
    else:
        if "deepmedic" in _changed(experiment.augmentation):
            raise ValueError(f"augmentation.deepmedic belongs to segmentation, got task '{task}'")
        for name in ("image_preprocess", "image_augmentation"):
            _refuse_changed(experiment, name, (), why="belongs to images, got a cohort of volumes")
        for key in ("classes", "labels", "regions", "ignore"):
            if getattr(experiment.cohort, key) not in ((), {}, None):
                raise ValueError(
                    f"cohort.{key} belongs to label maps; the manifest's note '# labels: a, b' names classes"
                )
    _check_losses(experiment)
    _check_targets(experiment, experiment.cohort.targets if experiment.stimuli is None else experiment.stimuli.targets)


def _check_losses(experiment: Any) -> None:
    losses = experiment.losses
    for name in ("soft_iou", "soft_dice", "monai"):
        if getattr(losses, name):
            raise ValueError(f"losses.{name} belongs to segmentation, got task '{experiment.task}'")
    if experiment.task == "classification" and losses.mse:
        raise ValueError("losses.mse belongs to task 'regression', got task 'classification'")
    if experiment.task == "regression":
        _refuse_changed(experiment, "losses", ("mse", "cross_entropy"), why="belongs to task 'classification'")
        if losses.cross_entropy:
            raise ValueError("losses.cross_entropy belongs to task 'classification'; a regression minimizes mse")
        if experiment.sampling.balanced:
            raise ValueError("sampling.balanced belongs to task 'classification': a regression has no classes")


def _check_targets(experiment: Any, targets: Sequence[str]) -> None:
    name = "cohort.targets" if experiment.stimuli is None else "stimuli.targets"
    if (experiment.task == "regression") != bool(targets):
        wanted = "must name the columns to predict" if experiment.task == "regression" else "belongs to 'regression'"
        raise ValueError(f"{name} {wanted}, got {list(targets)} and task '{experiment.task}'")


def _refuse_changed(experiment: Any, name: str, used: Sequence[str], *, why: str) -> None:
    changed = [key for key in _changed(getattr(experiment, name)) if key not in used]
    if changed:
        raise ValueError(f"{name}.{changed[0]} {why}")


def _changed(section: Any) -> list[str]:
    """Return the settings of a section that are not as they are by default."""
    return [field.name for field in fields(section) if getattr(section, field.name) != _default(field)]


def _default(field: "Field[Any]") -> object:
    if field.default_factory is not MISSING:
        return field.default_factory()
    # A section's only setting without a default is its file.
    return "" if field.default is MISSING else field.default
