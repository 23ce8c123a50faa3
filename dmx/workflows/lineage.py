"""The picture of where a run came from, as one of its artifacts."""

from dataclasses import replace

from dmx.tracking.family import LINEAGE, find_family
from dmx.tracking.family_page import lineage_html
from dmx.tracking.lineage import SOURCE_RUN
from dmx.tracking.session import ActiveRun
from dmx.training.loop import FitResult
from dmx.workflows.checked import Checked
from dmx.workflows.params import training_params


def log_lineage(run: ActiveRun, checked: Checked, result: FitResult) -> None:
    """Keep the family of a run that started from another one, as it is when the training has ended.

    What the run itself has logged may still be on its way to the store, so that is taken from the training.
    """
    if SOURCE_RUN not in run.info.tags or result.reason == "stopped":
        return
    with run.guarded(LINEAGE):
        params = {key: str(value) for key, value in training_params(checked).items()}
        now = run.store.get_run(run.info.id)
        family = find_family(run.store, replace(now, status="FINISHED", params={**params, **now.params}))
        best = None if result.best.value is None else (result.best.metric, result.best.value)
        run.log_text(LINEAGE, lineage_html(family.replaced(replace(family.members[run.info.id], best=best))))
