"""What every use case gets from whoever calls it: where the project is, and whom to tell."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dmx.tracking.session import ActiveRun
from dmx.training.events import Listener


class Report(Protocol):
    """Whoever shows a person what happens outside of the training itself."""

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        ...

    def warn(self, sentence: str) -> None:
        """Show a warning, as one."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how much of something is done."""
        ...


class Silence:
    """A report to nobody."""

    def say(self, sentence: str) -> None:
        """Show nothing."""

    def warn(self, sentence: str) -> None:
        """Show nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show nothing."""


class _Warnings:
    """The warnings of a session that its run has not got yet, and the run that gets them."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.shown: set[str] = set()
        self.run: ActiveRun | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """One use of the framework.

    Attributes:
        root: Folder of the project, where ``mlruns`` is.
        report: Told what happens.
        listeners: Told the events of a training.
        stop: Asked after each step; True saves and ends the training.
    """

    root: Path
    report: Report = field(default_factory=Silence)
    listeners: Sequence[Listener] = ()
    stop: Callable[[], bool] = lambda: False
    _warnings: _Warnings = field(default_factory=_Warnings, repr=False, compare=False)

    def warn(self, sentence: str) -> None:
        """Show a warning once, and keep it in the run: the one of :meth:`keeping`, or the one that comes next.

        Args:
            sentence: What is wrong and what to do, without the word "Warning".
        """
        if sentence in self._warnings.shown:
            return
        self._warnings.shown.add(sentence)
        self.report.warn(sentence)
        if self._warnings.run is None:
            self._warnings.waiting.append(sentence)
        else:
            self._warnings.run.summary.warn(sentence)

    @contextmanager
    def keeping(self, run: ActiveRun, hide: Callable[[str], str] = str) -> Iterator[None]:
        """Let a run keep the warnings so far, and those that come within a block.

        Args:
            run: The run.
            hide: Applied to every text that the run logs, see :func:`~dmx.workflows.privacy.hiding`.
        """
        run.hide = hide
        found = self._warnings
        found.run = run
        for sentence in found.waiting:
            run.summary.warn(sentence)
        found.waiting.clear()
        try:
            yield
        finally:
            found.run = None
            found.shown.clear()

    def progress(self, what: str) -> Callable[..., None]:
        """Return a progress callback for one thing; it takes done, total and more that is not shown."""

        def told(done: int, total: int, *_: object) -> None:
            self.report.progress(what, done, total)

        return told
