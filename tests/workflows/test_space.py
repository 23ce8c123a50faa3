"""Room for checkpoints, before the first step."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from dmx.errors import TrainingError
from dmx.tracking.mlflow_store import open_store
from dmx.training.state import new_state
from dmx.workflows import space
from dmx.workflows.assemble import check_training
from dmx.workflows.resume import resume
from dmx.workflows.space import checkpoint_bytes, require_space
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, session
from tests.workflows.test_train import artifacts
from tests.workflows.tiny_images import image_settings, make_images

Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def images(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(space, "_SMALL", 0)
    return make_images(project)


def leave(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the disk have so many bytes left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - count, count))


def test_a_checkpoint_is_about_as_large_as_expected(project: Path, images: Path) -> None:
    given = image_settings(images, model={"arguments": {"width": 400}}, training={"moving_average": 0.9})
    run = train(given, session(project)).run
    written = artifacts(open_store(root=project), run) / "checkpoints/step_000000006"
    size = sum(path.stat().st_size for path in written.iterdir())
    checked = check_training(given, session(project))
    state = new_state(checked.network, checked.settings)
    expected = checkpoint_bytes(state, checked.settings)
    assert 0.9 * size < expected < 1.1 * size
    sgd = replace(checked.settings, optimizer=replace(checked.settings.optimizer, name="sgd"))
    assert checkpoint_bytes(state, sgd) < expected
    frozen = check_training(
        image_settings(images, model={"arguments": {"width": 400}}, freeze={"layers": ["features"]}), session(project)
    )
    assert checkpoint_bytes(new_state(frozen.network, frozen.settings), frozen.settings) < expected / 2


def test_too_small_a_disk_ends_a_training_before_its_first_step(
    project: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = image_settings(images, checkpoints={"keep_last": 4, "keep_epochs": [1]})
    checked = check_training(given, session(project))
    state = new_state(checked.network, checked.settings)
    each = checkpoint_bytes(state, checked.settings)
    leave(monkeypatch, 8 * each)
    require_space(project, state, checked.settings)
    leave(monkeypatch, 8 * each - 1)
    teller = Teller()
    with pytest.raises(TrainingError, match=r"Up to 8 checkpoints of .* GB are on the disk") as error:
        train(given, session(project, teller))
    assert "keep_last: 4, keep_epochs: 1" in str(error.value)
    assert "\n" not in str(error.value)
    assert teller.events == []
    # Neither small checkpoints nor a file system that does not tell are a reason to refuse.
    with monkeypatch.context() as small:
        small.setattr(space, "_SMALL", 8 * each + 1)
        require_space(project, state, checked.settings)
    monkeypatch.undo()
    monkeypatch.setattr(space, "_SMALL", 0)
    require_space(project / "nowhere", state, checked.settings)


def test_a_training_that_goes_on_has_most_of_them(project: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = image_settings(images)
    run = train(given, session(project, Teller(stop_after=4))).run
    checked = check_training(given, session(project))
    each = checkpoint_bytes(new_state(checked.network, checked.settings), checked.settings)
    leave(monkeypatch, 2 * each - 1)
    with pytest.raises(TrainingError, match="Up to 2 checkpoints"):
        resume(run.id, session(project))
    leave(monkeypatch, 2 * each)
    assert resume(run.id, session(project)).reason == "finished"
