"""A run while a process works on it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from dmx import __version__
from dmx.errors import RunError
from dmx.paths import open_own
from dmx.tracking.checkpoints import Checkpoints, checkpoint_names, fetch_checkpoint, kept_models
from dmx.tracking.creation import Note, alone, settle_all, settle_before
from dmx.tracking.delivery import Courier, Notify, Target, deliver
from dmx.tracking.folder import RunFolder, drafted, run_folder
from dmx.tracking.journal import Journal, known_steps, untold
from dmx.tracking.lineage import source_runs
from dmx.tracking.location import mask, runs_folder
from dmx.tracking.names import check_name, next_name, sole_name
from dmx.tracking.pictures import save_figure
from dmx.tracking.process import Owner, now, owner_of, process_tags, require_free, successor_tags
from dmx.tracking.store import CohortInput, RunInfo, RunStore, Status
from dmx.tracking.summary import Summary, describe, link_back

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_TAG = 5000
_MAX_PARAM = 500


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """What a run starts with.

    Attributes:
        experiment: Name of the MLflow experiment; it is created when it is new.
        kind: ``train``, ``evaluate``, ``predict``, …
        words: What distinguishes the run; its name becomes ``<words>-<kind>-<number>``.
        name: The run's name instead.
        tags: Further tags, e.g. those of :mod:`dmx.tracking.lineage`.
        params: About twenty chosen settings.
        note: What the run is for, in Markdown.
        texts: Artifacts without which the run could not go on; they are on the disk before the run exists.
    """

    experiment: str
    kind: str
    words: str
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, object] = field(default_factory=dict)
    note: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)


class ActiveRun:
    """A run on which this process works: takes what is to be logged and never raises for it.

    Everything goes to a journal in the run's folder first; a thread brings it to the store. Use it in a ``with`` block,
    which ends the run: FINISHED, FAILED with the error's sentence, or KILLED for Ctrl-C.

    Attributes:
        store: Where the run is kept.
        info: What the store knew of it when the work began.
        folder: Its folder on this machine.
        hide: Applied to every text that is logged, see :class:`dmx.tracking.privacy.Pseudonyms`.
        checkpoints: Its checkpoints.
        summary: Its Markdown summary, which takes warnings, too.
    """

    def __init__(self, store: RunStore, info: RunInfo, folder: RunFolder, notify: Notify) -> None:
        self.store = store
        self.info = info
        self.folder = folder
        self.notify = notify
        self._journal = Journal(folder.journal)
        self._last_steps = known_steps(store, info, folder.journal)
        self._courier = Courier(Target(store, info.id, folder), notify)
        self._noted = False
        self._ended = False
        self.hide: Callable[[str], str] = str
        self.checkpoints = Checkpoints(folder, checkpoint_names(info.tags), self.write)
        note = info.tags.get("mlflow.note.content", "")
        self.summary = Summary(self, info.tags.get("dmx.description", ""), note=note)

    @property
    def files(self) -> Path:
        """Return the folder whose content becomes the run's artifacts; tell of each file with :meth:`log_file`."""
        return self.folder.files

    def write(self, entry: Mapping[str, object]) -> None:
        """Add an entry to the journal; a problem becomes one note to the user."""
        if self._courier.taken_by:
            return
        try:
            self._journal.append(entry)
        except Exception as error:
            self._note_once("The run's journal", error)

    @property
    def delivered(self) -> bool:
        """Return whether the store has all of the run, which is known when it has ended."""
        return self._courier.complete

    def require_own(self) -> None:
        """Raise ``RunError`` where another process has taken the run over."""
        if taken_by := self._courier.taken_by:
            place = f"Run '{self.info.experiment}/{self.info.name}'"
            raise RunError(f"{place} was taken over by {taken_by}. This process ends and leaves the run to it.")

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values at a global step. What was logged for that step or a later one, before a resume, is left out."""
        new = {key: float(value) for key, value in values.items() if step > self._last_steps.get(key, -1)}
        if new:
            self._last_steps.update(dict.fromkeys(new, step))
            self.write({"do": "metrics", "step": step, "time": int(time.time() * 1000), "values": new})

    def log_metrics_of(self, other: RunInfo, values: Mapping[str, float], step: int) -> None:
        """Log values at a global step of another run of the same store, such as the scores that it was given."""
        moment = int(time.time() * 1000)
        self.write({"do": "metrics", "run": other.id, "step": step, "time": moment, "values": dict(values)})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log settings; they never change afterwards."""
        self.write({"do": "params", "values": _short(params)})

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags; ``None`` removes one."""
        values = {key: value if value is None else self.told(value)[:_MAX_TAG] for key, value in tags.items()}
        self.write({"do": "tags", "values": values})

    def told(self, text: str) -> str:
        """Return a text as it may be kept: without subjects where they are hidden, never with a password."""
        return mask(self.hide(text))

    def log_file(self, path: str) -> None:
        """Make a file or folder below :attr:`files` an artifact."""
        self.write({"do": "upload", "path": path})

    def log_text(self, path: str, text: str) -> None:
        """Make a text an artifact."""
        with self.guarded(path):
            with drafted(self.files / path) as draft:
                draft.write_text(self.told(text), encoding="utf-8")
            self.log_file(path)

    def log_figure(self, path: str, figure: "Figure") -> None:
        """Make a figure an artifact, as PNG."""
        with self.guarded(path):
            save_figure(figure, self.files / path)
            self.log_file(path)

    def log_image(self, key: str, figure: "Figure", step: int) -> None:
        """Add a figure to the course of pictures of that key, which MLflow shows by step."""
        with self.guarded(key):
            source = f"images/{key.replace('/', '~')}_{step:09d}.png"
            save_figure(figure, self.folder.path / source)
            moment = int(time.time() * 1000)
            self.write({"do": "image", "source": source, "key": key, "step": step, "time": moment})

    def log_cohort(self, cohort: CohortInput) -> None:
        """Add a cohort to the run's inputs."""
        self.write({"do": "cohort", "cohort": asdict(cohort)})

    def log_line(self, text: str) -> None:
        """Add a line with the time to ``log.txt``."""
        with self.guarded("log.txt"), open_own(self.files / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S} {self.told(text)}\n")

    def sync(self) -> None:
        """Return when the disk has all that was logged; part of every checkpoint."""
        with self.guarded("The run's journal"):
            self._journal.sync()

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Turn an error of logging into one note to the user."""
        try:
            yield
        except Exception as error:
            self._note_once(what, error)

    def _note_once(self, what: str, error: Exception) -> None:
        if not self._noted:
            self._noted = True
            self.notify(f"{what} cannot be logged ({type(error).__name__}: {mask(str(error))}). The work goes on.")

    def end(self, status: Status, reason: str = "") -> None:
        """End the run: its status, the reason as a tag, the kept checkpoints as models; then deliver everything.

        Args:
            status: FINISHED, FAILED or KILLED.
            reason: One sentence for the tag ``dmx.end_reason``.
        """
        if self._ended:
            return
        self._ended = True
        if (self.files / "log.txt").is_file():
            self.log_file("log.txt")
        models = [asdict(model) for model in kept_models(self.checkpoints.names)]
        if models:
            self.write({"do": "checkpoints", "models": models})
        self.set_tags({"dmx.end_reason": reason or None, "dmx.heartbeat": now()})
        self.write({"do": "status", "status": status})
        with self.guarded("The end of the run"):
            self._journal.close()
        with self.guarded("The end of the run"):
            self._courier.finish(status)
            if self.delivered:
                with suppress(RunError):
                    settle_all(self.store, self.folder.path.parents[1], patience=0.0)
        self._courier.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end("FINISHED")
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            self.end("KILLED", "Ended by a signal.")
        else:
            self.end("FAILED", str(error) or type(error).__name__)


def start_run(store: RunStore, new: NewRun, *, root: Path | None = None, notify: Notify) -> ActiveRun:
    """Create a run and begin to work on it. Check everything that can be checked before.

    Args:
        store: Where the run is kept.
        new: What it starts with.
        root: Folder of the project; found from the working directory when it is not given.
        notify: Gets a sentence when something cannot be logged.

    Raises:
        RunError: The store cannot be reached or refuses the run.
    """
    tags = {
        "dmx.kind": new.kind,
        "dmx.version": __version__,
        "mlflow.source.name": f"dmx {new.kind}",
        "mlflow.source.type": "LOCAL",
        **process_tags(),
        **new.tags,
    }
    if new.note:  # The summary replaces the note and repeats it.
        tags |= {"mlflow.note.content": new.note[:_MAX_TAG], "dmx.description": new.note[:_MAX_TAG]}
    new = replace(new, tags={key: mask(value) for key, value in tags.items()})
    mlruns = runs_folder(store.uri, root)
    try:
        with alone(mlruns) as locked:
            settle_before(store, mlruns, locked=locked, notify=notify)
            return _begin(store, new, mlruns, notify)
    except OSError as error:
        raise RunError(f"A new run cannot be kept below '{mlruns}': {error.strerror}. Mend that first.") from error


def _begin(store: RunStore, new: NewRun, mlruns: Path, notify: Notify) -> ActiveRun:
    name = check_name(new.name) if new.name is not None else next_name(store, new.experiment, new.kind, new.words)
    texts = {path: mask(text) for path, text in new.texts.items()}
    creation = Note.write(mlruns, store.uri, params=_short(new.params), texts=texts)
    info = creation.create(store, new.experiment, name=name, tags=new.tags)
    if new.name is None:
        info = sole_name(store, info, new.words)
    folder = run_folder(store, info.id, mlruns.parent)
    folder.lock()
    run = ActiveRun(store, info, folder, notify)
    if new.params:
        run.log_params(new.params)
    for path, text in texts.items():
        run.log_text(path, text)
    creation.finish(store, mlruns)
    _link_sources(run, new)
    return run


def _link_sources(run: ActiveRun, new: NewRun) -> None:
    """Begin the run's summary with where it comes from, and list it in the summaries of its sources."""
    text = mask(describe(run.store, run.info, new.params, new.note))
    if text == new.note:
        return
    run.info = replace(run.info, tags={**run.info.tags, "dmx.description": text[:_MAX_TAG]})
    run.set_tags({"dmx.description": text})
    run.summary.set(text)
    for source in source_runs(run.info.tags):
        # A link is not worth a training.
        with suppress(RunError):
            link_back(run.store, source)


