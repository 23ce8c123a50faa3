from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.image import write_image
from dmx.cohort.image_folder import read_image_folder, read_loose_images
from dmx.cohort.stim_csv import one_split, read_stim_csv, write_stim_csv
from dmx.errors import CohortError


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "images" / name
            if path.suffix:
                write_image(path, np.zeros((2, 2), np.uint8))
            else:
                path.mkdir(parents=True)
        return tmp_path / "images"

    return make


def test_each_folder_is_a_class_in_natural_order(make: Callable[..., Path]) -> None:
    root = make("class10/a.png", "class9/a2.PNG", "class9/a10.png", "class9/.hidden.png", ".git/x.png")
    (root / "class9/readme.txt").write_text("")
    stimuli = read_image_folder(root)
    assert (stimuli.classes, stimuli.labels) == (("class9", "class10"), (0, 1))
    found = [(s.id, s.label, s.condition, s.split) for s in stimuli.stimuli]
    assert found == [
        ("class9/a2.PNG", 0, "class9", ""),
        ("class9/a10.png", 0, "class9", ""),
        ("class10/a.png", 1, "class10", ""),
    ]
    assert stimuli.subjects == tuple(name for name, *_ in found)


def test_folders_of_splits_and_of_people(make: Callable[..., Path]) -> None:
    root = make("training/cat/p1/a.png", "training/cat/p1/b.png", "training/dog/c.png", "evaluation/cat/p2/a.png")
    stimuli = read_image_folder(root)
    assert [(s.split, s.group) for s in stimuli.stimuli] == [
        ("training", "p1"),
        ("training", "p1"),
        ("training", ""),
        ("evaluation", "p2"),
    ]
    assert len(stimuli.in_split("training")) == 3
    assert len(stimuli.in_split("validation")) == 0


def test_given_classes_set_the_order(make: Callable[..., Path]) -> None:
    root = make("cat/a.png", "dog/a.png")
    stimuli = read_image_folder(root, classes=("dog", "cat"))
    assert stimuli.classes == ("dog", "cat")
    assert [(s.condition, s.label) for s in stimuli.stimuli] == [("cat", 1), ("dog", 0)]


@pytest.mark.parametrize(
    ("names", "classes", "problem"),
    [
        (("cat/a.png", "dog"), (), r"Class 'dog' has no images: '.*/dog' has no file with one of"),
        (("training/cat/a.png", "training/dog/a.png", "validation/cat"), (), "Class 'cat' has no images"),
        (("training/cat/a.png", "training/dog/a.png", "validation/cow/a.png"), (), "'cow' has no images to train with"),
        (("cat/a.png", "dog/a.png"), ("cat", "dog", "cow"), "Class 'cow' has no images to train with"),
        (("cat/a.png", "dog/a.png"), ("cat", "cow"), "dog' is none of the classes cat, cow"),
        (("cat/a.png",), (), r"at least two classes, got \['cat'\]"),
        (("a.png",), (), "at least two classes"),
        (("train/cat/a.png", "train/dog/a.png", "test/cat/a.png"), (), "has test, train beside or instead of classes"),
        (("training/cat/a.png", "cat/a.png"), (), "has training beside or instead"),
        (("c,t/a.png", "dog/a.png"), (), "the name of a class must consist of"),
    ],
)
def test_a_folder_that_cannot_be_used_is_a_sentence(
    make: Callable[..., Path], names: tuple[str, ...], classes: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(CohortError, match=problem):
        read_image_folder(make(*names), classes=classes)


def test_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="There is no folder of images"):
        read_image_folder(tmp_path / "none")


def test_a_folder_can_be_written_as_stim_csv(make: Callable[..., Path]) -> None:
    stimuli = read_image_folder(make("training/cat/a.png", "training/dog/c.png", "validation/dog/b.png"))
    path = make().parent / "training.stim.csv"
    write_stim_csv(one_split(stimuli, "training"), path)
    assert path.read_text() == (
        "type=image\npath=images\ntitle=images training\ndata=stimID,label,condition\n"
        "training/cat/a.png,0,cat\ntraining/dog/c.png,1,dog\n"
    )
    again = read_stim_csv(path)
    assert (again.classes, again.name) == (("cat", "dog"), "images training")


def test_images_without_folders_have_no_classes(make: Callable[..., Path]) -> None:
    root = make("b10.png", "b9.jpg", ".hidden.png")
    (root / "notes.txt").write_text("")
    stimuli = read_loose_images(root)
    assert stimuli is not None
    assert [(s.id, s.label) for s in stimuli.stimuli] == [("b9.jpg", None), ("b10.png", None)]
    assert (stimuli.name, stimuli.classes) == ("images", ())
    with pytest.raises(CohortError, match="must have a folder for each"):
        read_image_folder(root)


def test_folders_of_classes_are_no_loose_images(make: Callable[..., Path], tmp_path: Path) -> None:
    assert read_loose_images(make("cat/a.png", "dog/a.png")) is None
    assert read_loose_images(tmp_path / "absent") is None
    (tmp_path / "empty").mkdir()
    assert read_loose_images(tmp_path / "empty") is None
