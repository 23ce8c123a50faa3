"""A run's checkpoints: where they lie, which names point to them, which may go."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dmx.errors import RunError
from dmx.paths import within
from dmx.tracking.folder import RunFolder, remove_folder
from dmx.tracking.store import CheckpointModel, RunInfo, RunReader

_TAG = "dmx.checkpoint."
_LATEST = "mlflow.latest_checkpoint_artifact"
_PATH = re.compile(r"checkpoints/step_\d{1,18}(?:_epoch_\d{1,9})?")
_STEP = re.compile(r"step_(\d+)(?:_epoch_\d+)?$")

Write = Callable[[Mapping[str, object]], None]


def checkpoint_tag(name: str) -> str:
    """Return the tag that points to a checkpoint; MLflow allows no ``=`` in it.

    >>> checkpoint_tag("epoch=4")
    'dmx.checkpoint.epoch:4'
    """
    return _TAG + name.replace("=", ":")


def checkpoint_names(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the path of each named checkpoint, below the run's artifacts.

    A tag that points anywhere else was not written by a training, and names nothing.

    >>> checkpoint_names({"dmx.checkpoint.epoch:4": "checkpoints/step_000000400", "dmx.kind": "train"})
    {'epoch=4': 'checkpoints/step_000000400'}
    """
    return {
        key.removeprefix(_TAG).replace(":", "="): path
        for key, path in tags.items()
        if key.startswith(_TAG) and is_checkpoint_path(path)
    }


def is_checkpoint_path(path: object) -> bool:
    """Tell whether a path below a run's artifacts is that of a checkpoint; nothing else is ever deleted."""
    return isinstance(path, str) and _PATH.fullmatch(path) is not None


def kept_models(names: Mapping[str, str]) -> list[CheckpointModel]:
    """Return one model of the catalog per checkpoint that a name points to."""
    paths = sorted(set(names.values()))
    return [
        CheckpointModel(path=path, step=step_of(path), names=tuple(sorted(n for n, p in names.items() if p == path)))
        for path in paths
    ]


def step_of(path: str) -> int:
    """Return the global step of a checkpoint folder, from its name."""
    match = _STEP.search(path)
    if match is None:
        raise RunError(f"'{path}' is no checkpoint folder: its name must end in step_ and a number.")
    return int(match[1])


class Checkpoints:
    """The checkpoints of an active run.

    Args:
        folder: The run's folder on this machine.
        names: Name: path below the run's artifacts, as the run's tags say.
        write: Takes an entry for the run's journal.
    """

    def __init__(self, folder: RunFolder, names: Mapping[str, str], write: Write) -> None:
        self._folder = folder
        self._write = write
        self.names = dict(names)

    def folder(self, global_step: int, epoch: int) -> Path:
        """Return where the checkpoint of a position is written. A folder that exists is complete: leave it as it is.

        A training that was stopped after the last step of an epoch and ends that epoch later has two checkpoints of
        the same step, before and after the validation; the second folder has another name.

        Args:
            global_step: Steps done.
            epoch: Epochs done, as in the checkpoint's manifest.
        """
        parent = self._folder.file("checkpoints", what="The run")
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / f"step_{global_step:09d}"
        return path if not path.exists() or _epoch_of(path) == epoch else parent / f"{path.name}_epoch_{epoch:04d}"

    def publish(
        self, folder: Path, names: Sequence[str], *, keep_last: int = 2, keep_epochs: Sequence[int] = ()
    ) -> None:
        """Let names point to a complete checkpoint, and delete the older ones that may go.

        Args:
            folder: What :meth:`folder` gave, written and verified.
            names: ``initial``, ``last``, ``best``, ``epoch=N``.
            keep_last: Newest checkpoints that stay besides those that a name points to. ``epoch=N`` of an older one is
                given up.
            keep_epochs: Epochs whose name is never given up.
        """
        path = f"checkpoints/{folder.name}"
        self._write({"do": "upload", "path": path})
        moved = {name: path for name in names if self.names.get(name) != path}
        tags: dict[str, str | None] = {checkpoint_tag(name): path for name in moved}
        if "last" in moved:
            tags[_LATEST] = path
        self.names.update(moved)
        for name in self._outdated(keep_last, keep_epochs):
            tags[checkpoint_tag(name)] = None
            del self.names[name]
        self._write({"do": "tags", "values": tags})
        for old in self._unnamed(keep_last):
            # Told first: a process that is killed in between would never tell.
            self._write({"do": "delete", "path": old})
            remove_folder(self._folder.file(old, what="The run"))

    def _recent(self, keep_last: int) -> list[str]:
        return self._present()[-keep_last:]

    def _present(self) -> list[str]:
        """Return all checkpoints of the run, oldest first, as far as this machine and the names know them."""
        here = {f"checkpoints/{path.name}" for path in (self._folder.files / "checkpoints").glob("step_*")}
        return sorted((path for path in here | set(self.names.values()) if _STEP.search(path)), key=_age)

    def _outdated(self, keep_last: int, keep_epochs: Sequence[int]) -> list[str]:
        safe = {f"epoch={epoch}" for epoch in keep_epochs}
        recent = self._recent(keep_last)
        epochs = [name for name in self.names if name.startswith("epoch=") and name not in safe]
        return [name for name in epochs if self.names[name] not in recent]

    def _unnamed(self, keep_last: int) -> list[str]:
        kept = {*self._recent(keep_last), *self.names.values()}
        return [path for path in self._present() if path not in kept]