def _short(params: Mapping[str, object]) -> dict[str, str]:
    return {key: mask(str(value))[:_MAX_PARAM] for key, value in params.items()}


def resume_run(
    store: RunStore, info: RunInfo, *, root: Path | None = None, notify: Notify, replaces: Owner | None = None
) -> ActiveRun:
    """Go on with a run; what its journal still holds is delivered first, so that its checkpoints are the newest ones.

    Args:
        store: Where the run is.
        info: The run.
        root: Folder of the project.
        notify: Gets a sentence when something cannot be logged.
        replaces: The process whose place may be taken, as ``require_free`` has said; ``None``: it is asked here.

    Raises:
        RunError: Another process works on the run, or the store cannot be reached.
    """
    current = store.get_run(info.id)
    if replaces is None or owner_of(current.tags) != replaces:
        require_free(store, current, notify=notify)
    folder = run_folder(store, info.id, root)
    folder.lock()
    try:
        folder.sweep()
        deliver(Target(store, info.id, folder), notify)
        count = int(info.tags.get("dmx.resumed", "0")) + 1
        store.set_tags(info.id, {"dmx.resumed": str(count), "dmx.end_reason": None, **successor_tags()})
        store.set_status(info.id, "RUNNING")
        run = ActiveRun(store, store.get_run(info.id), folder, notify)
        if not folder.in_place:
            # Files that were complete when the process was killed, but that it had not logged yet.
            for file in untold(folder.journal, run.files):
                run.log_file(file)
        return run
    except BaseException:
        folder.unlock()
        raise


def checkpoint_path(store: RunStore, run: RunInfo, name: str, *, root: Path | None = None) -> Path:
    """Return the folder of a run's checkpoint here, downloaded when it has to be; ``RunError`` where it is gone."""
    return fetch_checkpoint(store, run, name, run_folder(store, run.id, root).files)
