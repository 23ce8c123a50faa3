"""Tables that grow by a row per step or epoch, also across interruptions."""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from dmx.tracking.folder import drafted


class History:
    """A CSV file whose first column is the global step; no step has two rows.

    A new column rewrites the file; otherwise a row is appended and handed to the operating system at once.

    Args:
        path: The file. Rows that are there stay; a last row that was cut off while it was written is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            path.touch()
        complete = path.read_bytes().rfind(b"\n") + 1
        if complete < path.stat().st_size:
            os.truncate(path, complete)
        rows = self.rows()
        self.columns = list(rows[0]) if rows else []
        self.last_step = int(rows[-1]["step"]) if rows else -1
        self._waiting: list[str] = []

    def rows(self) -> list[dict[str, str]]:
        """Return all rows as text."""
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def add(self, step: int, values: Mapping[str, object]) -> bool:
        """Add the row of a step, unless it or a later one is there; return whether it was added."""
        if step <= self.last_step:
            return False
        row = {"step": step, **values}
        if not row.keys() <= set(self.columns):
            self._widen([key for key in row if key not in self.columns])
        self.last_step = step
        self._waiting.append(_line([row.get(column, "") for column in self.columns]))
        self._append()
        return True

    def _append(self) -> None:
        """Write what waits; a disk that is full keeps whole rows, and gets the others when it has room."""
        size = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.writelines(self._waiting)
        except OSError:
            os.truncate(self.path, size)
            raise
        self._waiting.clear()

    def _widen(self, new: list[str]) -> None:
        rows = self.rows()
        self.columns += new
        # Not in its own folder, which may be on its way to the store.
        beside = self.path.parent.parent
        with drafted(self.path, folder=beside) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            file.write(_line(self.columns))
            file.writelines(_line([row.get(column, "") for column in self.columns]) for row in rows)


def as_numbers(rows: Iterable[Mapping[str, str]]) -> list[dict[str, float | None]]:
    """Return rows of a history as numbers; an empty cell is ``None``."""
    return [{key: float(value) if value else None for key, value in row.items()} for row in rows]


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as CSV, with all columns that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with drafted(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        file.write(_line(columns))
        file.writelines(_line([row.get(column, "") for column in columns]) for row in rows)


def _line(cells: list[object] | list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()
