"""``dmx transfer``, ``finetune`` and ``train --from-run`` as a person types them."""

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from dmx.cli.main import app
from dmx.cli.train import _extension
from dmx.cli.transfer import join_layers
from dmx.config.load import as_dict
from dmx.errors import ConfigError, DmxError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.train import train
from tests.workflows.conftest import session, settings

QUICK = {"segments": 4, "volumes_every_epochs": 0, "overlays": 0}


def dmx(*words: str) -> Result:
    return CliRunner().invoke(app, join_layers(list(words)))


def text(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture
def source(project: Path, manifest: Path) -> str:
    """Train a 2+2 network; the experiment ``deeper.yaml`` asks for a 3+2 one."""
    shallow = settings(manifest, training={"epochs": 1}, validation=QUICK)
    run = train(shallow, session(project), name="first").run.id
    for name, widths in (("same", [4, 4]), ("deeper", [4, 4, 6])):
        changed = settings(manifest, training={"epochs": 1}, validation=QUICK, model={"normal": {"widths": widths}})
        (project / f"{name}.yaml").write_text(yaml.safe_dump({**as_dict(changed), "name": name, "transfer": None}))
    return run


def test_a_dry_run_shows_the_plan_and_leaves_nothing(project: Path, source: str) -> None:
    shown = dmx("transfer", "deeper.yaml", "--from-run", "balls/first", "--layers", "1", "2", "3", "--dry-run")
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert [line.split()[0] for line in lines[:4]] == [f"normal.block_{k}" for k in (1, 2, 3)] + [
        "subsampled_1.block_1"
    ]
    # Depth 3 of the source is its first fc layer, which is the first of fc here too, at depth 4.
    assert "fc.block_1 sliced from source:fc.block_1" in text(shown)
    assert "initialized: the source has no such layer" in text(shown)
    assert "parameters received" in lines[-1]
    assert [run.name for run in open_store(root=project).list_runs()] == ["first"]


def test_lists_of_layers_are_words_with_blanks_and_given_twice_they_add_up(project: Path, source: str) -> None:
    words = ("transfer", "--layers", "normal.block_1", "normal.block_2", "--layers", "3", "--exclude", "normal.block_2")
    assert join_layers([*words, "fc.*", "same.yaml", "-x"]) == [
        *("transfer", "--layers", "normal.block_1,normal.block_2", "--layers", "3"),
        *("--exclude", "normal.block_2,fc.*", "same.yaml", "-x"),
    ]
    assert join_layers(["activations", "run", "--layers", "a", "b"]) == ["activations", "run", "--layers", "a", "b"]
    shown = dmx(*words, "same.yaml", "--from-run", "balls/first", "--dry-run")
    assert shown.exit_code == 0, shown.output
    received = [line.split()[0] for line in shown.output.splitlines() if " copied from " in line]
    assert received == ["normal.block_1", "fc.block_1"]
    assert "normal.block_2 initialized: excluded" in text(shown)


def test_from_a_transfer_to_its_training(project: Path, source: str) -> None:
    words = ("--layers", "1", "2", "3", "--allow-leak", "--set", "freeze.normal=[3]", "--set", "freeze.subsampled=[]")
    moved = dmx("transfer", "deeper.yaml", "--from-run", "balls/first", *words, "--name", "moved")
    assert moved.exit_code == 0, moved.output
    assert "Warning: these layers are frozen although" in text(moved)
    refused = dmx("transfer", "deeper.yaml", "--from-run", "balls/first", *words, "--strict")
    assert isinstance(refused.exception, ConfigError)
    assert "With --strict, these layers are frozen" in str(refused.exception)
    trained = dmx("train", "deeper.yaml", "--from-run", "deeper/moved", "--allow-leak", "--name", "on")
    assert trained.exit_code == 0, trained.output
    assert "Optimizer initialized. Uninitialized: yes. Reset requested: no." in text(trained)
    store = open_store(root=project)
    run = store.find_run("deeper/on")
    assert run.tags["dmx.optimizer_state"] == run.params["optimizer_state"] == "initialized: new network"
    folder = store.local_artifacts(run.id)
    assert folder is not None
    assert "Uninitialized: yes. Reset requested: no." in (folder / "log.txt").read_text()
    tuned = dmx(
        "finetune", "same.yaml", "--from-run", "balls/first", "--freeze", "normal=1", "--strict", "--allow-leak"
    )
    assert tuned.exit_code == 0, tuned.output
    assert store.find_run("same/last").params["freeze.subsampled"] == "1"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("transfer", "deeper.yaml", "--from-run", "balls/first"),
            "'normal' has 3 layers but the source's 'normal' has 2",
        ),
        (("transfer", "deeper.yaml"), "transfer.sources must name a run or a file"),
        (("transfer", "same.yaml", "--from-run", "a", "--from-file", "b"), "name one source each"),
        (("transfer", "same.yaml", "--from-run", "balls/first", "--checkpoint", "epoch=9"), "no checkpoint 'epoch=9'"),
        (("transfer", "same.yaml", "--from-run", "balls/first", "--head", "copied"), "transfer: setting 'head'"),
        (("train", "same.yaml", "--from-run", "balls/first"), "has been trained. Use 'dmx resume'"),
        (("train", "with.yaml", "--from-run", "balls/first"), "so --from-run has no place"),
        (("finetune", "deeper.yaml", "--from-run", "balls/first"), "dmx transfer"),
        (("finetune", "same.yaml", "--from-run", "balls/first", "--freeze", "normal=9"), "position 9"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(project: Path, source: str, words: tuple[str, ...], sentence: str) -> None:
    raw = yaml.safe_load((project / "same.yaml").read_text())
    (project / "with.yaml").write_text(yaml.safe_dump({**raw, "transfer": {"sources": {"a": {"run": "balls/first"}}}}))
    done = dmx(*words)
    assert isinstance(done.exception, DmxError), done.output
    assert sentence in str(done.exception)
    assert len(open_store(root=project).list_runs()) == 1


def test_epochs_and_schedule_belong_together() -> None:
    assert _extension(None, None) is None
    assert _extension(60, "keep") is not None
    for epochs, schedule in ((60, None), (None, "keep")):
        with pytest.raises(ConfigError, match="belong together"):
            _extension(epochs, schedule)
    with pytest.raises(ConfigError, match="keep, stretch, restart, got 'grow'"):
        _extension(60, "grow")


def test_a_fine_tuning_goes_to_the_store_that_its_source_is_taken_from(
    project: Path, manifest: Path, tmp_path: Path, migrated: Path
) -> None:
    database = tmp_path / "elsewhere" / "mlflow.db"
    database.parent.mkdir()
    shutil.copyfile(migrated, database)
    address = f"sqlite:///{database}"
    there = settings(manifest, training={"epochs": 1}, validation=QUICK, tracking={"uri": address})
    source = train(there, session(project), name="first").run.id
    here = settings(manifest, training={"epochs": 1}, validation=QUICK)
    (project / "same.yaml").write_text(yaml.safe_dump({**as_dict(here), "name": "same", "transfer": None}))
    words = ("finetune", "same.yaml", "--from-run", "balls/first", "--allow-leak")
    assert isinstance(dmx(*words).exception, DmxError)
    tuned = dmx(*words, "--store", address, "--name", "second")
    assert tuned.exit_code == 0, tuned.output
    assert open_store(address, project).find_run("same/second").tags["dmx.source_run_id"] == source
    assert open_store(root=project).list_runs() == []
    # What is to be typed next names the store, too.
    assert f"--store {address}" in text(tuned)
