"""What a person sees of the work around a training: sentences, and bars for what takes time."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dmx.cli.console import err, out, say_nothing_more


class TerminalReport:
    """Shows sentences on standard error, and one bar for each thing that is counted."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._what = ""

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        self.close()
        err.print(escape(sentence), soft_wrap=True)

    def warn(self, sentence: str) -> None:
        """Show a warning."""
        self.close()
        err.print(f"[yellow]Warning:[/] {escape(sentence)}", soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how much of something is done; a bar that is full disappears."""
        if not err.is_terminal:
            return
        if self._progress is None or what != self._what:
            self.close()
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=err, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(what, total=total)
            self._what = what
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# Not every system knows it.
_HANGUP: int | None = getattr(signal, "SIGHUP", None)


class StopSignal:
    """Whether Ctrl-C, SIGTERM or the end of the terminal asked the training to end after the step.

    Attributes:
        number: The signal; 0 without one.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> bool:
        """Tell whether to stop."""
        return self.number != 0

    @property
    def exit_code(self) -> int:
        """Return what a shell expects of a program that a signal ended."""
        return 128 + self.number if self.number else 0


@contextmanager
def stopping_on_signals() -> Iterator[StopSignal]:
    """Let the first Ctrl-C or SIGTERM finish the step and save; a second one ends at once.

    A terminal that is closed counts as the first; nohup, which ignores that, is left alone.
    """
    stop = StopSignal()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == _HANGUP:
            say_nothing_more()
        elif stop.number:
            raise KeyboardInterrupt
        stop.number = stop.number or number
        err.print("Finishing the step, then saving. Once more ends at once.")

    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM, _HANGUP)
        if number is not None and (signal.getsignal(number) != signal.SIG_IGN or number != _HANGUP)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_result(sentence: str) -> None:
    """Print what a command has come to."""
    out.print(escape(sentence), soft_wrap=True)
