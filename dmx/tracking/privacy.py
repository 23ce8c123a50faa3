"""What must not leave this machine: subject ids, where the experiment says so."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from dmx.errors import RunError
from dmx.paths import open_own

_SHORTEST_IN_TEXT = 3


def store_salt(folder: Path) -> bytes:
    """Return the secret of a project's pseudonyms, made at the first use; who has it can undo them by trying ids."""
    file = folder / "salt"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f"salt.{secrets.token_hex(4)}"
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(16), encoding="ascii")
        try:
            # Of several processes the first one decides.
            file.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    try:
        with open_own(file, "r", encoding="ascii") as salt:
            return bytes.fromhex(salt.read())
    except ValueError as error:
        raise RunError(
            f"'{file}' is damaged: it must hold the secret of the pseudonyms. Bring it back, or remove it; "
            "subjects then get other pseudonyms."
        ) from error


class Pseudonyms:
    """Names that stand for the subjects and cases of a cohort, the same ones in every run of a project.

    Args:
        salt: The project's secret.
        names: Subjects and cases.
    """

    def __init__(self, salt: bytes, names: Iterable[str]) -> None:
        self._hidden = {name: _hash(salt, name) for name in set(names)}
        inside = sorted((name for name in self._hidden if len(name) >= _SHORTEST_IN_TEXT), key=len, reverse=True)
        alternatives = "|".join(map(re.escape, inside))
        self._pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{alternatives})(?![A-Za-z0-9])") if inside else None

    def __call__(self, text: str) -> str:
        """Replace every subject and case in a text; names of one or two characters only where they are all of it."""
        if text in self._hidden:
            return self._hidden[text]
        return self._pattern.sub(lambda match: self._hidden[match[0]], text) if self._pattern else text


def project_pseudonyms(root: Path, names: Iterable[str]) -> Pseudonyms:
    """Return the pseudonyms of subjects and cases in a project; set them as a run's ``hide`` before anything is logged.

    Args:
        root: Folder of the project; the secret stays in its ``mlruns``.
        names: Subjects and cases.
    """
    return Pseudonyms(store_salt(root / "mlruns"), names)


def _hash(salt: bytes, name: str) -> str:
    return f"p-{hmac.new(salt, name.encode(), hashlib.sha256).hexdigest()[:10]}"


def relative(path: Path, root: Path) -> str:
    """Return a path below the project, or only the file's name where it lies elsewhere."""
    absolute = path.resolve()
    return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else absolute.name
