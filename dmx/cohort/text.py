"""Text files that people write by hand: read whole, with a sentence that names the row where something is wrong."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dmx.errors import CohortError

_MAX_SHOWN = 60


def read_text(path: Path, what: str) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: The file.
        what: What the sentence calls it, e.g. ``Manifest``.

    Raises:
        CohortError: The file cannot be read, or is no UTF-8 text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise CohortError(f"{what} '{path}' cannot be read: {reason}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        raise CohortError(f"{what} '{path}', row {row}: must be UTF-8 text; save the table as 'CSV UTF-8'.") from error
    if "\0" in text:
        raise CohortError(f"{what} '{path}' must be CSV text, got binary data.")
    return text


def csv_rows(
    lines: Sequence[str], first: int, error: Callable[[int, str], CohortError]
) -> Iterator[tuple[int, list[str]]]:
    """Yield row number and stripped cells of each row that is neither empty nor a comment.

    Spreadsheets fill up all rows to the length of the longest: empty cells beyond the end of the header are left out.

    Args:
        lines: Lines with their ends.
        first: Row number of the first line.
        error: Makes the exception of a row from its number and what is wrong.
    """
    reader = csv.reader(lines, strict=True)
    row, width = first, 0
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped) and not stripped[0].startswith("#"):
                while len(stripped) > width and not stripped[-1]:
                    stripped.pop()
                width = width or len(stripped)
                yield row, stripped
            row = first + reader.line_num
    except csv.Error as problem:
        raise error(row, f"is not valid CSV ({problem}); check its quotation marks") from problem


def note_text(line: str) -> str:
    r"""Return a line ``# key: value`` without what a spreadsheet put around it: quotes, and cells that are empty.

    >>> note_text('"# classes: background, lesion",,,\r\n'), note_text("# classes: background, lesion,,")
    ('# classes: background, lesion', '# classes: background, lesion')
    """
    text = line.strip()
    if text.startswith('"#'):
        text = ",".join(next(csv.reader([text])))
    return text.rstrip(",; \t") if text.startswith("#") else text


def shown(text: str) -> str:
    r"""Return a text from a file in quotes, short and without control characters.

    >>> shown("a\x1b[2J")
    "'a\\x1b[2J'"
    """
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")
