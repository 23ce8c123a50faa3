"""Start the processes that help a training: each gets its settings and cases, and builds the network by itself."""

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from dmx.children import PYTHON
from dmx.config.sections import TrainingSection
from dmx.config.trust import is_factory, is_trusted
from dmx.training.device import resolve_devices, threads_of
from dmx.training.processes import HelperProcesses
from dmx.workflows.checked import Assembled, Checked
from dmx.workflows.scoring import AssembledScoring
from dmx.workflows.session import Session

# Without -P, modules of the working directory would come before those of Python.
_COMMAND = (*PYTHON, "-m", "dmx.workflows.helper")
_BUILT_THERE = ("network", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a process is told that helps.

    Attributes:
        kind: Class of the checked training.
        values: What it is made of, but for the network.
        root: Folder of the project.
        process: Number of the process, from 1.
        device: The device that it computes on.
        trusted: Name of a factory that the user has named; ``None``: there is none.
    """

    kind: type[Checked]
    values: Mapping[str, Any]
    root: Path
    process: int
    device: torch.device
    trusted: str | None


@contextmanager
def helping(assembled: Assembled, session: Session) -> Iterator[HelperProcesses | None]:
    """Let other processes do their share of the steps for a block, if that is wished; they end with it.

    The state must have the weights that it begins with by then, and the batches must have been begun.
    """
    training = assembled.checked.settings.training
    if training.processes == 1:
        yield None
        return
    if isinstance(assembled, AssembledScoring) and assembled.scores.head is not None:
        session.report.say("The head alone is trained by one process; the others have nothing to do and are left out.")
        yield None
        return
    threads = threads_of(training)
    counted = "1 thread" if threads == 1 else f"{threads} threads"
    session.report.say(
        f"{training.processes} processes share the {training.accumulate} passes of a step out, with {counted} each."
    )
    with HelperProcesses(assembled.state, _COMMAND, orders_of(assembled.checked, session)) as helpers:
        yield helpers


def orders_of(checked: Checked, session: Session) -> list[bytes]:
    """Return what each of the other processes is told.

    It is this program's own words to its own processes, over sockets that nobody else has: the only place where
    something is pickled.
    """
    training, name = checked.settings.training, checked.experiment.model.name
    trusted = name if is_factory(name) and is_trusted(name) else None
    values = {field.name: getattr(checked, field.name) for field in fields(checked) if field.name not in _BUILT_THERE}
    orders = []
    for process, device in enumerate(resolve_devices(training)[1:], start=1):
        settings = replace(checked.settings, training=_helpers_own(training, device))
        orders.append(
            Orders(
                kind=type(checked),
                values={**values, "settings": settings, "device": device},
                root=session.root,
                process=process,
                device=device,
                trusted=trusted,
            )
        )
    return [pickle.dumps(order) for order in orders]


def _helpers_own(training: TrainingSection, device: torch.device) -> TrainingSection:
    """Return the settings of a process that helps: its device and threads, and nothing that the first one keeps."""
    return replace(training, device=str(device), threads=threads_of(training), moving_average=None)
