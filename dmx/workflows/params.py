"""The few settings of a run that the MLflow tables compare; the whole configuration is its ``config.yaml``."""

from collections.abc import Sequence

from dmx.config.model import ENCODER_CLASSIFIER
from dmx.config.sections import Experiment
from dmx.geometry import triple
from dmx.model.network import TrainableNetwork
from dmx.preprocess.image_contract import ImageContract
from dmx.transfer.freeze import FreezePlan
from dmx.workflows.checked import AnyContract, Checked


def training_params(checked: Checked) -> dict[str, object]:
    """Return about twenty short params of a training."""
    return {
        **network_params(checked.experiment, checked.contract, checked.network),
        "cohort": checked.data.cohort.name,
        "cohort.training_cases": len(checked.data.training),
        "cohort.validation_cases": len(checked.data.validation),
        **_input_params(checked),
        **optimization_params(checked.experiment, checked.network, checked.settings.freeze),
        "steps_per_epoch": checked.settings.training.steps_per_epoch,
    }


def _input_params(checked: Checked) -> dict[str, object]:
    """Return the size of what the network reads at once."""
    if isinstance(checked.contract, ImageContract):
        return {"image_size": _list(checked.contract.crop)}
    return (
        {"segment": _list(triple(checked.experiment.sampling.segment))}
        if checked.settings.task == "segmentation"
        else {}
    )


def optimization_params(experiment: Experiment, network: TrainableNetwork, freeze: FreezePlan) -> dict[str, object]:
    """Return the params that say how long, with what and on which parameters a network trains."""
    training = experiment.training
    return {
        "network.trainable_parameters": _count(network) - freeze.num_frozen_parameters(),
        "epochs": training.epochs,
        "steps_per_epoch": training.steps_per_epoch,
        "batch_size": training.batch_size * training.accumulate,
        "processes": training.processes,
        "precision": training.precision,
        "optimizer": experiment.optimizer.name,
        "lr": experiment.optimizer.lr,
        "schedule": experiment.schedule.name,
        "seed": experiment.seed,
        **freeze.params(),
    }


def network_params(experiment: Experiment, contract: AnyContract, network: TrainableNetwork) -> dict[str, object]:
    """Return the params that describe a network, however it came about."""
    model = experiment.model
    multiscale = model.name == "multiscale"
    in_pathways = multiscale or (model.name == ENCODER_CLASSIFIER and not model.arguments)
    return {
        "task": experiment.task,
        "channels": ",".join(contract.channels),
        "targets" if experiment.task == "regression" else "classes": ",".join(contract.outputs),
        "network": model.name,
        "network.widths": _list(model.normal.widths) if in_pathways else "",
        "network.pathways": 1 + len(model.subsampled) if in_pathways else 1,
        "network.fc": _list(model.fc.widths) if multiscale else "",
        "network.parameters": _count(network),
        "network.trainable_parameters": _count(network),
        "compatibility": experiment.compatibility,
    }


def _count(network: TrainableNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _list(values: Sequence[int]) -> str:
    return ",".join(str(value) for value in values)
