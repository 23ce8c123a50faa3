"""Several processes for one training: the first one trains, the others do passes of its steps and keep nothing.

In each step the first process lays weights and buffers into shared memory and tells the others where the training is.
Each does its parts of the step (:func:`dmx.training.step.own_parts`) and lays its gradients beside them; the first adds
them up in the order of the processes and goes on as if it had done all parts. So state, checkpoints and freezing are
those of one process. Messages are JSON, over a pair of sockets that has no name and that nobody else can reach.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import IO, Any

import torch

from dmx.children import variables
from dmx.errors import TrainingError
from dmx.training.exchange import Exchange, new_memory, parameters_and_buffers
from dmx.training.state import TrainState
from dmx.training.statistics import StatisticsMerge
from dmx.training.step import MemoryTooSmallError, Parts

_PATIENCE_S = 10.0
_SHOWN = 300


@dataclass(frozen=True)
class _Helper:
    """A process that helps: its number, from 1, the process, where it is told, and what it writes."""

    number: int
    process: Popen[bytes]
    connection: Connection
    output: IO[bytes]


class HelperProcesses:
    """The other processes of a training, as the first one sees them; a context manager that ends them.

    They end by themselves, too, when the first process is gone, however it ended: each watches its standard input.
    Signals of the terminal do not reach them.

    Args:
        state: The training.
        command: What starts one; two descriptors are added, of its connection and of the shared memory.
        orders: What is sent to each first, as bytes.

    Raises:
        TrainingError: One cannot begin, or has another network.
    """

    def __init__(self, state: TrainState, command: Sequence[str], orders: Sequence[bytes]) -> None:
        self._processes = 1 + len(orders)
        self._memory = new_memory()
        self._exchange = Exchange(state.model, self._memory, processes=self._processes)
        self._merge = StatisticsMerge(state.model)
        self._helpers: list[_Helper] = []
        try:
            for number in range(1, self._processes):
                self._helpers.append(_started(command, self._memory, number))
            for helper, order in zip(self._helpers, orders, strict=True):
                self._tell(helper, order, state)
            self._require_same_network(state)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        """Ids of the processes."""
        return [helper.process.pid for helper in self._helpers]

    def begin(self, state: TrainState) -> None:
        """Let all begin with their parts of the step.

        Raises:
            TrainingError: One has ended.
        """
        self._exchange.write(0, dict(enumerate(parameters_and_buffers(state.model))))
        position = state.position
        told = json.dumps(
            {
                "position": [position.epoch, position.step, position.global_step],
                "scaler": None if state.scaler is None else state.scaler.state_dict(),
            }
        ).encode()
        for helper in self._helpers:
            self._tell(helper, told, state)

    def finish(self, state: TrainState) -> Parts:
        """Wait for all, and add their gradients, statistics and counts to those of this process.

        Raises:
            TrainingError: One has failed or ended, or their statistics cannot be added up.
            RuntimeError: One has failed in a way that nobody has foreseen.
        """
        found = self._answers(state)
        parts = Parts([], [])
        for helper in self._helpers:
            answer = found[helper.number]
            self._add(state, helper.number, answer["gradients"])
            counts = state.record.counts
            counts.counts += torch.tensor(answer["counts"], dtype=torch.int64, device=state.device).view_as(
                counts.counts
            )
            counts.totals += torch.tensor(answer["totals"], dtype=torch.int64, device=state.device)
            for row in answer["values"]:
                numbers = torch.tensor(row, dtype=torch.float32, device=state.device)
                parts.values.append(dict(zip(answer["names"], numbers.unbind(), strict=True)))
            parts.cases.extend(answer["cases"])
        return parts

    def close(self) -> None:
        """End the processes and forget the shared memory."""
        for helper in self._helpers:
            if helper.process.stdin is not None:
                helper.process.stdin.close()
            helper.connection.close()
        for helper in self._helpers:
            _ended(helper)
            helper.output.close()
        self._helpers = []
        if self._memory >= 0:
            os.close(self._memory)
        self._memory = -1

    def __enter__(self) -> "HelperProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @torch.no_grad()
    def _add(self, state: TrainState, process: int, gradients: Sequence[int]) -> None:
        """Add what a process has left in its row."""
        tensors = parameters_and_buffers(state.model)
        factors = self._merge.shares(self._exchange.row(0), self._exchange.row(process), earlier=tensors)
        theirs = self._exchange.read(process)
        self._merge.add(tensors, theirs, factors=factors)
        for index in gradients:
            parameter = tensors[index]
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter).copy_(theirs[index])
            else:
                parameter.grad.add_(theirs[index])

    def _require_same_network(self, state: TrainState) -> None:
        answers = self._answers(state)
        for helper in self._helpers:
            if answers[helper.number]["network"] != self._exchange.described:
                raise TrainingError(
                    f"{self._name(helper)} has built another network than this one, of the same "
                    "settings. Let the function that makes the network depend on its arguments alone, or set "
                    "training.processes: 1."
                )

    def _answers(self, state: TrainState) -> dict[int, dict[str, Any]]:
        """Return what each process answers, as soon as all have; raise when one cannot."""
        waited = {helper.connection: helper for helper in self._helpers}
        found: dict[int, dict[str, Any]] = {}
        while waited:
            for connection in wait(list(waited)):
                assert isinstance(connection, Connection)
                helper = waited.pop(connection)
                found[helper.number] = self._answer(helper, state)
        return found

    def _answer(self, helper: _Helper, state: TrainState) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(helper.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._lost(helper, state) from None
        if "error" in answer:
            _fail(answer, self._name(helper))
        return answer

    def _tell(self, helper: _Helper, message: bytes, state: TrainState) -> None:
        try:
            helper.connection.send_bytes(message)
        except OSError:
            # It may have said why before it ended.
            self._answer(helper, state)
            raise self._lost(helper, state) from None

    def _name(self, helper: _Helper) -> str:
        return f"Process {helper.number + 1} of the {self._processes} of this training"

    def _lost(self, helper: _Helper, state: TrainState) -> TrainingError:
        code = _ended(helper)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if -code == signal.SIGKILL:
            how += ", perhaps for lack of memory"
        helper.output.seek(0)
        said = helper.output.read().decode(errors="replace").strip().splitlines()
        last = f" It said last: {said[-1][:_SHOWN]}" if said else ""
        return TrainingError(
            f"{self._name(helper)} (pid {helper.process.pid}) was ended {how}. Last checkpoint: "
            f"{state.last_checkpoint or 'none yet'}. Go on with 'dmx resume', if need be with fewer processes "
            f"(--processes).{last}"
        )


def _started(command: Sequence[str], memory: int, number: int) -> _Helper:
    ours, theirs = Pipe()
    output = tempfile.TemporaryFile()  # noqa: SIM115  # read when the process has ended, closed by whoever ends it
    # It imports what this process imports, and nothing from the working directory besides.
    path = os.pathsep.join(dict.fromkeys(entry or str(Path.cwd()) for entry in sys.path))
    with theirs:
        process = Popen(
            [*command, str(theirs.fileno()), str(memory)],
            stdin=PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(), memory),
            # A Ctrl-C at the terminal goes to the processes of the terminal's session.
            start_new_session=True,
            env=variables(PYTHONPATH=path),
        )
    return _Helper(number, process, ours, output)


def _ended(helper: _Helper) -> int:
    """Return the exit code of a process that ends, or is made to."""
    try:
        return helper.process.wait(_PATIENCE_S)
    except TimeoutExpired:
        helper.process.kill()
        return helper.process.wait()


def _fail(answer: dict[str, Any], who: str) -> None:
    kind, text = answer["error"], answer["text"]
    if kind == "memory":
        raise MemoryTooSmallError(text)
    if kind == "known":
        raise TrainingError(text)
    raise RuntimeError(f"{who} failed:\n{text}")
