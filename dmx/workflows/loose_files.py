"""Cases from single files of scans, which no manifest describes."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dmx.cohort.case import Case, Cohort
from dmx.errors import CohortError, ConfigError
from dmx.preprocess.contract import Contract
from dmx.workflows.data import read_cohort
from dmx.workflows.reads import own_source
from dmx.workflows.session import Session
from dmx.workflows.trained import TrainedNetwork


def cohort_of_files(paths: Sequence[Path], channels: Sequence[str], owner: str, session: Session) -> Cohort:
    """Return single files as cases: each is one of a network with one channel, else all are the channels of one.

    Args:
        paths: The files.
        channels: Channels of the network.
        owner: Whose channels they are, in words.
        session: Told when the files were put into another order.

    Raises:
        CohortError: There are too many or too few files, or two have one name.
    """
    if len(channels) == 1:
        named = [({channels[0]: path}, case_name([path], channels)) for path in paths]
    elif len(paths) == len(channels):
        ordered = in_order(paths, channels)
        if ordered != list(paths):
            words = ", ".join(f"{name}: {path.name}" for name, path in zip(channels, ordered, strict=True))
            session.report.say(f"The files were put into the order of the channels that their names say: {words}.")
        named = [(dict(zip(channels, ordered, strict=True)), case_name(paths, channels))]
    else:
        raise CohortError(
            f"{owner} needs {len(channels)} channels ({', '.join(channels)}), got {len(paths)} files. Give one file "
            "per channel in this order, or a manifest for several cases."
        )
    names = [name for _, name in named]
    if len(set(names)) < len(names):
        raise CohortError("Two files have the same name; their predictions would have it too. Write a manifest.")
    cases = tuple(Case(name=name, subject=name, channels=files) for files, name in named)
    return Cohort(name="files", classes=(), channels=tuple(channels), cases=cases)


def in_order(paths: Sequence[Path], channels: Sequence[str]) -> list[Path]:
    """Return files in the order of the channels where each name says exactly one, as it is otherwise.

    Raises:
        CohortError: Two files say that they are the same channel.
    """
    said = {path: [name for name in channels if _word(name) in _words(path)] for path in paths}
    found = [names[0] for names in said.values() if len(names) == 1]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise CohortError(
            f"Two of the files say that they are channel '{twice}': {', '.join(path.name for path in paths)}. Give one "
            f"file for each of {', '.join(channels)}."
        )
    if len(found) < len(paths):
        return list(paths)
    return sorted(paths, key=lambda path: channels.index(said[path][0]))


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _words(path: Path) -> set[str]:
    return {_word(_stem(path)), *re.findall(r"[a-z0-9]+", _stem(path).lower())}


def case_name(paths: Sequence[Path], channels: Sequence[str]) -> str:
    """Return the name of a case: of its folder where the files are called as channels are, else of the first file.

    A channel in front of or behind the name, as in ``sub-01_T1`` or nnU-Net's ``sub-01_0000``, does not belong to it.
    """
    known = {_word(name) for name in channels}
    parts = [part for part in re.split(r"[_.\s]+", _stem(paths[0])) if part]
    rest = [part for part in parts if _word(part) not in known]
    if len(channels) == 1 and rest:
        rest = parts
    if len(rest) > 1 and re.fullmatch(r"\d{4}", rest[-1]):
        rest = rest[:-1]
    if rest == parts:
        return _stem(paths[0])
    return "_".join(rest) or paths[0].resolve().parent.name or _stem(paths[0])


def with_roi_files(cohort: Cohort, rois: Sequence[Path], trained: TrainedNetwork, session: Session) -> Cohort:
    """Add the roi of each case of single files: as named, else as it lies beside the scans under a known name."""
    if rois and len(rois) != len(cohort.cases):
        raise ConfigError(f"--roi must be given once per case, got {len(rois)} for {len(cohort.cases)} cases.")
    if rois:
        cases = [replace(case, roi=roi) for case, roi in zip(cohort.cases, rois, strict=True)]
        return replace(cohort, cases=tuple(cases))
    if not isinstance(trained.contract, Contract) or not trained.contract.roi:
        return cohort
    folders = [_folder(case) for case in cohort.cases]
    cases = []
    for case, folder in zip(cohort.cases, folders, strict=True):
        # A name like roi.nii.gz belongs to the only case of its folder.
        names = _roi_names(trained) if folders.count(folder) == 1 else []
        names += [f"{case.name}_roi.nii.gz", f"{case.name}_roi.nii"]
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is not None:
            session.report.say(f"The roi of case '{case.name}' is '{found}', which lies beside it.")
        cases.append(replace(case, roi=found))
    return replace(cohort, cases=tuple(cases))


def _folder(case: Case) -> Path:
    return next(path.parent for path in case.channels.values() if path is not None)


def _roi_names(trained: TrainedNetwork) -> list[str]:
    """Return how rois are called: as in the training's cohort where all have one name, and ``roi``."""
    names = ["roi.nii.gz", "roi.nii"]
    with suppress(CohortError):
        own = {case.roi.name for case in read_cohort(own_source(trained.run, trained.experiment)).cases if case.roi}
        if len(own) == 1:
            names = list(dict.fromkeys([*own, *names]))
    return names


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")
