"""Content hashes of files and cohorts."""

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from dmx.cohort.cache import FactStore, default_cache_dir
from dmx.cohort.case import Case, Cohort
from dmx.errors import CohortError

_DIGEST_LENGTH = 32
_THREADS = 4
# A file that changed this recently can change again without a new time stamp.
_SETTLED_NS = 2_000_000_000
_LAST_BYTES = 64


def file_sha256(path: str | Path, *, cache_dir: Path | None = None, fresh: bool = False) -> str:
    """Return the SHA-256 of a file, remembered by its path, size, times, inode and last bytes.

    The time of the last change of the inode (``ctime``) cannot be set: a file that took another's place with its size
    and its date, as by ``cp -p`` or from an archive, is read. The last bytes, in a ``.gz`` file the checksum of what it
    holds, serve where a file system keeps no such time.

    Args:
        path: The file.
        cache_dir: Folder in which hashes are remembered; the user's cache by default.
        fresh: Read the file whatever is remembered.

    Raises:
        CohortError: The file cannot be read.
    """
    path = Path(path).absolute()
    store = _store(cache_dir or default_cache_dir())
    try:
        status = path.stat()
        # A pipe would wait for ever, a device never end.
        if not stat.S_ISREG(status.st_mode):
            raise CohortError(f"'{path}' cannot be read: it is not a file.")
        with path.open("rb") as file:
            key = _identity(path, status, file)
            if not fresh and (known := store.get(key)) is not None:
                return str(known)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise CohortError(f"'{path}' cannot be read: {reason}.") from error
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
        store.put(key, digest)
    return digest


def _identity(path: Path, status: os.stat_result, file: BinaryIO) -> str:
    """Return what a file is remembered by; the file is at its beginning then."""
    file.seek(max(0, status.st_size - _LAST_BYTES))
    last = file.read(_LAST_BYTES)
    file.seek(0)
    numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    known = "\0".join([str(path), *map(str, numbers)]).encode("utf-8", "surrogateescape")
    return hashlib.sha256(known + b"\0" + last).hexdigest()


def files_sha256(paths: Iterable[Path], *, cache_dir: Path | None = None) -> dict[Path, str]:
    """Return the SHA-256 of several files, read by a few threads.

    Raises:
        CohortError: A file cannot be read.
    """
    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(unique, pool.map(lambda path: file_sha256(path, cache_dir=cache_dir), unique), strict=True))


def cohort_digest(cohort: Cohort, *, cache_dir: Path | None = None) -> str:
    """Return a digest of 32 characters of what the cohort is: names, subjects, splits and the content of its files.

    Neither the order of the rows nor the place of the files matters.

    Raises:
        CohortError: A file cannot be read.
    """
    hashes = files_sha256((path for case in cohort.cases for path in case.files().values()), cache_dir=cache_dir)
    cases = sorted(
        [
            *(case.name, case.subject, case.split),
            sorted((column, hashes[path]) for column, path in case.files().items()),
            *_said_of_the_case(cohort, case),
        ]
        for case in cohort.cases
    )
    # Cohorts without regions, ignored voxels and named values keep the digest that they had before there were any.
    said = [cohort.regions.as_dict(), cohort.ignore] if cohort.regions or cohort.ignore is not None else []
    values = [sorted(cohort.label_values.items())] if cohort.label_values else []
    content = json.dumps([sorted(cohort.channels), list(cohort.classes), cases, *said, *values])
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_LENGTH]


def _said_of_the_case(cohort: Cohort, case: Case) -> list[Any]:
    """Return label and targets; nothing where the cohort has none, as before there were any."""
    if case.label is None and not case.targets:
        return []
    name = cohort.label_classes[case.label] if case.label is not None and cohort.label_classes else case.label
    return [name, sorted((target, repr(value)) for target, value in case.targets.items())]


@cache
def _store(folder: Path) -> FactStore:
    return FactStore(folder / "file_sha256_v2.jsonl")
