from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmx.cohort.gather import gather_stimuli, read_stimuli, stimuli_digest
from dmx.cohort.image import write_image
from dmx.config.images import StimuliSection
from dmx.errors import CohortError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for index, name in enumerate(("a", "b", "c", "d")):
        write_image(tmp_path / f"images/{name}.png", np.full((2, 2), index, np.uint8))
    return tmp_path


@pytest.fixture
def stim(place: Path) -> Callable[..., str]:
    def stim(name: str, *rows: str) -> str:
        lines = "\n".join(rows)
        (place / name).write_text(f"type=image\npath=images\ndata=stimID,label,condition\n{lines}\n")
        return str(place / name)

    return stim


@pytest.fixture
def table(place: Path) -> Callable[..., str]:
    def table(name: str, header: str, *rows: str) -> str:
        (place / name).write_text("\n".join([header, *(f"images/{row}" for row in rows)]) + "\n")
        return str(place / name)

    return table


def splits(section: StimuliSection, seed: int = 0) -> dict[str, str]:
    return {Path(s.id).stem: s.split for s in gather_stimuli(section, seed=seed).stimuli}


def test_two_files_as_in_the_scenario(stim: Callable[..., str]) -> None:
    train = stim("train.stim.csv", "a.png,0,cat", "b.png,1,dog", "a.png,0,cat")
    section = StimuliSection(source=train, validation=stim("val.stim.csv", "c.png,1,hound"))
    assert splits(section) == {"a": "training", "b": "training", "c": "validation"}
    assert gather_stimuli(section, seed=0).classes == ("cat", "dog")
    with pytest.raises(CohortError, match=r"row 4: its class 'cow' \(label 2\) is none of those of .*: cat, dog"):
        gather_stimuli(StimuliSection(source=train, validation=stim("val.stim.csv", "c.png,2,cow")), seed=0)


def test_tables_and_folders_are_joined_by_name(
    place: Path, table: Callable[..., str], stim: Callable[..., str]
) -> None:
    first = table("a.csv", "path,label", "a.png,dog", "b.png,cat")
    section = StimuliSection(source=first, validation=table("b.csv", "path,label", "c.png,dog", "d.png,"))
    assert [s.label for s in gather_stimuli(section, seed=0).stimuli] == [1, 0, 1, None]
    for name in ("dog", "mouse"):
        write_image(place / f"folder/{name}/x.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(CohortError, match=r"its class 'mouse' .* is none of those"):
        gather_stimuli(StimuliSection(source=first, evaluation=str(place / "folder")), seed=0)
    with pytest.raises(CohortError, match=r"must both be \.stim\.csv, or neither"):
        gather_stimuli(StimuliSection(source=first, evaluation=stim("c.stim.csv", "c.png,1,x")), seed=0)


def test_given_classes_count_for_every_kind(place: Path, table: Callable[..., str], stim: Callable[..., str]) -> None:
    classes = ("dog", "cat", "cow")
    named = read_stimuli(table("a.csv", "path,label", "a.png,dog", "b.png,1"), classes=classes)
    assert [s.label for s in named.stimuli] == [0, 1]
    counted = read_stimuli(stim("a.stim.csv", "a.png,2,whatever"), classes=classes)
    assert (counted.classes, counted.class_of_label) == (classes, {0: 0, 1: 1, 2: 2})
    with pytest.raises(CohortError, match="row 4: has the label 3, which must be between 0 and 2"):
        read_stimuli(stim("a.stim.csv", "a.png,3,x"), classes=classes)
    with pytest.raises(CohortError, match="The name of a class must not be empty"):
        read_stimuli(stim("a.stim.csv", "a.png,0,x"), classes=("", "b"))


def test_fractions_and_folds_keep_groups_together(table: Callable[..., str]) -> None:
    rows = ("a.png,0,s1", "b.png,0,s1", "c.png,1,s2", "d.png,1,s3")
    source = table("a.csv", "path,label,subject", *rows)
    for seed in range(5):
        found = splits(StimuliSection(source=source, fractions={"training": 0.5, "validation": 0.5}), seed)
        assert found["a"] == found["b"]
        assert set(found.values()) == {"training", "validation"}
        folded = splits(StimuliSection(source=source, fold=0, folds=3), seed)
        assert folded["a"] == folded["b"]
        assert list(folded.values()).count("validation") in (1, 2)
    kept = splits(StimuliSection(source=table("b.csv", "path,split", "a.png,evaluation", "b.png,", "c.png,training")))
    assert kept == {"a": "evaluation", "b": "", "c": "training"}


def test_a_group_or_an_image_in_two_splits_is_refused(table: Callable[..., str], stim: Callable[..., str]) -> None:
    header = "path,subject,split"
    with pytest.raises(CohortError, match=r"row 3: its group 's1' is for validation, and elsewhere for training"):
        splits(StimuliSection(source=table("a.csv", header, "a.png,s1,training", "b.png,s1,validation")))
    both = stim("x.stim.csv", "a.png,0,x")
    with pytest.raises(CohortError, match=r"its image '.*a\.png' is for validation, and elsewhere for training"):
        splits(StimuliSection(source=both, validation=stim("y.stim.csv", "b.png,0,x", "a.png,0,x")))
    source = table("b.csv", header, "a.png,s1,training", "b.png,s2,validation")
    with pytest.raises(CohortError, match="has stimuli of validation already"):
        splits(StimuliSection(source=source, validation=both))


def test_a_source_of_no_kind_is_a_sentence(place: Path) -> None:
    with pytest.raises(CohortError, match="There are no stimuli"):
        read_stimuli(place / "none.txt")
    (place / "a.txt").write_text("")
    with pytest.raises(CohortError, match=r"must be a file that ends in \.stim\.csv or \.csv, or a folder"):
        read_stimuli(place / "a.txt")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"validation": "x", "fold": 0}, "validation and fold must not be given together"),
        ({"fractions": {"training": 1.0}, "fold": 0}, "fractions and fold must not"),
        ({"fractions": {"training": 0.5, "evaluation": 0.5}, "evaluation": "x"}, "no share for evaluation"),
        ({"fold": 5}, "fold must be between 0 and 4"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        StimuliSection(source="x", **values)


def test_the_digest_is_that_of_the_content(place: Path, stim: Callable[..., str]) -> None:
    stimuli = read_stimuli(stim("a.stim.csv", "a.png,0,cat", "b.png,1,dog"))
    digest = stimuli_digest(stimuli)
    assert len(digest) == 32
    assert stimuli_digest(read_stimuli(stim("b.stim.csv", "b.png,1,dog", "a.png,0,cat"))) == digest
    assert stimuli_digest(read_stimuli(stim("b.stim.csv", "b.png,0,dog", "a.png,1,cat"))) != digest
    assert stimuli_digest(replace(stimuli, stimuli=stimuli.stimuli[:1])) != digest
    write_image(place / "images/b.png", np.full((2, 2), 9, np.uint8))
    assert stimuli_digest(stimuli) != digest
