from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dmx.cohort.case import Case, Cohort

Write = Callable[..., Path]

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("there is no folder 'shared' beside the repository")
    return SHARED


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write_scan(tmp_path: Path) -> Write:
    """Write an array as NIfTI with header fields of one's own, without the code under test."""

    def write(name: str, array: Any = None, affine: Any = None, *, kind: Any = nib.Nifti1Image, **fields: Any) -> Path:
        array = np.arange(60, dtype=np.int16).reshape(3, 4, 5) if array is None else np.asarray(array)
        image = kind(array, np.diag([2.0, 1.5, 1.0, 1.0]) if affine is None else affine, dtype=array.dtype)
        image.header.set_xyzt_units("mm")
        for field, value in fields.items():
            image.header[field] = value
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.to_filename(path)
        return path

    return write


@pytest.fixture
def make_cohort(write_scan: Write) -> Callable[..., Cohort]:
    """Make a sound cohort of two classes: a channel, a label map and a roi per case, every fourth case held out."""

    def make(count: int = 3, **changes: Any) -> Cohort:
        cases = []
        for index in range(count):
            scan = np.random.default_rng(index).normal(size=(6, 5, 4)).astype(np.float32)
            labels = np.zeros(scan.shape, np.uint8)
            labels[1 : 3 + index % 3, 2, 1] = 1
            case = Case(
                name=f"case{index}",
                subject=f"subject{index}",
                channels={"t1": write_scan(f"scans/{index}_t1.nii.gz", scan)},
                label_map=write_scan(f"scans/{index}_labels.nii.gz", labels),
                roi=write_scan(f"scans/{index}_roi.nii.gz", np.ones_like(labels)),
                split="training",
            )
            cases.append(case)
        return Cohort("study", ("background", "lesion"), ("t1",), tuple(cases), **changes)

    return make
