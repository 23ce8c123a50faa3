import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmx.cohort.image import write_image
from dmx.cohort.stim_csv import one_split, read_stim_csv, write_stim_csv
from dmx.cohort.stimuli import Stimulus, StimulusSet, class_indices, target_values
from dmx.errors import CohortError

GOOD = """\
type=image
path=pictures
title=animals
data=stimID,onset,duration,label,condition,RT
cat.png,0,1.5,0,cat,0.5

sub/dog.png,2,1.5,7,dog,nan
cat.png,4,1.5,0,cat,1e-3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat.png", "sub/dog.png"):
        write_image(tmp_path / "pictures" / name, np.zeros((2, 3), np.uint8))
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[..., Path]:
    def write(text: str, encoding: str = "utf-8") -> Path:
        path = folder / "animals.stim.csv"
        path.write_text(text, encoding=encoding, newline="")
        return path

    return write


def test_a_stim_csv_is_read(write: Callable[..., Path], folder: Path) -> None:
    stimuli = read_stim_csv(write(GOOD))
    assert stimuli.name == "animals"
    assert dict(stimuli.header) == {"type": "image", "path": "pictures", "title": "animals"}
    assert stimuli.columns == ("stimID", "onset", "duration", "label", "condition", "RT")
    assert (stimuli.classes, stimuli.labels) == (("cat", "dog"), (0, 7))
    first, second, third = stimuli.stimuli
    assert first == Stimulus(
        "cat.png", folder / "pictures/cat.png", 0, "cat", {"onset": 0.0, "duration": 1.5, "RT": 0.5}
    )
    assert second.path == folder / "pictures/sub/dog.png"
    assert math.isnan(second.values["RT"])
    assert third.id == first.id, "a repeated presentation"
    assert stimuli.subjects == ("cat.png", "sub/dog.png")
    assert second.place.endswith("row 7")


def test_a_byte_order_mark_and_line_ends_of_windows_do_not_matter(write: Callable[..., Path]) -> None:
    plain = read_stim_csv(write(GOOD.replace("nan", "2")))
    assert read_stim_csv(write("\ufeff" + GOOD.replace("nan", "2").replace("\n", "\r\n"))) == plain


def test_a_path_is_taken_from_the_file_or_the_working_directory(
    write: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_stim_csv(write(GOOD.replace("=pictures", f"={folder}/pictures"))).stimuli
    elsewhere = folder / "lists" / "a.stim.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_text(GOOD)
    with pytest.raises(CohortError, match="there is no folder 'pictures' as its line 'path=' says"):
        read_stim_csv(elsewhere)
    monkeypatch.chdir(folder)
    assert read_stim_csv(elsewhere).stimuli[0].path == folder / "pictures/cat.png"


HEAD = "type=image\npath=pictures\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{HEAD}data=stimID\ncat.png\nmouse.png", r"row 5: there is no image '.*pictures/mouse.png'"),
        (f"{HEAD}data=stimID\n{'a' * 300}.png", "row 4: there is no image"),
        (f"{HEAD}data=stimID\nsub", "row 4: there is no image"),
        (f"{HEAD}data=stimID,label\ncat.png,0\ncat.png,1.0", "row 5: label must be an integer, got '1.0'"),
        (f"{HEAD}data=stimID,label\ncat.png,", "label must be an integer, got ''"),
        (f"{HEAD}data=stimID,RT,label,RT\n", "row 3: names the column 'RT' twice"),
        (f"{HEAD}data=stimID,RT,\n", "row 3: column 3 of 'data=' must have a name"),
        (f"{HEAD}data=stimId,RT\n", "row 3: must name the column 'stimID'.* Did you mean"),
        (f"{HEAD}data=stimID,RT\ncat.png,fast", "row 4: column 'RT' must be a number, got 'fast'"),
        (f"{HEAD}data=stimID,onset\ncat.png,inf", "column 'onset' must be a number, got 'inf'"),
        (f"{HEAD}data=stimID,RT\ncat.png", "row 4: must have 2 cells like the line 'data=', got 1"),
        (f"{HEAD}data=stimID\ncat.png,0", "row 4: must have 1 cells"),
        (f"{HEAD}data=stimID\n\n", "has no stimuli"),
        ("type=picture\npath=pictures\ndata=stimID\ncat.png", "row 1: type must be image, got 'picture'"),
        ("type=imag\npath=pictures\ndata=stimID", r"got 'imag'\. Did you mean 'image'\?"),
        ("path=a.mp4\ntype=video\ndata=stimID\n1", "row 2: type=video is not supported; save the frames as images"),
        ("type=video_clip\npath=a\ndata=stimID\n1", "row 1: type=video_clip is not supported"),
        ("type=image\ndata=stimID\ncat.png", "must have a line 'path=the folder of the images'"),
        ("path=pictures\ndata=stimID\ncat.png", "must have a line 'type=image'"),
        (f"{HEAD}stimID\ncat.png", "row 3: must be 'key=value' above the line 'data=', got 'stimID'"),
        (HEAD, "has no line 'data='"),
        ("", "has no line 'data='"),
        (f"{HEAD}path=x\ndata=stimID", "row 3: has 'path=' a second time"),
        (f"{HEAD}data=stimID\n../cat.png", r"row 4: stimID must be the path of an image below .*, got '\.\./cat\.png'"),
        (f"{HEAD}data=stimID\n/etc/passwd", "stimID must be the path of an image below"),
        (f"{HEAD}data=stimID\nC:\\cat.png", "stimID must be the path of an image below"),
        (f"{HEAD}data=stimID\nsub\\..\\cat.png", "stimID must be the path of an image below"),
        (f"{HEAD}data=stimID,RT\n,1", "stimID must be the path of an image below"),
        (f"{HEAD}data=stimID\nc\x1b[2Jat.png", r"row 4: must have no control characters, got 'c\\x1b\[2Jat\.png'"),
        (f"{HEAD}title=\x07\ndata=stimID\ncat.png", r"row 3: must have no control characters, got 'title=\\x07'"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_with_file_and_row(
    write: Callable[..., Path], text: str, problem: str
) -> None:
    with pytest.raises(CohortError, match=problem) as caught:
        read_stim_csv(write(text))
    assert "animals.stim.csv'" in str(caught.value)
    assert str(caught.value).isprintable()


def test_another_encoding_is_named_with_its_row(write: Callable[..., Path]) -> None:
    with pytest.raises(CohortError, match="row 3: must be UTF-8"):
        read_stim_csv(write(f"{HEAD}title=Tür\ndata=stimID\ncat.png\n", "latin-1"))
    with pytest.raises(CohortError, match="must be CSV text, got binary data"):
        read_stim_csv(write("type=\0"))


def test_a_link_that_leaves_the_folder_is_refused(write: Callable[..., Path], folder: Path) -> None:
    write_image(folder / "secret.png", np.zeros((2, 2), np.uint8))
    (folder / "pictures/inside.png").symlink_to("cat.png")
    (folder / "pictures/outside.png").symlink_to("../secret.png")
    assert read_stim_csv(write(f"{HEAD}data=stimID\ninside.png\n")).stimuli
    with pytest.raises(CohortError, match=r"row 4: stimID 'outside\.png' is a link that leaves the folder"):
        read_stim_csv(write(f"{HEAD}data=stimID\noutside.png\n"))


def test_conditions_name_the_classes_only_where_they_are_one_to_one(write: Callable[..., Path]) -> None:
    def classes(*rows: str) -> tuple[str, ...]:
        lines = "\n".join(f"cat.png,{row}" for row in rows)
        return read_stim_csv(write(f"{HEAD}data=stimID,label,condition\n{lines}\n")).classes

    assert classes("1,dog", "0,cat", "1,dog") == ("cat", "dog")
    assert classes("1,dog", "0,dog") == ("0", "1")
    assert classes("1,dog", "0,cat", "1,wolf") == ("0", "1")
    assert classes("1,dog", "0,") == ("0", "1")
    assert classes("1,dog", "0,a/b") == ("0", "1")


name = st.text("abcXYZ09 _-.äß=#'\"", min_size=1, max_size=8).filter(lambda t: t == t.strip() and t not in (".", ".."))
number = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def stimulus_sets(draw: st.DrawFn, folder: Path) -> StimulusSet:
    numbers = draw(st.lists(name.filter(lambda t: t not in ("stimID", "label", "condition")), unique=True, max_size=3))
    texts = draw(st.lists(st.sampled_from(["label", "condition"]), unique=True))
    columns = tuple(draw(st.permutations(["stimID", *numbers, *texts])))
    header = draw(st.dictionaries(name.filter(lambda t: "=" not in t and t not in ("data", "type", "path")), name))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        label = draw(st.integers(-(10**12), 10**12)) if "label" in texts else None
        condition = draw(st.none() | name) if "condition" in texts else None
        identity = draw(st.sampled_from(["cat.png", "sub/dog.png"]))
        values = {column: draw(number) for column in columns if column in numbers}
        rows.append(Stimulus(identity, folder / "pictures" / identity, label, condition, values))
    return StimulusSet("any", tuple(rows), columns=columns, header={"type": "image", "path": "pictures", **header})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_was_written_is_read(folder: Path, data: st.DataObject) -> None:
    stimuli = data.draw(stimulus_sets(folder))
    path = folder / "again.stim.csv"
    write_stim_csv(stimuli, path)
    again = read_stim_csv(path)
    assert again.stimuli == stimuli.stimuli
    assert (again.columns, dict(again.header)) == (stimuli.columns, dict(stimuli.header))
    second = folder / "second.stim.csv"
    write_stim_csv(again, second)
    assert second.read_bytes() == path.read_bytes()


def test_a_file_written_elsewhere_still_leads_to_its_images(write: Callable[..., Path], folder: Path) -> None:
    stimuli = read_stim_csv(write(GOOD.replace("nan", "2")))
    write_stim_csv(stimuli, folder / "deep/er/b.stim.csv")
    again = read_stim_csv(folder / "deep/er/b.stim.csv")
    assert [s.path.resolve() for s in again.stimuli] == [s.path.resolve() for s in stimuli.stimuli]
    assert again.header["path"] == "../../pictures"
    assert (
        "data=stimID,onset,duration,label,condition,RT\ncat.png,0,1.5,0,cat,0.5\n"
        in (folder / "deep/er/b.stim.csv").read_text()
    )


def test_what_cannot_stand_in_a_file_is_refused(write: Callable[..., Path], folder: Path) -> None:
    stimuli = read_stim_csv(write(GOOD.replace("nan", "2")))
    first, second, _ = stimuli.stimuli

    def refused(problem: str, *changed: Stimulus, file: str = "x.stim.csv", **changes: object) -> None:
        with pytest.raises(CohortError, match=problem):
            write_stim_csv(replace(stimuli, stimuli=changed or stimuli.stimuli, **changes), folder / file)
        assert not (folder / file).exists()

    refused("must be written to a file that ends in", file="x.csv")
    refused("has a comma", replace(first, condition="a,b"))
    refused("blanks around it", replace(first, condition=" a"))
    refused("has control characters", replace(first, condition="a\nb"))
    refused("is no name of a column", columns=("stimID", "a,b"))
    refused("is no line 'key=value'", header={"a=b": "c"})
    refused("is no line 'key=value'", header={"data": "c"})
    refused("must have a label like the others", first, replace(second, label=None))
    refused("must be the end of the image's path", replace(first, id="dog.png"))
    refused("must lie below one folder, got 2", first, replace(second, path=folder / "sub/dog.png"))
    refused("must be the path of an image below", replace(first, id="../cat.png", path=folder / "x/../cat.png"))
    refused("no place for splits", replace(first, split="training"), second)
    refused("no place for splits", replace(first, split="training"), replace(second, split="validation"))
    with pytest.raises(CohortError, match="has no stimuli to write"):
        write_stim_csv(replace(stimuli, stimuli=()), folder / "x.stim.csv")
    (folder / "file").write_text("")
    with pytest.raises(CohortError, match="cannot be written"):
        write_stim_csv(stimuli, folder / "file/x.stim.csv")


def test_a_split_goes_to_a_file_of_its_own(write: Callable[..., Path], folder: Path) -> None:
    stimuli = read_stim_csv(write(GOOD.replace("nan", "2")))
    split = stimuli.with_splits({"cat.png": "training", "sub/dog.png": "validation"})
    write_stim_csv(one_split(split, "training"), folder / "training.stim.csv")
    assert [s.id for s in read_stim_csv(folder / "training.stim.csv").stimuli] == ["cat.png", "cat.png"]


def test_labels_become_classes_and_columns_become_targets(write: Callable[..., Path]) -> None:
    stimuli = read_stim_csv(write(GOOD))
    assert class_indices(stimuli.stimuli, stimuli.class_of_label) == [0, 1, 0]
    assert target_values(stimuli.stimuli, ["onset", "duration"]) == [(0.0, 1.5), (2.0, 1.5), (4.0, 1.5)]
    with pytest.raises(CohortError, match=r"row 7: has the label 7, the classes have 0"):
        class_indices(stimuli.stimuli, {0: 0})
    with pytest.raises(CohortError, match="row 7: has no number in column 'RT'"):
        target_values(stimuli.stimuli, ["RT"])
    with pytest.raises(CohortError, match=r"row 5: has no number in column 'onsets'.* Did you mean 'onset'\?"):
        target_values(stimuli.stimuli, ["onsets"])
    assert math.isnan(target_values(stimuli.stimuli, ["RT"], required=False)[1][0])
    bare = Stimulus("a.png", Path("a.png"))
    with pytest.raises(CohortError, match=r"Stimulus 'a\.png' has no label"):
        class_indices([bare], {})
    assert class_indices([bare], {}, required=False) == [-1]
