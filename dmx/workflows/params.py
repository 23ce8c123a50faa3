"""The few settings of a run that the MLflow tables compare; the whole configuration is its ``config.yaml``."""

from dmx.geometry import triple
from dmx.workflows.assemble import Checked


def training_params(checked: Checked) -> dict[str, object]:
    """Return about twenty short params of a training."""
    experiment = checked.experiment
    model, training = experiment.model, experiment.training
    parameters = list(checked.network.parameters())
    multiscale = model.name == "multiscale"
    return {
        "task": experiment.task,
        "cohort": checked.data.cohort.name,
        "cohort.training_cases": len(checked.data.training),
        "cohort.validation_cases": len(checked.data.validation),
        "channels": ",".join(checked.contract.channels),
        "classes": ",".join(checked.contract.classes),
        "network": model.name,
        "network.widths": _list(model.normal.widths) if multiscale else "",
        "network.pathways": 1 + len(model.subsampled) if multiscale else 1,
        "network.fc": _list(model.fc.widths) if multiscale else "",
        "network.parameters": sum(p.numel() for p in parameters),
        "network.trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "compatibility": experiment.compatibility,
        "segment": _list(triple(experiment.sampling.segment)),
        "epochs": training.epochs,
        "steps_per_epoch": training.steps_per_epoch,
        "batch_size": training.batch_size * training.accumulate,
        "precision": training.precision,
        "optimizer": experiment.optimizer.name,
        "lr": experiment.optimizer.lr,
        "schedule": experiment.schedule.name,
        "seed": experiment.seed,
    }


def _list(values: tuple[int, ...]) -> str:
    return ",".join(str(value) for value in values)
