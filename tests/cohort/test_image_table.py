from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.image import write_image
from dmx.cohort.image_table import read_image_table
from dmx.errors import CohortError


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    for name in ("a.png", "b, c.png", "sub/d.png"):
        write_image(tmp_path / "images" / name, np.zeros((2, 2), np.uint8))

    def write(text: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(text)
        return path

    return write


def test_names_become_classes_and_other_columns_are_numbers(write: Callable[[str], Path], tmp_path: Path) -> None:
    stimuli = read_image_table(
        write(
            "# my images\npath,label,subject,split,age\nimages/a.png,dog,s1,training,3\n"
            '"images/b, c.png",cat,s1,training,\nimages/sub/d.png,,s2,evaluation,4.5\n'
        )
    )
    assert (stimuli.classes, stimuli.labels) == (("cat", "dog"), (0, 1))
    assert stimuli.columns == ("stimID", "label", "condition", "age")
    first, second, third = stimuli.stimuli
    assert (first.label, first.condition, first.subject, first.split) == (1, "dog", "s1", "training")
    assert second.path == tmp_path / "images/b, c.png"
    assert (dict(first.values), dict(second.values)) == ({"age": 3.0}, {})
    assert (third.label, third.condition) == (None, None)
    assert second.place.endswith("row 4")


def test_integers_stand_for_themselves(write: Callable[[str], Path]) -> None:
    stimuli = read_image_table(write("path,label\nimages/a.png,7\nimages/sub/d.png,3\nimages/a.png,7\n"))
    assert (stimuli.classes, stimuli.labels) == (("3", "7"), (3, 7))
    assert [s.label for s in stimuli.stimuli] == [7, 3, 7]
    named = read_image_table(write("path,label\nimages/a.png,1\nimages/sub/d.png,cat\n"), classes=("cat", "dog", "cow"))
    assert (named.classes, [s.label for s in named.stimuli]) == (("cat", "dog", "cow"), [1, 0])


def test_a_table_of_targets_needs_no_labels(write: Callable[[str], Path]) -> None:
    stimuli = read_image_table(write("path,age\nimages/a.png,7\n"))
    assert (stimuli.classes, stimuli.columns) == ((), ("stimID", "age"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,label\nimages/a.png,0\nimages/x.png,0\n", r"row 3: there is no image '.*images/x\.png'"),
        ("path,label\n,0\n", "row 2: path must be that of an image, got ''"),
        (f"path\n{'a' * 300}\n", "row 2: there is no image"),
        ("path,age,age\n", "row 1: names the column 'age' twice"),
        ("path,,age\n", "row 1: column 2 must have a name"),
        ("file,label\n", "row 1: must be a header with a column 'path', got 'file,label'"),
        ("path,subject,group\n", "must have one of the columns subject and group, got both"),
        ("path,label\nimages/a.png\n", "row 2: must have 2 cells like the header, got 1"),
        ("path,age\nimages/a.png,old\n", "row 2: column 'age' must be a number, got 'old'"),
        ("path,split\nimages/a.png,train\n", r"row 2: split must be one of .*got 'train'\. Did you mean 'training'"),
        ("path,label\nimages/a.png,a/b\n", "the name of a class must consist of"),
        ('path,label\n"images/a.png,0\n', "is not valid CSV"),
        ("path\n\n", "has no images below its header"),
        ("", "must be a header with a column 'path'"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_with_file_and_row(
    write: Callable[[str], Path], text: str, problem: str
) -> None:
    with pytest.raises(CohortError, match=problem) as caught:
        read_image_table(write(text))
    assert "table.csv'" in str(caught.value)


def test_a_label_beyond_the_given_classes_is_named(write: Callable[[str], Path]) -> None:
    with pytest.raises(CohortError, match=r"row 2: label must be a class \(cat, dog\) or its index, got '2'"):
        read_image_table(write("path,label\nimages/a.png,2\n"), classes=("cat", "dog"))
