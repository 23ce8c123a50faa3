"""Images as a task: trained, resumed, predicted and scored as volumes are."""

import csv
import json
from pathlib import Path

import pytest
import torch

import dmx
from dmx.errors import CohortError, ConfigError, ModelError, RunError
from dmx.tracking.mlflow_store import open_store
from dmx.training.events import StepEnded
from dmx.workflows.ablate import AblateRequest, ablate
from dmx.workflows.by_task import evaluate_by_task, predict_by_task
from dmx.workflows.evaluate import EvaluateRequest
from dmx.workflows.evaluate_scores import EvaluatedScores
from dmx.workflows.predict import PredictRequest
from dmx.workflows.resume import resume
from dmx.workflows.train import train
from dmx.workflows.trained import open_network, open_trained
from tests.workflows.conftest import Teller, session
from tests.workflows.test_train import artifacts, assert_same, final_state
from tests.workflows.tiny_images import PER_SPLIT, image_settings, make_images


@pytest.fixture
def images(project: Path) -> Path:
    return make_images(project)


def test_a_run_on_images_keeps_what_a_run_on_volumes_keeps(project: Path, images: Path) -> None:
    run = train(image_settings(images), session(project)).run
    store = open_store(root=project)
    info = store.get_run(run.id)
    folder = artifacts(store, info)
    assert info.params["steps_per_epoch"] == "3"
    assert info.params["image_size"] == "16,16"
    assert info.params["task"] == info.tags["dmx.task"] == "classification"
    assert {
        "val/accuracy",
        "val/balanced_accuracy",
        "val/auc",
        "val/loss",
        "score_train/accuracy",
    } <= info.metrics.keys()
    assert {key for key in info.metrics if key.startswith("train/")} <= {
        *("train/loss", "train/mean_loss", "train/loss_cross_entropy", "train/accuracy")
    }
    assert (folder / "cohort/stimuli.csv").read_text().startswith("path,label,subject,split,brightness\n")
    for name in ("epoch_loss", "step_loss", "scores", "learning_curves", "learning_rate"):
        assert (folder / f"figures/{name}.png").is_file()
    assert len(json.loads((folder / "cohort/identity.json").read_text())["training"]) == PER_SPLIT["training"]
    trained = open_network(store, run.id, checkpoint=None, root=project)
    assert trained.task == "classification"
    assert trained.contract.outputs == ("dark", "light")
    with pytest.raises(RunError, match="has learned a classification, not a segmentation"):
        open_trained(store, run.id, checkpoint=None, root=project)


def test_the_history_has_every_step_of_every_epoch(project: Path, images: Path) -> None:
    teller = Teller()
    run = train(image_settings(images), session(project, teller)).run
    history = dmx.history(run.id, store=project / "mlruns")
    losses = [event.loss for event in teller.events if isinstance(event, StepEnded)]
    assert [len(steps) for steps in history.step_loss] == [3, 3]
    assert [loss for steps in history.step_loss for loss in steps] == pytest.approx(losses)
    assert len(history.epoch_loss) == len(history.score_train) == len(history.score_validation) == 2


def test_a_resume_in_the_middle_of_an_epoch_gives_the_same_bits(project: Path, images: Path) -> None:
    given = image_settings(images, image_augmentation={"crop": "random", "flip": 0.5}, training={"moving_average": 0.9})
    whole = train(given, session(project)).run
    part = train(given, session(project, Teller(stop_after=4)))
    assert part.reason == "stopped"
    assert resume(part.run.id, session(project)).reason == "finished"
    store = open_store(root=project)
    assert_same(final_state(store, whole), final_state(store, part.run))