def set_aside(folder: Path) -> None:
    """Give a damaged checkpoint a name under which nobody looks for one.

    Raises:
        RunError: The folder cannot be written.
    """
    number = 1
    while (target := folder.with_name(f"damaged_{number}_{folder.name}")).exists():
        number += 1
    try:
        folder.rename(target)
    except OSError as error:
        raise RunError(
            f"The damaged checkpoint '{folder}' cannot be renamed: {error.strerror}. Make its folder writable."
        ) from error


def _age(path: str) -> tuple[int, str]:
    """Return what sorts checkpoints from the oldest to the newest."""
    return step_of(path), path


def _epoch_of(folder: Path) -> object:
    manifest = folder / "checkpoint.json"
    return json.loads(manifest.read_text(encoding="utf-8")).get("epoch") if manifest.is_file() else None


def fetch_checkpoint(store: RunReader, run: RunInfo, name: str, target: Path) -> Path:
    """Return the folder of a run's checkpoint, copied below ``target`` unless the store keeps it on this machine.

    Args:
        store: The run's store.
        run: The run.
        name: ``best``, ``last``, ``initial`` or ``epoch=N``.
        target: Folder for copies; one that is there is used again.

    Raises:
        RunError: The run has no such checkpoint, or its files are gone.
    """
    names = checkpoint_names(run.tags)
    if name not in names:
        has = f"It has {', '.join(sorted(names))}." if names else "It has none."
        raise RunError(f"Run '{run.experiment}/{run.name}' has no checkpoint '{name}'. {has}")
    path = names[name]
    local = store.local_artifacts(run.id)
    what = f"Checkpoint '{name}' of run '{run.experiment}/{run.name}'"
    if local is not None:
        if not (folder := within(local, path, what=what)).is_dir():
            raise RunError(
                f"{what} is not at {folder}. Its files are gone; use another checkpoint, or bring them back."
            )
        return folder
    copy = within(target, path, what=what)
    return copy if copy.is_dir() else _download(store, run.id, path, target)


def _download(store: RunReader, run_id: str, path: str, target: Path) -> Path:
    """Download beside the place and rename: the folder is complete or absent."""
    draft = within(target, "incoming", what="The folder of the run")
    shutil.rmtree(draft, ignore_errors=True)
    arrived = store.download(run_id, path, draft)
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    arrived.rename(target / path)
    shutil.rmtree(draft, ignore_errors=True)
    return target / path
