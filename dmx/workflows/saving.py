"""Write the checkpoints of a training so that each describes itself."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dmx import __version__
from dmx.config.load import as_dict
from dmx.config.sections import Experiment
from dmx.training.checkpoint import write_checkpoint
from dmx.training.events import CheckpointDue
from dmx.training.ready import ReadyOptimizer
from dmx.training.settings import FitSettings
from dmx.workflows.checked import AnyContract


def description(
    experiment: Experiment, contract: AnyContract, *, run_id: str, source: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what all checkpoints of a run say about themselves: all that is needed to use their network."""
    return {
        "dmx_version": __version__,
        "task": experiment.task,
        "run_id": run_id,
        "model": as_dict(experiment)["model"],
        "compatibility": experiment.compatibility,
        "contract": contract.as_dict(),
        "seed": experiment.seed,
        "source": source,
    }


class Described(Protocol):
    """A training as far as its checkpoints tell of it."""

    @property
    def experiment(self) -> Experiment:
        """Return the settings."""
        ...

    @property
    def contract(self) -> AnyContract:
        """Return what the network sees."""
        ...

    @property
    def settings(self) -> FitSettings:
        """Return the settings of the training core."""
        ...


def saver(
    checked: Described, *, run_id: str, source: Mapping[str, Any] | None = None
) -> Callable[[CheckpointDue, Path], Path]:
    """Return a function that writes a checkpoint into a folder.

    Args:
        checked: The training.
        run_id: Its run.
        source: Where the first weights came from; ``None``: from the seed.
    """
    described = description(checked.experiment, checked.contract, run_id=run_id, source=source)

    def save(due: CheckpointDue, folder: Path) -> Path:
        state = due.state.state_dict()
        position = due.position
        manifest = {
            **described,
            "epoch": position.epoch,
            "step": position.step,
            "global_step": position.global_step,
            "metrics": dict(due.metrics),
            "names": list(due.names),
        }
        return write_checkpoint(
            folder,
            model_state=state["model"],
            average_state=state["average"],
            training_state=state["training"],
            manifest=manifest,
            frozen=_held(due, checked.settings),
        )

    return save


def _held(due: CheckpointDue, settings: FitSettings) -> frozenset[str]:
    """Return the names of the tensors that do not train at the moment of a checkpoint."""
    frozen, optimizer = frozenset(settings.freeze.frozen_tensors(due.position.epoch)), due.state.optimizer
    # Of a parameter that an optimizer from Python leaves out, nothing changes either.
    left_out = optimizer.parameters.keys() - optimizer.names if isinstance(optimizer, ReadyOptimizer) else ()
    return frozen.union(left_out)