def test_images_are_predicted_to_a_table(project: Path, images: Path) -> None:
    run = train(image_settings(images, training={"epochs": 4}), session(project)).run
    request = PredictRequest(run=run.id, inputs=[images], output=project / "table.csv", split="evaluation")
    done = predict_by_task(request, session(project))
    with (project / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(done.rows) == PER_SPLIT["evaluation"]
    assert {"case", "predicted", "probability/dark", "probability/light"} == rows[0].keys()
    for row in rows:
        assert float(row["probability/dark"]) + float(row["probability/light"]) == pytest.approx(1, abs=1e-5)
    one = predict_by_task(
        PredictRequest(run=run.id, inputs=[project / "gray/evaluation_1.png"], output=project / "one.csv"),
        session(project),
    )
    assert one.rows[0]["probability/light"] == pytest.approx(done.rows[1]["probability/light"], abs=1e-5)
    loose = project / "loose"
    loose.mkdir()
    (loose / "new.png").write_bytes((project / "gray/evaluation_1.png").read_bytes())
    folder = predict_by_task(PredictRequest(run=run.id, inputs=[loose], output=project / "loose.csv"), session(project))
    assert [row["case"] for row in folder.rows] == ["new.png"]
    assert folder.rows[0]["probability/light"] == one.rows[0]["probability/light"]
    with pytest.raises(ConfigError, match="exists"):
        predict_by_task(request, session(project))
    with pytest.raises(ConfigError, match=r"must end in \.csv"):
        predict_by_task(PredictRequest(run=run.id, inputs=[images], output=project / "folder"), session(project))


def test_what_was_not_seen_is_scored_and_what_was_is_refused(project: Path, images: Path) -> None:
    run = train(image_settings(images, training={"epochs": 6}), session(project)).run
    done = evaluate_by_task(EvaluateRequest(run=run.id), session(project))
    assert isinstance(done, EvaluatedScores)
    assert (done.split, len(done.rows)) == ("evaluation", PER_SPLIT["evaluation"])
    right = sum(row["truth"] == row["predicted"] for row in done.rows)
    assert done.scores["accuracy"] == pytest.approx(right / len(done.rows))
    store = open_store(root=project)
    assert store.get_run(done.run.id).metrics["evaluation/accuracy"] == pytest.approx(right / len(done.rows))
    assert (artifacts(store, done.run) / "figures/confusion.png").is_file()
    with pytest.raises(CohortError, match="held-out cases were in the training"):
        evaluate_by_task(EvaluateRequest(run=run.id, split="training"), session(project))


def test_numbers_of_images_are_learned(project: Path, images: Path) -> None:
    given = image_settings(
        images, task="regression", stimuli={"targets": ["brightness"]}, training={"epochs": 30}, optimizer={"lr": 0.03}
    )
    run = train(given, session(project)).run
    info = open_store(root=project).get_run(run.id)
    assert {"val/loss", "val/mse", "val/r2", "score_train/r2"} <= info.metrics.keys()
    assert info.metrics["val/loss"] == pytest.approx(info.metrics["val/mse"], rel=1e-5)
    done = evaluate_by_task(EvaluateRequest(run=run.id), session(project))
    assert isinstance(done, EvaluatedScores)
    assert float(str(done.scores["r2"])) > 0.3
    table = predict_by_task(
        PredictRequest(run=run.id, inputs=[images], output=project / "t.csv", split="evaluation"), session(project)
    )
    assert table.rows[0].keys() == {"case", "brightness", "seconds"}


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"task": "segmentation"}, "stimuli belong to task"),
        ({"stimuli": None}, "'cohort' is missing, or 'stimuli' for images"),
        ({"cohort": {"manifest": "m.csv"}}, "either stimuli .* or cohort .*, got both"),
        ({"compatibility": "deepmedic"}, "compatibility must be none"),
        ({"losses": {"soft_dice": 1.0}}, "losses.soft_dice belongs to segmentation"),
        ({"losses": {"mse": 1.0}}, "losses.mse belongs to task 'regression'"),
        ({"sampling": {"segment": 9}}, "sampling.segment belongs to segmentation"),
        ({"augmentation": {"intensity": {"shift": 0.1}}}, "."),
        ({"prediction": {"overlap": 0.5}}, "prediction.overlap belongs to segmentation"),
        ({"validation": {"segments": 5}}, "validation.segments belongs to segmentation"),
        ({"augmentation": {"noise": {"probability": 1.0}}}, "augmentation.noise belongs to volumes"),
        ({"preprocess": {"orientation": "LIA"}}, "preprocess.orientation belongs to volumes"),
        ({"task": "regression"}, "stimuli.targets must name the columns"),
        ({"stimuli": {"targets": ["brightness"]}}, "stimuli.targets belongs to 'regression'"),
        (
            {"task": "regression", "stimuli": {"targets": ["brightness"]}, "losses": {"label_smoothing": 0.1}},
            "losses.label_smoothing belongs to task 'classification'",
        ),
    ],
)
def test_settings_that_do_not_apply_are_refused(images: Path, sections: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        image_settings(images, **sections)


def test_what_a_network_cannot_read_or_lose_is_said_before_a_run_exists(project: Path, images: Path) -> None:
    for sections, error, sentence in (
        ({"image_preprocess": {"crop": 2}}, ModelError, "cannot take images of 2 x 2 pixels"),
        ({"losses": {"class_weights": [1.0, 1.0, 2.0]}}, ConfigError, "one number per class"),
        ({"freeze": {"layers": ["nowhere"]}}, ConfigError, "nowhere"),
        ({"model": {"name": "multiscale"}}, (ModelError, ConfigError), "."),
    ):
        with pytest.raises(error, match=sentence):
            train(image_settings(images, **sections), session(project))
    assert open_store(root=project).list_runs(limit=5) == []


def test_without_validation_the_training_loss_names_the_best_checkpoint(project: Path, images: Path) -> None:
    done = train(image_settings(images, validation={"every_epochs": 0}), session(project))
    assert done.best_metric == "train/mean_loss"
    assert not any(key.startswith("val/") for key in open_store(root=project).get_run(done.run.id).metrics)


def test_class_weights_and_smoothing_change_the_loss(project: Path, images: Path) -> None:
    losses = []
    for section in ({}, {"class_weights": [1.0, 3.0]}, {"label_smoothing": 0.2}):
        teller = Teller(stop_after=1)
        train(image_settings(images, losses=section), session(project, teller))
        losses.append(next(event.loss for event in teller.events if isinstance(event, StepEnded)))
    assert len({round(loss, 6) for loss in losses}) == 3
    assert torch.isfinite(torch.tensor(losses)).all()


def test_the_confusion_is_drawn_once_however_the_training_ends(project: Path, images: Path) -> None:
    early = {"training": {"epochs": 9}, "optimizer": {"lr": 1e-9}, "checkpoints": {"early_stopping": 1}}
    for sections, stop_after, reason, step in (
        ({}, 10**9, "finished", 6),
        (early, 10**9, "early_stopping", 6),
        ({"training": {"epochs": 9}}, 4, "stopped", 3),
    ):
        done = train(image_settings(images, **sections), session(project, Teller(stop_after=stop_after)))
        assert done.reason == reason
        folder = artifacts(open_store(root=project), done.run) / "images"
        assert [path.name.split("+")[:3] for path in folder.glob("*.png")] == [
            ["validation~confusion", "step", str(step)]
        ]


def test_images_that_a_last_step_cannot_share_come_later_and_a_resume_knows(project: Path, images: Path) -> None:
    given = image_settings(images, training={"batch_size": 1, "accumulate": 4, "epochs": 3})
    teller = Teller()
    whole = train(given, session(project, teller)).run
    assert any(
        sentence.startswith("2 of 10 training cases are too few for the 4 batches") for sentence in teller.sentences
    )
    assert [event.num_segments for event in teller.events if isinstance(event, StepEnded)] == [4] * 6
    part = train(given, session(project, Teller(stop_after=3)))
    assert resume(part.run.id, session(project)).reason == "finished"
    store = open_store(root=project)
    assert_same(final_state(store, whole), final_state(store, part.run))
    silent = Teller()
    train(image_settings(images, training={"batch_size": 2, "accumulate": 2, "epochs": 1}), session(project, silent))
    assert not any("too few" in sentence for sentence in silent.sentences)


def test_labels_of_other_images_are_what_their_names_or_the_user_say(project: Path, images: Path) -> None:
    run = train(image_settings(images, training={"epochs": 1}), session(project)).run

    def scored(name: str, words: dict[str, str], **given: dict[str, str]) -> tuple[EvaluatedScores, list[str]]:
        lines = (line.split(",") for line in images.read_text().splitlines())
        table = [",".join([path, words.get(label, label), *rest]) for path, label, *rest in lines]
        (project / f"{name}.csv").write_text("\n".join(table) + "\n")
        teller = Teller()
        request = EvaluateRequest(run=run.id, cohort=project / f"{name}.csv", **given)
        done = evaluate_by_task(request, session(project, teller))
        assert isinstance(done, EvaluatedScores)
        return done, teller.sentences

    own, _ = scored("own", {})
    truth = [row["truth"] for row in own.rows]
    assert own.paired_by == "names"
    spelled, said = scored("spelled", {"dark": "z_dark", "light": "LIGHT"}, labels={"z_dark": "dark"})
    assert [row["truth"] for row in spelled.rows] == truth
    assert any("read as LIGHT=light, z_dark=dark" in sentence for sentence in said)
    # By position light would be dark here, and the score turned around.
    turned, said = scored("turned", {"dark": "b", "light": "a"}, labels={"a": "light", "b": "0"})
    assert [row["truth"] for row in turned.rows] == truth
    assert turned.scores == own.scores
    assert open_store(root=project).get_run(turned.run.id).params["labels.values"] == "a=light, b=dark"
    numbers, said = scored("numbers", {"dark": "0", "light": "1"})
    assert ([row["truth"] for row in numbers.rows], numbers.paired_by) == (truth, "training")
    assert any("read as in the training, 0=dark, 1=light" in sentence for sentence in said)
    with pytest.raises(CohortError, match="neither names nor number say which is which"):
        scored("partly", {"dark": "light", "light": "other"})
    changed, said = scored("other", {"dark": "x", "light": "y"})
    assert ([row["truth"] for row in changed.rows], changed.paired_by) == (truth, "position")
    assert any(sentence.startswith("Warning") and "by position: x → dark, y → light" in sentence for sentence in said)
    without = ablate(
        AblateRequest(run=run.id, layer="head.1", cohort=project / "turned.csv", labels={"a": "light", "b": "dark"}),
        session(project),
    )
    assert without.changes["accuracy"].first == own.scores["accuracy"]


def test_a_column_of_numbers_is_a_target_by_name_or_as_the_user_says(project: Path, images: Path) -> None:
    regression = {"task": "regression", "stimuli": {"source": str(images), "targets": ["brightness"]}}
    run = train(image_settings(images, **regression, training={"epochs": 1}), session(project)).run
    own = evaluate_by_task(EvaluateRequest(run=run.id), session(project))
    for column, given in (("Brightness", None), ("level", {"level": "brightness"})):
        table = project / f"{column}.csv"
        table.write_text(images.read_text().replace(",brightness,", f",{column},"))
        other = evaluate_by_task(EvaluateRequest(run=run.id, cohort=table, labels=given), session(project))
        assert isinstance(other, EvaluatedScores)
        assert other.scores == own.scores
        assert other.label_values == {column: "brightness"}
    with pytest.raises(CohortError, match=r"no numbers for the target 'brightness'.*--labels COLUMN=brightness"):
        evaluate_by_task(EvaluateRequest(run=run.id, cohort=project / "level.csv"), session(project))
