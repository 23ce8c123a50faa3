import csv
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from dmx.config.sections import CheckpointSection
from dmx.errors import RunError
from dmx.tracking.checkpoints import checkpoint_names, step_of
from dmx.tracking.mlflow_store import MlflowStore, open_store
from dmx.tracking.privacy import project_pseudonyms
from dmx.tracking.process import process_of
from dmx.tracking.session import ActiveRun, NewRun, checkpoint_path, resume_run, start_run
from dmx.tracking.store import CohortInput, RunInfo
from dmx.training.events import Notice
from dmx.training.position import Position

Begin = Callable[..., ActiveRun]
Now = Callable[[ActiveRun], RunInfo]
KEYS = ("train/loss", "val/dice", "epoch", "time/total", "train/mean_loss")


def steps_of(run: ActiveRun, key: str) -> list[int]:
    return [point.step for point in run.store.metric_history(run.info.id, key)]


def table(run: ActiveRun, name: str) -> list[dict[str, str]]:
    with (run.files / "history" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_training_becomes_a_run(begin: Begin, train: Any, now: Now) -> None:
    with begin(note="What for.", params={"seed": 1}, tags={"dmx.task": "segmentation"}) as run:
        training = train(run)
        training.start()
        training.go(1, 20)
        training.recorder(Notice(message="Mind this."))
        training.end()
    info = now(run)
    assert info.status == "FINISHED"
    assert info.name == "two-pathways-train-1"
    assert info.params == {"seed": "1"}
    assert info.metrics["epoch"] == 4
    assert info.metrics["time/total"] == 12.0
    assert steps_of(run, "train/loss") == list(range(1, 21))
    assert steps_of(run, "val/dice") == [5, 10, 15, 20]
    note = info.tags["mlflow.note.content"]
    assert note.startswith("What for.")
    assert "finished after 4 epochs" in note
    assert [row["step"] for row in table(run, "steps.csv")] == [str(step) for step in range(1, 21)]
    assert table(run, "steps.csv")[1]["loss"] == "0.5"
    assert table(run, "epochs.csv")[-1]["val/dice"] == "0.4"
    assert "Mind this." in (run.files / "log.txt").read_text()
    assert training.state.last_checkpoint == "step_000000020 of run study/two-pathways-train-1"


def test_names_move_and_only_what_none_points_to_is_deleted(begin: Begin, train: Any, now: Now) -> None:
    with begin() as run:
        training = train(run, keep=CheckpointSection(keep_last=1, keep_epochs=(1,)))
        training.start()
        training.go(1, 20)
    names = checkpoint_names(now(run).tags)
    assert {name: step_of(path) for name, path in names.items()} == {
        "initial": 0,
        "epoch=1": 5,
        "epoch=4": 20,
        "best": 20,
        "last": 20,
    }
    assert now(run).tags["mlflow.latest_checkpoint_artifact"] == names["last"]
    folders = sorted(path.name for path in (run.files / "checkpoints").iterdir())
    assert folders == ["step_000000000", "step_000000005", "step_000000020"]
    store = run.store
    assert isinstance(store, MlflowStore)
    models = store._client.search_logged_models([run.info.experiment_id])
    assert sorted(model.name for model in models) == folders


def test_a_resumed_run_has_no_gap_and_no_duplicate(
    begin: Begin, train: Any, leave: Any, now: Now, project: Path, notes: list[str]
) -> None:
    run = begin()
    training = train(run)
    training.start()
    training.go(1, 13)
    leave(run)
    with resume_run(run.store, now(run), root=project, notify=notes.append) as again:
        assert now(run).status == "RUNNING"
        last = checkpoint_path(run.store, again.info, "last", root=project)
        assert step_of(last.name) == 10
        resumed = train(again)
        resumed.go(11, 20)
        resumed.end()
    info = now(run)
    assert info.status == "FINISHED"
    assert info.tags["dmx.resumed"] == "1"
    for key in ("train/loss",):
        assert steps_of(run, key) == list(range(1, 21))
    for key in KEYS[1:]:
        assert steps_of(run, key) == [5, 10, 15, 20]
    assert [row["step"] for row in table(run, "steps.csv")] == [str(step) for step in range(1, 21)]
    assert info.metrics["time/total"] == 12.0
    assert notes == []


def test_what_was_logged_is_not_logged_again_with_another_value(
    begin: Begin, train: Any, leave: Any, now: Now, project: Path, notes: list[str]
) -> None:
    run = begin()
    train(run).step(1, loss=0.5)
    leave(run)
    with resume_run(run.store, now(run), root=project, notify=notes.append) as again:
        resumed = train(again)
        resumed.step(1, loss=0.25)
        resumed.step(2, loss=0.125)
    assert [point.value for point in run.store.metric_history(run.info.id, "train/loss")] == [0.5, 0.125]


def test_where_the_journal_was_lost_the_store_knows_the_steps(
    begin: Begin, train: Any, leave: Any, now: Now, tmp_path: Path, notes: list[str]
) -> None:
    run = begin()
    train(run).go(1, 7)
    run.end("KILLED")
    with resume_run(run.store, now(run), root=tmp_path / "elsewhere", notify=notes.append) as again:
        train(again).go(6, 10)
    assert steps_of(run, "train/loss") == list(range(1, 11))
    assert steps_of(run, "val/dice") == [5, 10]


def test_many_steps_are_thinned_in_the_store_alone(begin: Begin, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmx.tracking.recorder._MOST_POINTS", 5)
    with begin() as run:
        train(run).go(1, 20)
    assert steps_of(run, "train/loss") == [1, 4, 8, 12, 16, 20]
    assert len(table(run, "steps.csv")) == 20


def test_validation_leaves_tables_and_pictures(begin: Begin, train: Any) -> None:
    with begin() as run:
        training = train(run)
        rows = [{"case": "a", "dice": 0.5}, {"case": "b", "dice": None}]
        training.end_epoch(1, rows=rows, figures={"validation/a(1)": Figure(figsize=(1, 1))})
    assert (run.files / "validation" / "epoch_0001.csv").read_text() == "case,dice\na,0.5\nb,\n"
    pictures = run.store.list_artifacts(run.info.id, "images")
    assert pictures[0].startswith("images/validation~a_1_+step+5+")


def test_a_logging_error_is_one_note_and_nothing_else(
    begin: Begin, train: Any, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with begin() as run:
        training = train(run)
        monkeypatch.setattr("dmx.tracking.history.History.add", full)
        training.step(1)
        training.step(2)
        monkeypatch.undo()
    assert len(notes) == 1
    assert "No space left" in notes[0]


def test_a_checkpoint_that_cannot_be_written_is_no_logging_error(begin: Begin, train: Any) -> None:
    run = begin()
    training = train(run)
    training.recorder._save = lambda due, folder: (_ for _ in ()).throw(OSError("No space left"))
    with pytest.raises(OSError, match="No space"), run:
        training.start()
    assert run.store.get_run(run.info.id).status == "FAILED"


def test_before_and_after_the_end_of_an_epoch_are_two_checkpoints(begin: Begin, train: Any) -> None:
    with begin() as run:
        training = train(run)
        training.checkpoint(Position(0, 5, 5), "last")
        training.checkpoint(Position(0, 5, 5), "last")
        training.checkpoint(Position(1, 0, 5), "last", "epoch=1")
        training.checkpoint(Position(1, 1, 6), "last")
        assert run.checkpoints.names == {
            "last": "checkpoints/step_000000006",
            "epoch=1": "checkpoints/step_000000005_epoch_0001",
        }
    assert json.loads((run.files / run.checkpoints.names["epoch=1"] / "checkpoint.json").read_text()) == {"epoch": 1}
    assert not (run.files / "checkpoints" / "step_000000005").exists()


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RunError("It broke."), "FAILED", "It broke."),
        (ValueError(), "FAILED", "ValueError"),
        (KeyboardInterrupt(), "KILLED", "Ended by a signal."),
    ],
)
def test_an_error_ends_the_run_with_its_sentence(
    begin: Begin, now: Now, error: BaseException, status: str, reason: str
) -> None:
    run = begin()
    with pytest.raises(type(error)), run:
        raise error
    assert now(run).status == status
    assert now(run).tags["dmx.end_reason"] == reason
    run.end("FINISHED")
    assert now(run).status == status


