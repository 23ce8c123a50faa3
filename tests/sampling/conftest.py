"""Tiny cases and segments, and the golden arrays where they are at hand."""

from pathlib import Path

import pytest
import torch

from dmx import seeding
from dmx.config.augmentation import AugmentationSection
from dmx.config.sections import SamplingSection
from dmx.geometry import PatchPlan, SegmentPlan, Triple
from dmx.sampling.sampler import SegmentSampler
from dmx.sampling.source import CaseData, MemoryMappedSource

SHAPE: Triple = (20, 18, 16)


def _plan(side: int = 9, *, factors: tuple[int, ...] = (3,), reach: int = 2, border: str = "edge") -> SegmentPlan:
    """A cubic segment whose subsampled patches reach symmetrically beyond it."""
    patches = [PatchPlan("normal", (side,) * 3, (1,) * 3, (0,) * 3)]
    for number, factor in enumerate(factors, start=1):
        count = side // factor + 2 * reach
        before = (side - count * factor) // 2
        reduction = "mean" if border == "edge" else "stride"
        patches.append(PatchPlan(f"subsampled_{number}", (count,) * 3, (factor,) * 3, (before,) * 3, reduction, border))
    return SegmentPlan((side,) * 3, (side - 4,) * 3, (2,) * 3, (2,) * 3, tuple(patches))


def _case(name: str = "a", *, shape: Triple = SHAPE, lesion: bool = True, seed: int = 0) -> CaseData:
    """A case of noise with a box of class 1 and its lists of centers."""
    labels = torch.zeros(shape, dtype=torch.uint8)
    if lesion:
        labels[4:9, 5:9, 6:12] = 1
    flat = labels.flatten()
    centers = {
        "roi": torch.arange(flat.numel()),
        "foreground": (flat == 1).nonzero()[:, 0],
        "background": (flat == 0).nonzero()[:, 0],
        "class_0": (flat == 0).nonzero()[:, 0],
        "class_1": (flat == 1).nonzero()[:, 0],
    }
    return CaseData(name, seeding.normal(seed, (2, *shape)), labels, None, centers)


def _source(cases: list[CaseData]) -> MemoryMappedSource:
    return MemoryMappedSource([lambda case=case: case for case in cases])


@pytest.fixture(scope="session")
def make_plan():
    return _plan


@pytest.fixture(scope="session")
def make_case():
    return _case


@pytest.fixture(scope="session")
def make_source():
    return _source


@pytest.fixture(scope="session")
def make_sampler():
    """Two cases and a small segment unless told otherwise."""

    def make(source=None, *, plan=None, section=None, augmentation=None, **options) -> SegmentSampler:
        settings = {"batch_size": 4, "steps_per_epoch": 5, "num_classes": 2, "seed": 7, "device": "cpu", **options}
        return SegmentSampler(
            _source([_case("a"), _case("b", seed=1)]) if source is None else source,
            plan or _plan(),
            section or SamplingSection(),
            augmentation or AugmentationSection(),
            **settings,
        )

    return make


@pytest.fixture(scope="session")
def golden():
    """Arrays of DeepMedic's data operations."""
    path = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "data_ops.npz"
    if not path.exists():
        pytest.skip(f"DeepMedic's arrays are not beside the repository: {path}")
    numpy = pytest.importorskip("numpy")
    with numpy.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}
