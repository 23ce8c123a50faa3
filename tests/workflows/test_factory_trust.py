"""Opening somebody's run never executes code: every way to a stored network asks first."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dmx.cli.main import app
from dmx.config import trust
from dmx.config.load import as_dict, load_experiment
from dmx.errors import CheckpointError, ConfigError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, session, settings

NAME = "lab_nets:small"
SOURCE = """
from pathlib import Path

from torch import nn

Path("code_ran").touch()


def small(in_channels, out_channels, width=3):
    return nn.Sequential(nn.Conv3d(in_channels, width, 3, padding=1), nn.ELU(), nn.Conv3d(width, out_channels, 1))
"""
SMALL = {
    "sampling": {"segment": 8},
    "training": {"epochs": 2, "steps_per_epoch": 2, "batch_size": 2, "moving_average": None},
    "validation": {"segments": 4, "volumes_every_epochs": 0, "overlays": 0},
}


def experiment(manifest: Path, **changes: object) -> dict[str, object]:
    return {**as_dict(settings(manifest)), **SMALL, "model": {"name": NAME}, **changes}


@pytest.fixture(autouse=True)
def distrust(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trust, "_named", set())
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    yield
    sys.modules.pop("lab_nets", None)


@pytest.fixture
def source(project: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that stopped in the middle, as if it came from somebody else: its code has not been imported here."""
    (project / "lab_nets.py").write_text(SOURCE)
    (project / "mine.yaml").write_text(yaml.safe_dump(experiment(manifest)))
    given = load_experiment(project / "mine.yaml")
    trust.trust_factory(NAME)
    run = train(given, session(project, Teller(stop_after=3))).run.id
    forget(project, monkeypatch)
    return run


def forget(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_named", set())
    sys.modules.pop("lab_nets", None)
    (project / "code_ran").unlink()


def without_model(project: Path, manifest: Path) -> Path:
    raw = experiment(manifest)
    del raw["model"]
    (project / "plain.yaml").write_text(yaml.safe_dump(raw))
    return project / "plain.yaml"


WAYS: dict[str, Callable[[str], Sequence[str]]] = {
    "predict": lambda run: ["predict", "--from-run", run, "cohort.csv", "-o", "out"],
    "evaluate": lambda run: ["evaluate", "--from-run", run, "cohort.csv"],
    "resume": lambda run: ["resume", run],
    "finetune": lambda run: ["finetune", "plain.yaml", "--from-run", run, "--allow-leak"],
    "transfer": lambda run: ["transfer", "plain.yaml", "--from-run", run, "--dry-run", "--allow-leak"],
    "train": lambda run: ["train", "plain.yaml", "--from-run", run],
}


def test_a_stored_network_is_not_built_by_code_that_the_user_has_not_named(
    project: Path, manifest: Path, source: str
) -> None:
    without_model(project, manifest)
    for way, words in WAYS.items():
        result = CliRunner().invoke(app, words(source))
        assert isinstance(result.exception, CheckpointError), f"{way}: {result.output}"
        assert "'lab_nets:small', which was not run" in str(result.exception), way
        assert not (project / "code_ran").exists(), way


def test_the_environment_lets_it_run(
    project: Path, manifest: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_model(project, manifest)
    monkeypatch.setenv(trust.VARIABLE, NAME)
    for way in ("predict", "finetune", "resume"):
        result = CliRunner().invoke(app, WAYS[way](source))
        assert result.exit_code == 0, f"{way}: {result.output}"
    assert (project / "code_ran").exists()


def test_an_experiment_is_no_consent_and_the_command_is(project: Path, manifest: Path, source: str) -> None:
    words = ["finetune", "mine.yaml", "--from-run", source, "--allow-leak", "--set", "training.epochs=1"]
    for asked in (words, ["train", "mine.yaml"], ["model", "show", "mine.yaml"], ["model", "show", source]):
        refused = CliRunner().invoke(app, asked)
        assert isinstance(refused.exception, CheckpointError), asked
        assert f"--trust {NAME}" in str(refused.exception)
        assert not (project / "code_ran").exists(), asked
    assert CliRunner().invoke(app, ["model", "show", "mine.yaml", "--trust", NAME]).exit_code == 0
    assert (project / "code_ran").exists()
    assert CliRunner().invoke(app, [*words, "--trust", NAME]).exit_code == 0
    assert len(open_store(root=project).list_runs()) == 2


def test_consent_to_another_function_is_none(project: Path, manifest: Path, source: str) -> None:
    (project / "lab_more.py").write_text(SOURCE.replace("code_ran", "other_ran"))
    (project / "mine.yaml").write_text(yaml.safe_dump(experiment(manifest, model={"name": "lab_more:small"})))
    words = ["transfer", "mine.yaml", "--from-run", source, "--dry-run", "--allow-leak", "--trust", "lab_more:small"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, CheckpointError)
    assert not (project / "code_ran").exists()


@pytest.mark.parametrize("words", [["torch.hub:load"], ["os:system"], ["*"], ["lab_nets"]])
def test_what_cannot_be_trusted_is_refused_at_once(words: list[str]) -> None:
    refused = CliRunner().invoke(app, ["train", "absent.yaml", "--trust", *words])
    assert isinstance(refused.exception, ConfigError)
    assert "--trust" in str(refused.exception)
