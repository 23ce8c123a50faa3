import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dmx.cli.cohort import app
from dmx.cohort import digest
from dmx.cohort.case import Cohort
from dmx.cohort.manifest import read_manifest, write_manifest
from dmx.errors import CohortError

Make = Callable[..., Cohort]
Write = Callable[..., Path]


def run(*words: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, CohortError):
        raise result.exception
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_check_lists_findings_and_ends_with_2_on_an_error(make_cohort: Make, write_scan: Write, tmp_path: Path) -> None:
    write_manifest(make_cohort(), tmp_path / "m.csv")
    assert "study: 3 cases, 9 files, 0 errors, 0 warnings" in run("check", tmp_path / "m.csv")
    write_scan("scans/1_labels.nii.gz", np.full((6, 5, 4), 7, np.uint8))
    text = run("check", tmp_path / "m.csv", code=2)
    assert "case1" in text
    assert "1 errors" in text


def test_check_takes_the_channels_that_are_filled(make_cohort: Make, tmp_path: Path) -> None:
    write_manifest(make_cohort(), tmp_path / "m.csv")
    text = (tmp_path / "m.csv").read_text().replace("channel_t1,", "channel_t1,channel_t2,")
    lines = [line if k < 3 else line.replace("t1.nii.gz,", "t1.nii.gz,-,") for k, line in enumerate(text.splitlines())]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    assert "3 errors" in run("check", tmp_path / "m.csv", code=2)
    run("check", tmp_path / "m.csv", "--fill", "t2")


def test_check_says_what_a_voxel_size_leaves_and_hashes_anew(
    make_cohort: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(make_cohort(), tmp_path / "m.csv")
    text = run("check", tmp_path / "m.csv", "--spacing", "4")
    assert "left (mean)" in text
    assert "class 'lesion' gains more than 25 % of its volume" in text
    for wrong in ("0", "1,2", "x", "nan"):
        with pytest.raises(CohortError, match="--spacing must be one voxel size"):
            run("check", tmp_path / "m.csv", "--spacing", wrong)
    monkeypatch.setattr(digest, "_SETTLED_NS", -1)
    monkeypatch.setattr(digest, "_identity", lambda path, *_: str(path))
    assert "0 warnings" in run("check", tmp_path / "m.csv")
    case = read_manifest(tmp_path / "m.csv").cases[1]
    assert case.label_map is not None
    case.label_map.write_bytes(b"damaged")
    assert "0 errors" in run("check", tmp_path / "m.csv")
    assert "1 errors" in run("check", tmp_path / "m.csv", "--fresh", code=2)


def test_split_writes_a_manifest_of_the_same_cases(make_cohort: Make, tmp_path: Path) -> None:
    write_manifest(make_cohort(10), tmp_path / "m.csv")
    shares = ("--training", "0.5", "--validation", "0.3", "--evaluation", "0.2")
    text = run("split", tmp_path / "m.csv", "-o", tmp_path / "n" / "s.csv", *shares)
    assert "evaluation: 2 cases of 2 subjects" in text
    cohort = read_manifest(tmp_path / "n" / "s.csv")
    assert [len(cohort.in_split(name)) for name in ("training", "validation", "evaluation")] == [5, 3, 2]
    assert all(path.is_file() for case in cohort.cases for path in case.files().values())
    text = run("split", tmp_path / "n" / "s.csv", "-o", tmp_path / "f.csv", "--fold", "1", "--folds", "4")
    assert "training: 6 cases of 6 subjects validation: 2 cases" in text


def test_split_takes_the_shares_that_are_given_and_no_others(make_cohort: Make, tmp_path: Path) -> None:
    write_manifest(make_cohort(10), tmp_path / "m.csv")
    text = run("split", tmp_path / "m.csv", "-o", tmp_path / "s.csv", "--training", "0.3", "--evaluation", "0.7")
    assert "training: 3 cases of 3 subjects validation: 0 cases of 0 subjects evaluation: 7 cases" in text
    text = run("split", tmp_path / "m.csv", "-o", tmp_path / "s.csv")
    assert "training: 8 cases of 8 subjects validation: 2 cases" in text
    with pytest.raises(CohortError, match=r"must add up to 1, got training 0\.3"):
        run("split", tmp_path / "m.csv", "-o", tmp_path / "s.csv", "--training", "0.3")


def test_show_writes_pictures_and_a_table(make_cohort: Make, tmp_path: Path) -> None:
    write_manifest(make_cohort(), tmp_path / "m.csv")
    text = run("show", tmp_path / "m.csv", "--case", "case1", "-o", tmp_path / "out")
    assert "lesion (ml)" in text
    assert "0.01" in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case1.png"]


def test_import_takes_patterns_and_descriptions(make_cohort: Make, tmp_path: Path) -> None:
    make_cohort()
    patterns = ("--channel", "t1=scans/{subject}_t1.nii.gz", "--label-map", "scans/{subject}_labels.nii.gz")
    weights = ("--weight", "all=scans/{subject}_roi.nii.gz", "--classes", "background, lesion")
    text = run("import", tmp_path, "-o", tmp_path / "m.csv", *patterns, *weights)
    assert "3 cases of 3 subjects, channels t1, classes background, lesion" in text
    assert read_manifest(tmp_path / "m.csv").cases[2].weight_maps == {"all": tmp_path / "scans" / "2_roi.nii.gz"}
    description = {
        "modality": {"0": "t1"},
        "labels": {"0": "background", "1": "x"},
        "training": [{"image": "scans/0_t1.nii.gz", "label": "scans/0_labels.nii.gz"}],
        "test": ["a"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    text = run("import", tmp_path, "-o", tmp_path / "m.csv", "--name", "mine")
    assert "1 test case without label map: left out" in text
    assert read_manifest(tmp_path / "m.csv").name == "mine"


@pytest.mark.parametrize("words", [("t1",), ("=x",), ("t1=",), ("t1=a", "t1=b")])
def test_options_that_are_no_pairs_are_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    options = [part for word in words for part in ("--channel", word)]
    with pytest.raises(CohortError, match="--channel must be NAME=PATTERN"):
        run("import", tmp_path, "-o", tmp_path / "m.csv", *options)


def test_the_command_loads_nothing_heavy() -> None:
    code = "import dmx.cli.cohort, sys; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "numpy", "nibabel", "matplotlib", "mlflow", "scipy"} & set(loaded)
    assert "typer" in loaded


def test_values_that_are_no_index_are_named_at_import_or_check(
    make_cohort: Make, write_scan: Write, tmp_path: Path
) -> None:
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1:3, 2, 1:4] = 255
    for index in range(3):
        labels[4, 4, index] = 255
        write_scan(f"scans/{index}_labels.nii.gz", labels)
    cohort = make_cohort()
    for index in range(3):
        write_scan(f"scans/{index}_labels.nii.gz", np.roll(labels, index, 0))
    write_manifest(cohort, tmp_path / "m.csv")
    text = run("check", tmp_path / "m.csv", code=2)
    assert "must hold the labels 0 to 1, got 255" in text
    assert text.count("'--labels VALUE=CLASS,…' of 'dmx cohort import'") == 1
    run("check", tmp_path / "m.csv", "--labels", "255=lesion")
    patterns = ["--channel", "t1={subject}_t1.nii.gz", "--label-map", "{subject}_labels.nii.gz"]
    text = run("import", tmp_path / "scans", "-o", tmp_path / "n.csv", *patterns, "--labels", "255=lesion")
    assert "classes 0=background, 255=lesion" in text
    run("check", tmp_path / "n.csv")
