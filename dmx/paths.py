"""Paths that data names: none leads out of the folder that owns it, and none goes through a symbolic link.

A store, a journal, a note and a checkpoint are files, and files come from anywhere. What they name is a path only after
:func:`within` has said so.
"""

import errno
import os
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # a system without POSIX
    fcntl = None  # type: ignore[assignment]

from dmx.errors import RunError

_SHOWN = 200


class PlaceError(RunError):
    """Report a path or a link in a project that leads out of it."""


def within(owner: Path, place: object, *, what: str) -> Path:
    """Return a place that data names, which must lie below the folder that owns it.

    Args:
        owner: The folder. It may itself be reached through links: those are the user's own.
        place: Path relative to the owner, or an absolute one.
        what: What names it, as the sentence begins: ``The journal of run 1234abcd``.

    Raises:
        PlaceError: The place lies elsewhere, is the folder itself, climbs by ``..``, goes through a symbolic link,
            or is no path.
    """
    text = os.fspath(place) if isinstance(place, str | Path) else ""
    if not text or "\0" in text or not _encodes(text) or ".." in Path(text).parts:
        raise _refusal(what, place, "which is no path that dmx writes")
    inside = _below(owner, Path(text))
    if inside is None or not inside.parts:
        raise _refusal(what, place, f"which is not inside of '{owner}'")
    path = owner
    try:
        for part in inside.parts:
            path /= part
            if path.is_symlink():
                raise _refusal(what, place, f"and '{path}' is a symbolic link")
    except OSError as error:
        raise _refusal(what, place, f"which is no path here ({error.strerror})") from error
    return path


def _encodes(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _below(owner: Path, place: Path) -> Path | None:
    """Return a place relative to its owner; ``None`` where it lies elsewhere."""
    if not place.is_absolute():
        return place
    home = owner.resolve()
    for base in (owner.absolute(), home):
        if place.is_relative_to(base):
            return place.relative_to(base)
    # Written when the folder was reached by another way.
    real = place.resolve()
    return real.relative_to(home) if real.is_relative_to(home) else None


def _refusal(what: str, place: object, problem: str) -> PlaceError:
    return PlaceError(
        f"{what} names '{str(place)[:_SHOWN]}', {problem}. Nothing was touched. dmx writes no such thing: somebody has "
        "changed the project, so use it only when you know what was changed."
    )


def refuse_links(folder: Path, *, what: str) -> None:
    """Require that no symbolic link lies below a folder, before anything in it is written or deleted.

    Args:
        folder: The folder; it may be absent.
        what: What the sentence calls it: ``The folder of run 1234abcd``.

    Raises:
        PlaceError: There is one.
    """
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            link = Path(top) / name
            if link.is_symlink():
                raise link_error(link, what=what)


def link_error(link: Path, *, what: str) -> PlaceError:
    """Return what is said of a symbolic link where dmx writes."""
    return PlaceError(
        f"{what} holds the symbolic link '{link}', which dmx does not follow: what is written would land elsewhere. "
        "Remove the link, or put the file itself in its place. Only 'mlruns' itself may be a link."
    )


def open_own(path: Path, mode: str, *, encoding: str | None = None) -> IO[Any]:
    """Open a file that dmx keeps for itself; a symbolic link in its place is not followed.

    Args:
        path: The file.
        mode: As for ``open``.
        encoding: Of a text.

    Raises:
        PlaceError: It is a symbolic link.
        OSError: It cannot be opened.
    """
    try:
        return open(path, mode, encoding=encoding, opener=_without_following)  # has an opener
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise link_error(path, what=f"'{path.parent.name}'") from error
        raise


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def lock(file: IO[Any], *, wait: bool) -> None:
    """Lock an open file for this process, until it is closed or the process ends in whatever way.

    Args:
        file: The file; it is locked itself, so none is left behind.
        wait: Whether to wait for another process that has it.

    Raises:
        BlockingIOError: Another process has it.
        RunError: This system has no such locks.
    """
    if fcntl is None:
        raise RunError("dmx keeps runs on Linux and macOS only; on Windows use it within WSL.")
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
