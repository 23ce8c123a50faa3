"""Small facts that are expensive to find out, kept on disk between sessions."""

import json
import os
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def default_cache_dir() -> Path:
    """Return where facts are kept: ``$DMX_CACHE_DIR``, else the user's cache folder.

    Who has no home keeps them while the process runs.
    """
    if named := os.environ.get("DMX_CACHE_DIR"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "dmx"
    except RuntimeError:
        return Path(_passing().name)


@cache
def _passing() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="dmx-facts-")


class FactStore:
    """JSON facts by key in an append-only file that several processes may share.

    A line is appended in one write; a line that another writer cut off is skipped. A folder that cannot be written
    costs the memory of facts, nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._facts = _load(path)

    def get(self, key: str) -> Any | None:
        """Return the fact, or None."""
        return self._facts.get(key)

    def put(self, key: str, fact: Any) -> None:
        """Remember a fact."""
        line = json.dumps([key, fact], separators=(",", ":")) + "\n"
        with self._lock:
            self._facts[key] = fact
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab", buffering=0) as file:
                    file.write(line.encode())
            except OSError:
                return


def _load(path: Path) -> dict[str, Any]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    facts: dict[str, Any] = {}
    for line in lines:
        try:
            key, fact = json.loads(line)
        except ValueError:
            continue
        if isinstance(key, str):
            facts[key] = fact
    return facts
