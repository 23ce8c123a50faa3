"""What the page of a run says of where its weights came from and where they went."""

from collections.abc import Callable
from pathlib import Path

from dmx.tracking.delivery import Target, deliver
from dmx.tracking.lineage import Source, source_tags
from dmx.tracking.session import ActiveRun, resume_run
from dmx.tracking.store import RunInfo

Begin = Callable[..., ActiveRun]
Now = Callable[[ActiveRun], RunInfo]


def note_of(run: RunInfo) -> str:
    return run.tags["mlflow.note.content"]


def address(run: RunInfo) -> str:
    return f"(#/experiments/{run.experiment_id}/runs/{run.id}?"


def start_child(begin: Begin, source: RunInfo, **changes: object) -> ActiveRun:
    tags = source_tags([Source(run=source, checkpoint="checkpoints/step_000000005", sha256="ab")], experiment="other")
    return begin(**{"experiment": "other", "kind": "finetune", "tags": tags, **changes})


def test_the_page_of_a_child_begins_with_its_source_and_the_page_of_the_source_lists_it(begin: Begin, now: Now) -> None:
    with begin(note="Strokes of site A.") as parent:
        pass
    frozen = {"freeze.normal": "1,2,3", "freeze.fc": "", "transfer.received": 5}
    with start_child(begin, now(parent), params=frozen, note="With frozen layers.") as child:
        pass
    lines = note_of(now(child)).split("\n\n")
    assert lines[0].startswith(f"**Source:** [study/{parent.info.name}]{address(parent.info)}")
    assert lines[0].endswith("checkpoint `checkpoints/step_000000005`")
    assert lines[1] == "**Frozen:** normal 1-3"
    assert f"/runs/{child.info.id}/artifacts/transfer/mapping.html?" in lines[2]
    assert lines[3].strip() == "With frozen layers."

    assert note_of(now(parent)).startswith("Strokes of site A.\n\n**Used by**\n")
    assert f"- [other/{child.info.name}]{address(child.info)}" in note_of(now(parent))
    assert "Used by" not in note_of(now(child))


def test_more_children_are_listed_beside_what_the_user_wrote(begin: Begin, now: Now) -> None:
    with begin() as parent:
        pass
    with start_child(begin, now(parent)) as first:
        pass
    written = note_of(now(parent)).rstrip() + "\n\nMy own remark.\n"
    parent.store.set_tags(parent.info.id, {"mlflow.note.content": written})
    with start_child(begin, now(parent), kind="evaluate") as second:
        pass
    text = note_of(now(parent))
    assert text.count("**Used by**") == 1
    assert text.index(second.info.id) < text.index(first.info.id)
    assert text.startswith("My own remark.")
    assert "(evaluate)" in text


def test_a_resumed_run_keeps_its_children_listed(begin: Begin, now: Now, project: Path) -> None:
    with begin() as parent:
        pass
    with start_child(begin, now(parent)) as child:
        pass
    with resume_run(parent.store, now(parent), root=project, notify=print) as resumed:
        resumed.summary.set("Further epochs.")
    assert note_of(now(parent)).startswith("Further epochs.\n\n**Used by**")
    assert child.info.id in note_of(now(parent))


def test_scores_reach_the_run_that_was_scored_and_change_nothing_else_of_it(begin: Begin, now: Now) -> None:
    with begin() as scored:
        scored.log_metrics({"val/dice": 0.5}, 40)
    with begin(kind="evaluate") as run:
        run.log_metrics({"evaluation/dice": 0.75}, 3)
        run.log_metrics_of(scored.info, {"evaluation/dice": 0.75}, 40)
        run.log_metrics({"evaluation/dice": 0.8}, 4)
    # Delivering it again changes nothing.
    deliver(Target(run.store, run.info.id, run.folder), print, again=True)
    assert now(scored).metrics == {"val/dice": 0.5, "evaluation/dice": 0.75}
    assert [(point.step, point.value) for point in run.store.metric_history(scored.info.id, "evaluation/dice")] == [
        (40, 0.75)
    ]
    assert [point.step for point in run.store.metric_history(run.info.id, "evaluation/dice")] == [3, 4]
