from pathlib import Path

import pytest

from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection

ROLLING = NormalizationSection(name="batch_rolling")


@pytest.fixture
def golden() -> Path:
    """Folder of arrays taken from DeepMedic, beside the repository."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip(f"no reference arrays of DeepMedic at {folder}")
    return folder


@pytest.fixture
def tiny() -> ModelSection:
    """DeepMedic's tinyCnn configuration."""
    return ModelSection(normal=PathwaySection(widths=(4, 5, 6)), fc=FCSection(widths=()), normalization=ROLLING)


@pytest.fixture
def full() -> ModelSection:
    """DeepMedic's full configuration."""
    return ModelSection(
        normal=PathwaySection(residual=(4, 6, 8)),
        subsampled=(SubsampledSection(factor=3), SubsampledSection(factor=5)),
        fc=FCSection(widths=(250, 250), kernels=(3, 1, 1), padding=("mirror", "valid", "valid"), residual=(2,)),
        normalization=ROLLING,
    )
