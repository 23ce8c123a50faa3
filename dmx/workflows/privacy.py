"""Which names a run may hold."""

from collections.abc import Callable, Iterable
from pathlib import Path

from dmx.cohort.case import Case
from dmx.config.sections import Experiment
from dmx.tracking.privacy import project_pseudonyms


def hiding(experiment: Experiment, cases: Iterable[Case], root: Path) -> Callable[[str], str]:
    """Return what is applied to every text and name that is logged: pseudonyms where the experiment asks for them."""
    if not experiment.tracking.pseudonyms:
        return str
    return project_pseudonyms(root, [name for case in cases for name in (case.name, case.subject)])
