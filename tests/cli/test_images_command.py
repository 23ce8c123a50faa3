"""Images through the command line: the whole way once, and one sentence for each kind of bad input."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from dmx.cli.console import out
from dmx.cli.main import app, main
from dmx.cohort.image import write_image
from dmx.errors import DmxError
from tests.workflows.tiny_images import make_images, raw_settings


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def experiment(project: Path, source: Path | str, **sections: object) -> str:
    path = project / "images.yaml"
    path.write_text(yaml.safe_dump(raw_settings(source, **sections)))
    return str(path)


def test_from_a_list_of_images_to_plots_and_scores(project: Path) -> None:
    settings = experiment(project, make_images(project))
    trained = run("train", settings)
    assert trained.exit_code == 0, trained.output
    assert "; accuracy " in trained.output
    assert "COHORT_OR_FILES -o TABLE.csv" in trained.output
    predicted = run(
        "predict", "--from-run", "gray/last", str(project / "gray.csv"), "-o", "t.csv", "--split", "evaluation"
    )
    assert predicted.exit_code == 0, predicted.output
    scored = run("evaluate", "--from-run", "gray/last")
    assert scored.exit_code == 0, scored.output
    assert "balanced accuracy" in scored.output
    plotted = run("runs", "plot", "gray/last", "-o", "plots")
    assert plotted.exit_code == 0, plotted.output
    assert {path.name for path in Path("plots").iterdir()} == {"epoch_loss.png", "step_loss.png", "scores.png"}
    shown = run("config", "show", settings, "--changed")
    assert "classification" in shown.output
    assert yaml.safe_load(shown.output)["stimuli"]["source"] == str(project / "gray.csv")


def test_runs_on_images_stand_side_by_side(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(project, make_images(project), training={"epochs": 1})
    for name, rate in (("slow", 1e-6), ("fast", 0.03)):
        assert run("train", settings, "--name", name, "--set", f"optimizer.lr={rate}").exit_code == 0
        assert run("evaluate", "--from-run", f"gray/{name}", "--name", f"{name}-scored").exit_code == 0
    compared = run("runs", "compare", "gray/slow", "gray/fast", "-o", "compared")
    assert compared.exit_code == 0, compared.output
    words = " ".join(compared.output.split())
    for said in (
        "lr 1e-06 0.03",
        "val/accuracy",
        "val/auc",
        "split evaluation: differences to slow",
        "per case",
        "n: cases",
    ):
        assert said in words
    assert "accuracy" in compared.output.split("difference [95 %]")[1]
    assert {path.name for path in Path("compared").iterdir()} == {"compare.csv", "compare.png"}
    table = Path("compared/compare.csv").read_text()
    assert "case accuracy,gray/evaluation_0.png" in table
    # Scored images are compared as the runs that scored them, too.
    assert "per case" in run("runs", "compare", "gray/slow-scored", "gray/fast-scored").output
    assert "from best" in run("runs", "lineage", "gray/fast").output
    assert "evaluation/accuracy" in run("runs", "show", "gray/fast-scored").output
    monkeypatch.setattr(out, "width", 80)
    listed = run("runs", "list").output
    assert "gray/slow-scored" in listed
    assert max(map(len, listed.splitlines())) <= 80
    scored = run("evaluate", "--from-run", "gray/fast").stdout.splitlines()
    assert scored[0] == "gray, split evaluation: 6 cases"
    assert max(map(len, scored[:-1])) <= 80
    assert scored[-1].endswith("per case: evaluation/cases.csv")


def pictures(project: Path) -> None:
    """Make two pictures, and a JPEG of which the second half is missing."""
    for name, level in (("a.png", 90), ("b.png", 120)):
        write_image(project / "pictures" / name, np.full((30, 30, 3), level, dtype=np.uint8))
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    file = project / "pictures/cut.jpg"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def stim(project: Path, *rows: str, head: str = "type=image\npath=pictures\n", data: str = "stimID,label") -> Path:
    file = project / "x.stim.csv"
    file.write_text(head + f"data={data}\n" + "".join(f"{row}\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("rows", "given", "sentence"),
    [
        (("a.png,0", "none.png,1"), {}, r"x\.stim\.csv', row 5: there is no image '.*none\.png'"),
        (("a.png,0", "cut.jpg,1"), {}, r"cut\.jpg x\.stim\.csv row 5: is damaged"),
        (("a.png,0", "b.png,cat"), {}, r"x\.stim\.csv', row 5: label must be an integer"),
        (("a.png,0,1", "b.png,1,1"), {"data": "stimID,label,label"}, r"row 3: names the column 'label' twice"),
        (("a.png,0", "b.png,1"), {"head": "type=sound\npath=pictures\n"}, r"row 1: type must be image, got 'sound'"),
        (("a.png,0", "b.png,1"), {"head": "type=video\npath=pictures\n"}, r"row 1: type=video is not supported"),
        (("a.png,0", "b.png,1"), {"head": "type=video_clip\npath=pictures\n"}, r"row 1: type=video_clip is not"),
        (("a.png,0", "b.png,0"), {}, "at least two classes"),
    ],
)
def test_bad_stimuli_are_one_sentence_with_file_and_row(
    project: Path, rows: tuple[str, ...], given: dict[str, str], sentence: str
) -> None:
    pictures(project)
    result = run("train", experiment(project, stim(project, *rows, **given)))
    assert isinstance(result.exception, DmxError)
    with pytest.raises(DmxError, match=sentence):
        raise result.exception
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    ("text", "sections", "sentence"),
    [
        (
            "path,label\npictures/a.png,cat\npictures/none.png,dog\n",
            {},
            r"t\.csv', row 3: there is no image '.*none\.png'",
        ),
        ("path,label\npictures/a.png,cat\npictures/cut.jpg,dog\n", {}, r"pictures/cut\.jpg t\.csv row 3: is damaged"),
        ("path,label,label\npictures/a.png,cat,1\n", {}, r"t\.csv', row 1: names the column 'label' twice"),
        (
            "path,label,split\npictures/a.png,cat,training\npictures/b.png,dog,validation\n",
            {},
            r"Class 'dog' of '.*t\.csv' has no training images",
        ),
        ("path,age\npictures/a.png,3\npictures/b.png,x\n", {}, r"t\.csv', row 3: column 'age' must be a number"),
        (
            "path,age\npictures/a.png,3\npictures/b.png,\n",
            {"task": "regression", "stimuli": {"targets": ["age"]}},
            r"t\.csv', row 3: has no number in column 'age'",
        ),
    ],
)
def test_bad_tables_are_one_sentence_and_exit_code_2(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    text: str,
    sections: dict[str, object],
    sentence: str,
) -> None:
    pictures(project)
    (project / "t.csv").write_text(text)
    monkeypatch.setattr(sys, "argv", ["dmx", "train", experiment(project, project / "t.csv", **sections)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert re.search(sentence, said)


def test_a_class_without_images_is_named(project: Path) -> None:
    (project / "folder/training/cat").mkdir(parents=True)
    (project / "folder/training/dog").mkdir()
    write_image(project / "folder/training/cat/a.png", np.zeros((30, 30, 3), dtype=np.uint8))
    result = run("train", experiment(project, project / "folder"))
    assert isinstance(result.exception, DmxError)
    assert "dog" in str(result.exception)
