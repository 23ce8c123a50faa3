"""What every use case gets from whoever calls it: where the project is, and whom to tell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dmx.training.events import Listener


class Report(Protocol):
    """Whoever shows a person what happens outside of the training itself."""

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how much of something is done."""
        ...


class Silence:
    """A report to nobody, for use from Python."""

    def say(self, sentence: str) -> None:
        """Show nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Show nothing."""


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

    def progress(self, what: str) -> Callable[..., None]:
        """Return a progress callback for one thing; it takes done, total and more that is not shown."""

        def told(done: int, total: int, *_: object) -> None:
            self.report.progress(what, done, total)

        return told
