"""The few settings of a run that the MLflow tables compare; the whole configuration is its ``config.yaml``."""

from dmx.config.sections import Experiment
from dmx.geometry import triple
from dmx.model.network import TrainableNetwork
from dmx.preprocess.contract import Contract
from dmx.transfer.freeze import FreezePlan
from dmx.workflows.assemble import Checked


def training_params(checked: Checked) -> dict[str, object]:
    """Return about twenty short params of a training."""
    return {
        **network_params(checked.experiment, checked.contract, checked.network),
        "cohort": checked.data.cohort.name,
        "cohort.training_cases": len(checked.data.training),
        "cohort.validation_cases": len(checked.data.validation),
        "segment": _list(triple(checked.experiment.sampling.segment)),
        **optimization_params(checked.experiment, checked.network, checked.settings.freeze),
    }


def optimization_params(experiment: Experiment, network: TrainableNetwork, freeze: FreezePlan) -> dict[str, object]:
    """Return the params that say how long, with what and on which parameters a network trains."""
    training = experiment.training
    return {
        "network.trainable_parameters": _count(network) - freeze.num_frozen_parameters(),
        "epochs": training.epochs,
        "steps_per_epoch": training.steps_per_epoch,
        "batch_size": training.batch_size * training.accumulate,
        "precision": training.precision,
        "optimizer": experiment.optimizer.name,
        "lr": experiment.optimizer.lr,
        "schedule": experiment.schedule.name,
        "seed": experiment.seed,
        **freeze.params(),
    }


def network_params(experiment: Experiment, contract: Contract, network: TrainableNetwork) -> dict[str, object]:
    """Return the params that describe a network, however it came about."""
    model, multiscale = experiment.model, experiment.model.name == "multiscale"
    return {
        "task": experiment.task,
        "channels": ",".join(contract.channels),
        "classes": ",".join(contract.classes),
        "network": model.name,
        "network.widths": _list(model.normal.widths) if multiscale else "",
        "network.pathways": 1 + len(model.subsampled) if multiscale else 1,
        "network.fc": _list(model.fc.widths) if multiscale else "",
        "network.parameters": _count(network),
        "network.trainable_parameters": _count(network),
        "compatibility": experiment.compatibility,
    }


def _count(network: TrainableNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _list(values: tuple[int, ...]) -> str:
    return ",".join(str(value) for value in values)
