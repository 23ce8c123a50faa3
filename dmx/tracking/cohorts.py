"""A cohort as the input and the artifacts of a run, without what is private."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dmx.cohort.case import Case, Cohort
from dmx.cohort.digest import cohort_digest
from dmx.tracking.history import write_table
from dmx.tracking.privacy import Pseudonyms, relative, store_salt
from dmx.tracking.session import ActiveRun
from dmx.tracking.store import CohortInput


def hide_subjects(run: ActiveRun, cohorts: Sequence[Cohort], root: Path) -> None:
    """Replace subjects and cases by pseudonyms in every text that the run logs from now on.

    The secret behind them stays in the project's ``mlruns`` folder, so that the same subject has the same pseudonym in
    all of its runs.
    """
    names = {name for cohort in cohorts for case in cohort.cases for name in (case.name, case.subject)}
    run.hide = Pseudonyms(store_salt(root / "mlruns"), names)


def log_cohort(
    run: ActiveRun, cohort: Cohort, *, contexts: Sequence[str], root: Path, cache_dir: Path | None = None
) -> None:
    """Log a cohort as the run's inputs, one per context, and as ``cohort/manifest.csv`` and ``cohort/summary.json``.

    Args:
        run: The run.
        cohort: The cohort.
        contexts: Splits that are inputs, e.g. ``("training", "validation")``; a cohort without splits is one input.
        root: Folder of the project; paths are logged relative to it.
        cache_dir: Where the hashes of files are remembered.
    """
    with run.guarded("The cohort"):
        split = any(case.split for case in cohort.cases)
        for context in contexts:
            cases = cohort.in_split(context) if split else cohort.cases
            if cases:
                part = replace(cohort, cases=cases)
                run.log_cohort(
                    CohortInput(
                        name=cohort.name,
                        digest=cohort_digest(part, cache_dir=cache_dir),
                        context=context,
                        source=relative(cohort.manifest, root) if cohort.manifest else cohort.name,
                        summary=summarize(part),
                    )
                )
        private = isinstance(run.hide, Pseudonyms)
        rows = [_row(case, root, hide=run.hide, private=private) for case in cohort.cases]
        write_table(run.files / "cohort" / "manifest.csv", rows)
        run.log_file("cohort/manifest.csv")
        run.log_text("cohort/summary.json", json.dumps(summarize(cohort), indent=2))


def summarize(cohort: Cohort) -> dict[str, object]:
    """Return what a cohort holds in numbers and names, nothing about single subjects."""
    splits = sorted({case.split for case in cohort.cases})
    return {
        "name": cohort.name,
        "num_cases": len(cohort.cases),
        "num_subjects": len(cohort.subjects),
        "cases_of_split": {name or "none": len(cohort.in_split(name)) for name in splits},
        "channels": list(cohort.channels),
        "classes": list(cohort.classes),
    }


def _row(case: Case, root: Path, *, hide: Callable[[str], str], private: bool) -> dict[str, object]:
    """Return a line of the logged manifest; file names often contain the subject and stay out where it is hidden."""
    row: dict[str, object] = {"case": hide(case.name), "subject": hide(case.subject), "split": case.split}
    files = {column: "yes" if private else relative(path, root) for column, path in case.files().items()}
    return row | files
