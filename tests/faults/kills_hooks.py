"""Put points and windows into the calls of a process that is to be killed."""

import builtins
import io
import os
import shutil
from collections.abc import Callable
from typing import Any

from tests.faults.kills_board import Board, Plan, die


def install(plan: Plan) -> None:
    """Watch this process: files, database, steps, checkpoints, validation, the life of its run."""
    _watch_files(plan)
    _watch_database(plan)
    _watch_training(plan)
    _watch_run(plan)


def around(owner: Any, name: str, *, before: Callable[[], Any] | None = None, after: Callable[[], Any] | None = None):
    """Call something before and after a function."""
    inner = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before()
        result = inner(*args, **kwargs)
        if after is not None:
            after()
        return result

    setattr(owner, name, call)


def _watch_files(plan: Plan) -> None:
    for name in ("replace", "rename"):
        around(os, name, before=lambda: plan.reach("rename"), after=lambda: plan.reach("renamed"))
    for name in ("unlink", "rmdir"):
        around(os, name, before=lambda: plan.reach("unlink"))
    around(os, "fsync", before=lambda: plan.reach("fsync"))
    for name in ("copyfileobj", "copyfile"):
        around(shutil, name, before=lambda: plan.reach("copy"))
    for owner in (io, builtins):
        _watch_open(plan, owner)


def _watch_open(plan: Plan, owner: Any) -> None:
    inner = owner.open

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        result = inner(file, mode, *args, **kwargs)
        # A file that was just opened for writing is empty.
        if set(mode) & set("wax") and file != os.devnull:
            plan.reach("open")
        return result

    owner.open = opened


def _watch_database(plan: Plan) -> None:
    from sqlalchemy.engine.default import DefaultDialect

    around(
        DefaultDialect,
        "do_commit",
        before=lambda: plan.reach("commit"),
        after=lambda: plan.reach("committed"),
    )


def _watch_training(plan: Plan) -> None:
    from dmx.training import checkpoint, loop
    from dmx.workflows import saving
    from dmx.workflows.score_validation import ScoreValidation
    from dmx.workflows.validation import Validation

    board = plan.board
    around(loop, "train_step", before=lambda: _at(plan, "in a step", "step"), after=lambda: plan.reach("stepped"))
    around(loop, "_save_within_epoch", before=lambda: _at(plan, "between steps"))
    for validation in (Validation, ScoreValidation):
        around(validation, "__call__", before=lambda: _at(plan, "in a validation"), after=lambda: _validated(plan))
    around(saving, "write_checkpoint", before=lambda: _at(plan, "while a checkpoint is written"))
    write = checkpoint._write

    def half(path: Any, data: bytes) -> None:
        if plan.due("half-written"):
            path.write_bytes(data[: len(data) // 2])
            die()
        write(path, data)

    checkpoint._write = half
    board.window = "before a run exists"


def _watch_run(plan: Plan) -> None:
    import dmx.tracking.session as sessions
    from dmx.tracking import delivery, pictures
    from dmx.tracking.checkpoints import Checkpoints
    from dmx.tracking.creation import Note
    from dmx.tracking.journal import Journal
    from dmx.tracking.mlflow_store import MlflowStore
    from dmx.workflows import resume, train

    around(Note, "add", before=lambda: _at(plan, "while the run is created"), after=lambda: plan.reach("noted"))
    around(MlflowStore, "create_run", after=lambda: plan.reach("created"))
    around(Journal, "append", after=lambda: plan.reach("journaled"))
    around(resume, "resume_run", before=lambda: _at(plan, "while a resume begins"))
    around(
        Checkpoints,
        "publish",
        before=lambda: _at(plan, "while a checkpoint is named and old ones go"),
        after=lambda: _at(plan, "between steps", "published"),
    )
    around(train, "_log_curves", before=lambda: _at(plan, "while the run is ended"))
    for owner in (delivery, sessions):
        _watch_delivery(plan.board, owner)
    # Small pictures are drawn faster.
    pictures._DPI = 20
    # Something is on its way more often than once in two seconds, for a training that takes two.
    delivery.Courier.__init__.__kwdefaults__["every"] = 0.1


def _watch_delivery(board: Board, owner: Any) -> None:
    def started() -> None:
        board.delivering = True

    def ended() -> None:
        board.delivering = False

    around(owner, "deliver", before=started, after=ended)


def _at(plan: Plan, window: str, point: str | None = None) -> None:
    plan.board.window = window
    if point is not None:
        plan.reach(point)


def _validated(plan: Plan) -> None:
    _at(plan, "between validation and checkpoint", "validated")
