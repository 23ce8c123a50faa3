"""Tiny scans and helpers for the tests of preprocessing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dmx.cohort.case import Case
from dmx.cohort.grid import NiftiGrid
from dmx.cohort.volume import write_volume

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SHAPE = (9, 8, 7)


@pytest.fixture(autouse=True)
def own_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMX_CACHE_DIR", str(tmp_path / "facts"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


MakeCase = Callable[..., Case]


@pytest.fixture
def make_case(tmp_path: Path, rng: np.random.Generator) -> MakeCase:
    """Write a case of one channel, label map, roi and weight map; a part given as None is left out."""

    def make(
        name: str = "one", *, affine: NDArray[np.float64] | None = None, **parts: NDArray[np.float64] | None
    ) -> Case:
        roi = np.zeros(SHAPE)
        roi[2:7, 1:7, 2:6] = 1
        labels = np.zeros(SHAPE)
        labels[3:5, 2:5, 3:5] = 1
        labels[4, 4, 4] = 2
        arrays = {"t1": rng.normal(100, 20, SHAPE), "label_map": labels, "roi": roi, "weights": roi * 0.5} | parts
        grid = NiftiGrid.from_affine(SHAPE, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
        paths: dict[str, Path] = {}
        for part, array in arrays.items():
            if array is not None:
                paths[part] = tmp_path / name / f"{part}.nii"
                write_volume(paths[part], array, grid, dtype=np.float32)
        return Case(
            name=name,
            subject=f"subject-{name}",
            channels={"t1": paths.get("t1"), **{part: path for part, path in paths.items() if part.startswith("t2")}},
            label_map=paths.get("label_map"),
            roi=paths.get("roi"),
            weight_maps={"hard": paths["weights"]} if "weights" in paths else {},
        )

    return make