def test_a_run_in_use_is_refused(begin: Begin, now: Now, project: Path, notes: list[str]) -> None:
    with begin() as run, pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        resume_run(run.store, now(run), root=project, notify=notes.append)


def test_names_count_up_and_can_be_given(begin: Begin) -> None:
    for kind, name, expected in (
        ("train", None, "two-pathways-train-1"),
        ("train", None, "two-pathways-train-2"),
        ("predict", None, "two-pathways-predict-1"),
        ("train", "My run", "My run"),
    ):
        with begin(kind=kind, name=name) as run:
            assert run.info.name == expected
    with pytest.raises(RunError, match="must not be empty or contain '/'"):
        begin(name="a/b")


def test_subjects_stay_private(begin: Begin, train: Any, now: Now, project: Path) -> None:
    with begin() as run:
        run.hide = project_pseudonyms(project, ["sub-01", "7"])
        training = train(run)
        training.end_epoch(
            1, rows=[{"case": "sub-01", "subject": "7", "dice": 7}], figures={"validation/sub-01": Figure()}
        )
        run.log_line("sub-01 is bad, sub-011 is not, 7 steps")
        run.log_text("cohort/manifest.csv", "case\nsub-01\n")
        run.log_cohort(CohortInput(name="c", digest="d", context="training", source="m.csv"))
        run.set_tags({"x": "case sub-01"})
    stored = "".join(path.read_text() for path in run.files.rglob("*") if path.suffix in (".csv", ".txt"))
    assert "sub-01 " not in stored
    assert "sub-01\n" not in stored
    assert "sub-011 is not, 7 steps" in stored
    assert ",7\n" in stored
    assert not any("sub-01" in path.name for path in run.files.rglob("*"))
    assert "sub-01" not in now(run).tags["x"]
    again = project_pseudonyms(project, ["sub-01"])
    assert again("sub-01") == run.hide("sub-01") != "sub-01"
    assert ((project / "mlruns" / "salt").stat().st_mode & 0o777) == 0o600


def _train_until_killed(root: str, train: Any) -> None:
    run = start_run(
        open_store(root=Path(root)),
        NewRun(experiment="study", kind="train", words="killed"),
        root=Path(root),
        notify=print,
    )
    training = train(run)
    training.start()
    training.go(1, 13)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_goes_on(store: MlflowStore, project: Path, train: Any) -> None:
    process = multiprocessing.get_context("fork").Process(target=_train_until_killed, args=(str(project), train))
    process.start()
    process.join()
    info = store.find_run("study/last")
    assert info.status == "RUNNING"
    assert process_of(info.tags) == "gone"
    with resume_run(store, info, root=project, notify=print) as run:
        assert step_of(run.checkpoints.names["last"]) == 10
        train(run).go(11, 20)
    assert steps_of(run, "train/loss") == list(range(1, 21))
    assert steps_of(run, "val/dice") == [5, 10, 15, 20]
