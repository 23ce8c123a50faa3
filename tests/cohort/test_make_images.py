import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dmx.cohort.image import read_image
from dmx.cohort.stim_csv import read_stim_csv
from dmx.errors import CohortError

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "image_transfer" / "make_images.py"


@pytest.fixture
def script() -> ModuleType:
    spec = spec_from_file_location("make_images", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits_become_a_folder_and_a_file_per_split(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn carries the digits")
    root = tmp_path / "digits"
    written = script.write_set(root, lambda: script.digits(16, count=60), fractions=script.FRACTIONS, seed=0)
    assert written.classes == tuple("0123456789")
    total = 0
    for split in script.FRACTIONS:
        listed = read_stim_csv(tmp_path / f"digits_{split}.stim.csv")
        assert [s.path for s in listed.stimuli] == [s.path for s in written.in_split(split)]
        total += len(listed.stimuli)
    assert total == 60
    image = read_image(written.stimuli[0].path)
    assert image.shape == (16, 16, 3)
    assert image.min() < 10
    assert image.max() > 230


def test_slices_go_through_their_part_and_cases_stay_together(
    script: ModuleType, tmp_path: Path, write_scan: Callable[..., Path]
) -> None:
    for case in range(8):
        labels = np.zeros((6, 12, 7), np.uint8)
        labels[2:4, 7:11, 2:5] = 1
        labels[2:4, 1:6, 2:5] = 2
        # The second axis of these scans runs from anterior to posterior; up is the last index.
        scan = np.broadcast_to(np.arange(12)[None, ::-1, None] * 10, labels.shape).copy()
        scan[:, :, -1] = 200
        affine = np.diag([1.0, -1.0, 1.0, 1.0])
        write_scan(f"scans/imagesTr/c{case}.nii.gz", scan.astype(np.int16), affine)
        write_scan(f"scans/labelsTr/c{case}.nii.gz", labels[:, ::-1], affine)
    pictures = list(script.slices(tmp_path / "scans", 12, per_part=2))
    assert [(case, part, name) for case, part, name, _ in pictures[:4]] == [
        ("c0", "anterior", "c0/008.png"),
        ("c0", "anterior", "c0/009.png"),
        ("c0", "posterior", "c0/002.png"),
        ("c0", "posterior", "c0/004.png"),
    ]
    assert pictures[0][3].shape == (14, 12)
    assert (pictures[0][3][0] == 255).all()
    assert pictures[0][3][-1].max() < 255
    written = script.write_set(
        tmp_path / "slices",
        lambda: script.slices(tmp_path / "scans", 12, per_part=2),
        fractions=script.FRACTIONS,
        seed=0,
    )
    assert written.classes == ("anterior", "posterior")
    split_of = {stimulus.group: stimulus.split for stimulus in written.stimuli}
    assert set(split_of) == {f"c{n}" for n in range(8)}
    assert all(stimulus.split == split_of[stimulus.group] for stimulus in written.stimuli)
    with pytest.raises(CohortError, match="There are no label maps"):
        list(script.slices(tmp_path, 12, per_part=2))


def test_the_command_line_names_what_is_missing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, problem in (
        (["digits", str(tmp_path)], "exists already"),
        (["hippocampus", str(tmp_path / "new")], "hippocampus needs --scans"),
        (["hippocampus", str(tmp_path / "new"), "--scans", str(tmp_path)], "There are no label maps"),
    ):
        monkeypatch.setattr(sys, "argv", ["make_images.py", *words])
        with pytest.raises(SystemExit):
            script.main()
        assert problem in capsys.readouterr().err
