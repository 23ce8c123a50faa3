from pathlib import Path

import pytest

from dmx.errors import ConfigError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.inputs import planned_rates
from dmx.workflows.resume import Extension, extended, resume
from dmx.workflows.train import train
from tests.workflows.conftest import Teller, session, settings


def rates(experiment: object) -> list[float]:
    return [row["lr"] for row in planned_rates(experiment)]  # type: ignore[arg-type]


def test_a_kept_curve_stays_at_its_end_a_stretched_one_covers_all_a_restarted_one_begins_anew(manifest: Path) -> None:
    before = settings(manifest, schedule={"name": "exponential"}, training={"epochs": 4, "steps_per_epoch": 1})
    kept, stretched, restarted = (
        extended(before, Extension(epochs=8, schedule=kind), done=4) for kind in ("keep", "stretch", "restart")
    )
    assert rates(kept)[:4] == rates(before)
    assert rates(kept)[4:] == [rates(kept)[4]] * 4
    assert rates(stretched)[::2] == pytest.approx(rates(before))
    assert rates(restarted)[4:] == rates(before)


def test_a_finished_training_is_extended_in_the_same_run(project: Path, manifest: Path) -> None:
    done = train(settings(manifest), session(project))
    teller = Teller()
    resume(done.run.id, session(project, teller), extension=Extension(epochs=3, schedule="restart"))
    store = open_store(root=project)
    assert [point.step for point in store.metric_history(done.run.id, "epoch")] == [4, 8, 12]
    assert any("Learning rate at the start" in sentence for sentence in teller.sentences)
    folder = store.local_artifacts(done.run.id)
    assert folder is not None
    assert (folder / "config.resume_1.yaml").is_file()
    assert (folder / "figures/learning_rate.resume_1.png").is_file()
    params = store.get_run(done.run.id).params
    assert (params["epochs"], params["schedule"]) == ("3", "polynomial, restart for epochs 2 to 2")


def test_what_would_learn_nothing_is_refused(project: Path, manifest: Path) -> None:
    done = train(settings(manifest), session(project))
    with pytest.raises(ConfigError, match="stays 0 after epoch 2"):
        resume(done.run.id, session(project), extension=Extension(epochs=3, schedule="keep"))
    with pytest.raises(ConfigError, match="above the 2 epochs"):
        resume(done.run.id, session(project), extension=Extension(epochs=2, schedule="stretch"))
