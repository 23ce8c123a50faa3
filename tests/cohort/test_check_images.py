"""What `dmx cohort check` says about images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dmx.cli.main import app
from dmx.cohort.check_images import ImageReport, check_images
from dmx.cohort.gather import lists_images, read_stimuli
from dmx.cohort.image import write_image
from dmx.errors import CohortError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with five different pictures, one of which is cut off."""
    monkeypatch.setenv("DMX_CACHE_DIR", str(tmp_path / "facts"))
    for number, name in enumerate("abcd"):
        write_image(tmp_path / "pictures" / f"{name}.png", np.full((20 + number, 30, 3), 40 * number, dtype=np.uint8))
    rng = np.random.default_rng(0)
    jpeg = tmp_path / "pictures/cut.jpg"
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:900])
    return tmp_path


def stim(folder: Path, name: str, *rows: str, data: str = "stimID,label") -> Path:
    file = folder / f"{name}.stim.csv"
    file.write_text(f"type=image\npath=pictures\ndata={data}\n" + "".join(f"{row}\n" for row in rows))
    return file


def checked(source: Path, **more: Path) -> ImageReport:
    others = {split: read_stimuli(path, require_files=False) for split, path in more.items()}
    return check_images(read_stimuli(source, require_files=False), others)


def told(report: ImageReport) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.case, finding.column) for finding in report.findings]


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["cohort", "check", *map(str, words)])


def test_good_images_are_counted_and_described(here: Path) -> None:
    file = stim(here, "x", "a.png,0,cat,3", "b.png,1,dog,5", "b.png,1,dog,nan", data="stimID,label,condition,age")
    report = checked(file)
    assert report.findings == ()
    assert (report.num_cases, report.num_files) == (3, 2)
    assert report.counts == {"": {"cat": 1, "dog": 2}}
    assert report.sizes == {(20, 30): 1, (21, 30): 1}
    assert report.modes == {"RGB": 2}
    age = report.numbers["age"]
    assert (age.low, age.high, age.missing) == (3, 5, 1)
    # What was measured is kept, and says the same.
    assert checked(file) == report


def test_all_that_cannot_be_read_is_named_with_its_row(here: Path) -> None:
    report = checked(stim(here, "x", "a.png,0", "none.png,1", "b.png,1", "cut.jpg,0"))
    assert told(report) == [("error", "none.png", "x.stim.csv row 5"), ("error", "cut.jpg", "x.stim.csv row 7")]
    assert "there is no such file" in report.errors[0].message
    assert "cut off" in report.errors[1].message
    assert str(here) not in "".join(finding.message for finding in report.findings)
    assert sum(report.sizes.values()) == 2
    with pytest.raises(CohortError, match="row 5: there is no image"):
        read_stimuli(here / "x.stim.csv")


def test_the_same_picture_in_two_splits_is_an_error(here: Path) -> None:
    (here / "pictures/same.png").write_bytes((here / "pictures/a.png").read_bytes())
    training = stim(here, "t", "a.png,0", "b.png,1")
    other = stim(here, "v", "same.png,0", "c.png,1")
    report = checked(training, validation=other)
    assert told(report) == [("error", "same.png", "v.stim.csv row 4")]
    assert report.errors[0].message == "holds the same picture as 'a.png', in training."
    assert report.counts["validation"] == {"0": 1, "1": 1}
    within = checked(stim(here, "w", "a.png,0", "same.png,0", "b.png,1"))
    assert told(within) == [("warning", "same.png", "w.stim.csv row 5")]
    relabeled = checked(stim(here, "r", "a.png,0", "same.png,1"))
    assert "which is of class '0'" in relabeled.warnings[0].message
    assert not checked(training, validation=stim(here, "u", "c.png,0", "d.png,1")).findings


def test_classes_that_a_split_lacks_and_groups_in_two_are_told(here: Path) -> None:
    table = here / "table.csv"
    table.write_text(
        "path,label,subject,split\npictures/a.png,cat,s1,training\npictures/b.png,dog,s1,validation\npictures/c.png,,s2,"
        "training\n"
    )
    report = checked(table)
    messages = [f"{finding.severity} {finding.message}" for finding in report.findings]
    assert messages == [
        "warning has no label.",
        "error Class 'dog' has no images in training.",
        "warning Class 'cat' has no images in validation.",
        "error group 's1' is in several splits: training (pictures/a.png), validation (pictures/b.png).",
    ]


def test_classes_that_another_file_does_not_know_are_told(here: Path) -> None:
    report = checked(stim(here, "t", "a.png,0", "b.png,1"), validation=stim(here, "v", "c.png,7", "d.png,0"))
    assert "label 7" in report.errors[0].message


def test_a_folder_per_class_is_counted_by_split(here: Path) -> None:
    for split in ("training", "evaluation"):
        for number, name in enumerate(("cat", "dog")):
            picture = np.full((9, 9), 100 * number + len(split), dtype=np.uint8)
            write_image(here / "animals" / split / name / "1.png", picture)
    report = checked(here / "animals")
    assert report.counts == {"training": {"cat": 1, "dog": 1}, "evaluation": {"cat": 1, "dog": 1}}
    assert (report.modes, report.findings) == ({"L": 4}, ())


def test_the_command_prints_counts_and_ends_with_2_on_an_error(here: Path) -> None:
    good = stim(here, "t", "a.png,0", "b.png,1")
    bad = stim(here, "v", "c.png,0", "none.png,1")
    result = run(good)
    assert result.exit_code == 0, result.output
    assert "2 images, 2 files, 0 errors, 0 warnings" in result.output
    result = run(good, "--evaluation", bad)
    assert result.exit_code == 2
    words = " ".join(result.output.split())
    for said in ("evaluation", "v.stim.csv row 5", "there is no such", "20 to 22 pixels high", "RGB 3", "1 errors"):
        assert said in words
    many = stim(here, "m", *(f"a.png,{label}" for label in range(40)))
    assert "… 10 more" in run(many).output


def test_options_of_the_other_kind_are_refused(here: Path) -> None:
    good = stim(here, "t", "a.png,0", "b.png,1")
    manifest = here / "cohort.csv"
    manifest.write_text("case,subject,channel_T1,split\na,a,a.nii,training\n")
    for words, sentence in (
        ((good, "--fill", "t1"), "--fill is for channels of scans"),
        ((manifest, "--validation", good), "is a manifest: it has a column 'split'"),
    ):
        result = run(*words)
        assert isinstance(result.exception, CohortError)
        assert sentence in str(result.exception)


def test_a_table_of_images_is_told_from_a_manifest(here: Path) -> None:
    for name, text, images in (
        ("a.csv", "path,label\n", True),
        ("b.csv", '# note\n"label","path"\n', True),
        ("c.csv", "# cohort: x\ncase,subject,channel_path\n", False),
        ("d.csv", "", False),
    ):
        (here / name).write_text(text)
        assert lists_images(here / name) is images
    assert lists_images(here)
    assert not lists_images(here / "none.csv")
    assert lists_images(here / "none.stim.csv")
