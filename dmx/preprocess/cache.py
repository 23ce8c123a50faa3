"""Prepared cases on disk, found by the content of the case's files and the contract."""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path

from dmx.children import workers
from dmx.cohort.case import Case
from dmx.cohort.digest import files_sha256
from dmx.errors import CohortError, DmxError
from dmx.preprocess.contract import Contract
from dmx.preprocess.entry import FORMAT, CachedCase, read_index, write_entry
from dmx.preprocess.folder import make_entry, ready_folder, require_index
from dmx.preprocess.pipeline import preprocess_case

__all__ = ["CachedCase", "CaseCache", "Progress"]

Progress = Callable[[int, int, str], None]


class CaseCache:
    """A folder of prepared cases that several processes may share.

    An entry's name is a hash of the content of the case's files and of the contract: a file that changes, or another
    setting, makes another entry, and a case that is used by two cohorts is prepared once.

    Args:
        folder: Made when it is first used.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def prepare(
        self, cases: Sequence[Case], contract: Contract, *, progress: Progress | None = None, processes: int = 1
    ) -> list[CachedCase]:
        """Prepare what is not there yet and return all cases in their order.

        Args:
            cases: Cases; those without a label map too.
            contract: What the network sees.
            progress: Called with (done, total, name of the case) whenever a case is ready.
            processes: Processes that prepare; 1: this one.

        Raises:
            CohortError: A case cannot be prepared; cases that are ready stay.
            DmxError: The folder cannot be written.
        """
        ready_folder(self.folder)
        keys = entry_keys(cases, contract)
        found = {key: index for key in dict.fromkeys(keys) if (index := read_index(self.folder / key)) is not None}
        todo: dict[str, Case] = {}
        for case, key in zip(cases, keys, strict=True):
            if key not in found:
                todo.setdefault(key, case)
        times = Counter(keys)
        done = 0
        if progress is not None:
            for case, key in zip(cases, keys, strict=True):
                if key in found:
                    done += 1
                    progress(done, len(cases), case.name)
        for key in self._prepare_all(todo, contract, processes):
            done += times[key]
            if progress is not None:
                progress(done, len(cases), todo[key].name)
        found |= {key: require_index(self.folder / key) for key in todo}
        return [
            CachedCase(name=case.name, subject=case.subject, folder=self.folder / key, index=found[key])
            for case, key in zip(cases, keys, strict=True)
        ]

    def _prepare_all(self, todo: dict[str, Case], contract: Contract, processes: int) -> Iterator[str]:
        """Prepare cases and yield the key of each that is ready."""
        if processes <= 1 or len(todo) <= 1:
            for key, case in todo.items():
                _prepare_one(self.folder, key, case, contract)
                yield key
            return
        with workers(min(processes, len(todo)), initializer=_end_with_parent) as pool:
            jobs = {key: pool.submit(_prepare_one, self.folder, key, case, contract) for key, case in todo.items()}
            try:
                for key, job in jobs.items():
                    job.result()
                    yield key
            except BrokenProcessPool as error:
                raise DmxError(
                    "A process that prepared cases could not begin, or was ended from outside, perhaps for lack of "
                    f"memory. Use fewer processes than {processes}; a script of your own must call dmx below "
                    "if __name__ == '__main__': because the new processes read it, too."
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def entry_keys(cases: Sequence[Case], contract: Contract) -> list[str]:
    """Return the name of each case's entry: a hash of what its files hold and of the contract.

    Raises:
        CohortError: A file cannot be read.
    """
    used = [
        {
            column: path
            for column, path in case.files().items()
            if not column.startswith("channel_") or column.removeprefix("channel_") in contract.channels
        }
        for case in cases
    ]
    hashes = files_sha256(path for files in used for path in files.values())
    settings = contract.key()
    return [
        hashlib.sha256(
            json.dumps([FORMAT, settings, sorted((column, hashes[path]) for column, path in files.items())]).encode()
        ).hexdigest()[:32]
        for files in used
    ]


def _end_with_parent() -> None:
    """Let this process end when the one that started it is killed; otherwise it would wait for work for ever."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare_one(folder: Path, key: str, case: Case, contract: Contract) -> None:
    # Another process may have been faster.
    if read_index(folder / key) is not None:
        return
    prepared = preprocess_case(case, contract)
    if entry_keys([case], contract) != [key]:
        files = ", ".join(map(str, case.files().values()))
        raise CohortError(
            f"A file of case '{case.name}' changed while it was prepared ({files}). Start again when nobody writes to "
            "it."
        )
    make_entry(folder, key, lambda beside: write_entry(beside, prepared, classes=contract.scored.values()))
