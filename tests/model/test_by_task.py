"""One way to the network of any task."""

from dataclasses import replace

import pytest
import torch

from dmx.config.model import ModelSection, NormalizationSection, PathwaySection
from dmx.model.build import build_network
from dmx.model.by_task import build_by_task
from dmx.model.classifier import build_classifier

PATHWAYS = PathwaySection(widths=(4, 4))
VOXELS = ModelSection(normal=PATHWAYS, subsampled=())
VOLUMES = ModelSection(name="encoder_classifier", normal=PATHWAYS, subsampled=())


@pytest.mark.parametrize("compatibility", ["none", "deepmedic"])
def test_a_segmentation_is_built_as_it_is_without_a_task(compatibility: str) -> None:
    section = replace(
        VOXELS, normalization=NormalizationSection(name="batch" if compatibility == "none" else "batch_rolling")
    )
    one = build_by_task(
        section, task="segmentation", num_channels=2, num_outputs=3, compatibility=compatibility, seed=5
    )
    other = build_network(section, num_channels=2, num_classes=3, compatibility=compatibility, seed=5)

    assert type(one) is type(other)
    assert_same(one, other)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_other_tasks_get_scores_of_whole_volumes(task: str) -> None:
    one = build_by_task(VOLUMES, task=task, num_channels=2, num_outputs=3, seed=5)

    assert_same(one, build_classifier(VOLUMES, num_channels=2, num_outputs=3, seed=5))
    assert one([torch.rand(2, 2, 9, 9, 9)]).shape == (2, 3)


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
