"""What a process does that helps another one to train: its parts of each step, and nothing besides."""

import json
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

import torch

from dmx.errors import DmxError
from dmx.sampling.batch import Batch
from dmx.training.device import prepared
from dmx.training.exchange import Exchange, parameters_and_buffers
from dmx.training.losses import Loss
from dmx.training.position import Position
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState
from dmx.training.step import MemoryTooSmallError, Parts, own_parts, run_parts
from dmx.transfer.freeze_apply import hold

Batches = Callable[[int, int, int], Batch]


class StepShare:
    """Does the parts of one process.

    Args:
        state: A training of which the network, the loss scaler and the counts are used.
        batches: Gives the segments of (epoch, step within it, part of the step).
        settings: Settings.
        process: Number of this process, from 1.
        memory: Descriptor of the shared memory.
    """

    def __init__(
        self, state: TrainState, batches: Batches, settings: FitSettings, *, process: int, memory: int
    ) -> None:
        self._state = state
        self._batches = batches
        self._settings = settings
        self._process = process
        self._loss = Loss.of(settings)
        self._exchange = Exchange(state.model, memory, processes=settings.training.processes)
        state.model.train()

    def ready(self) -> dict[str, Any]:
        """Return what the first process asks about the network."""
        return {"network": self._exchange.described}

    def step(self, told: dict[str, Any]) -> dict[str, Any]:
        """Do the parts of a step.

        Args:
            told: ``position`` of the training, and the state of its loss ``scaler``.

        Returns:
            Numbers of the parameters that have ``gradients``, ``names`` and ``values`` of the losses of each part,
            ``cases``, and ``counts`` and ``totals`` of the voxels. Gradients and buffers lie in the shared memory.
        """
        state = self._state
        state.position = Position(*told["position"])
        if state.scaler is not None:
            state.scaler.load_state_dict(told["scaler"])
        tensors = parameters_and_buffers(state.model)
        with torch.no_grad():
            torch._foreach_copy_(tensors, list(self._exchange.read(0)))
        hold(state.model, self._settings.freeze, state.position.epoch)
        state.optimizer.zero_grad()
        state.record.clear()
        parts = run_parts(
            state,
            self._own_batches(),
            self._settings,
            loss=self._loss,
            first=own_parts(self._settings.training, self._process).start,
        )
        return self._found(parts)

    def _own_batches(self) -> Iterable[Batch]:
        position = self._state.position
        for part in own_parts(self._settings.training, self._process):
            yield self._batches(position.epoch, position.step, part)

    def _found(self, parts: Parts) -> dict[str, Any]:
        state = self._state
        # They are others now where a module has put new ones into the place of its buffers.
        tensors = parameters_and_buffers(state.model)
        first_buffer = len(list(state.model.parameters()))
        found = {index: tensor for index, tensor in enumerate(tensors) if index >= first_buffer}
        gradients = {index: t.grad for index, t in enumerate(tensors[:first_buffer]) if t.grad is not None}
        self._exchange.write(self._process, {**gradients, **found})
        names = list(parts.values[0])
        counts = state.record.counts
        return {
            "gradients": list(gradients),
            "names": names,
            # One transfer from the device for all.
            "values": torch.stack([torch.stack([value[name] for name in names]) for value in parts.values]).tolist(),
            "cases": parts.cases,
            "counts": counts.counts.tolist(),
            "totals": counts.totals.tolist(),
        }


def serve(share: StepShare, connection: Connection, *, settings: FitSettings, device: torch.device) -> None:
    """Do what the first process asks until it closes the connection."""
    with prepared(settings.training, device):
        _send(connection, share.ready())
        while True:
            try:
                told = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            _send(connection, share.step(told))


def tell_errors(connection: Connection, work: Callable[[], None]) -> None:
    """Do something, and tell the first process why it failed."""
    try:
        work()
    except MemoryTooSmallError as error:
        _send(connection, {"error": "memory", "text": str(error)})
    except DmxError as error:
        _send(connection, {"error": "known", "text": str(error)})
    except Exception:
        _send(connection, {"error": "unknown", "text": traceback.format_exc()})


def _send(connection: Connection, answer: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(answer).encode())
