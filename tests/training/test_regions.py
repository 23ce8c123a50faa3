"""Losses and counts of regions that overlap, and MONAI's losses on voxels that somebody annotated."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmx.cohort.regions import Regions
from dmx.config.optimization import LossSection, MonaiLoss
from dmx.errors import ConfigError
from dmx.training.losses import Loss, binary_cross_entropy, soft_dice, soft_iou
from dmx.training.monai_losses import region_truth
from dmx.training.samples import SampleCounts

REGIONS = Regions({"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}, (1, 2, 3))
MEMBERS = tuple(REGIONS.members.values())


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def target() -> Tensor:
    labels = torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    labels[:, :, 3] = -1
    return labels


def by_hand(target: Tensor) -> Tensor:
    return torch.stack([target >= 1, target >= 2, target == 3], dim=1).float()


def test_the_cross_entropy_of_regions_is_the_binary_one_of_each(logits: Tensor, target: Tensor) -> None:
    kept = logits[:, :, :, :3], by_hand(target)[:, :, :, :3]
    ours = binary_cross_entropy(logits, target, MEMBERS)
    assert torch.allclose(ours, functional.binary_cross_entropy_with_logits(*kept))
    weights = torch.tensor([1.0, 2.0, 0.0])
    ours = binary_cross_entropy(logits, target, MEMBERS, weights=weights, label_smoothing=0.2)
    each = functional.binary_cross_entropy_with_logits(kept[0], 0.8 * kept[1] + 0.1, reduction="none")
    assert torch.allclose(ours, (each * weights.view(1, 3, 1, 1, 1)).mean())


def test_overlap_losses_take_each_region_against_the_rest(logits: Tensor, target: Tensor) -> None:
    p, y = torch.sigmoid(logits)[:, :, :, :3], by_hand(target)[:, :, :, :3]
    both, total = (p * y).sum((0, 2, 3, 4)), (p + y).sum((0, 2, 3, 4))
    found = soft_dice(torch.sigmoid(logits), target, regions=MEMBERS)
    assert float(found) == pytest.approx(float(1 - (2 * both / total).mean()), abs=1e-5)
    found = soft_iou(torch.sigmoid(logits), target, regions=MEMBERS)
    assert float(found) == pytest.approx(float(1 - (both / (total - both)).mean()), abs=1e-5)


def test_the_loss_of_regions_is_their_sum_and_ignores_what_nobody_annotated(logits: Tensor, target: Tensor) -> None:
    section = LossSection(cross_entropy=0.5, soft_dice=2.0, monai=(MonaiLoss(name="DiceLoss"),))
    logits.requires_grad_()
    value = Loss(section, 4, regions=REGIONS)(logits, target)
    ours = 0.5 * binary_cross_entropy(logits, target, MEMBERS)
    ours = ours + 2 * soft_dice(torch.sigmoid(logits), target, regions=MEMBERS) + value.terms["DiceLoss"]
    assert torch.allclose(value.total, ours)
    value.total.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[:, :, :, 3]) == 0
    assert torch.count_nonzero(logits.grad[:, :, :, :3]) > 0


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (LossSection(class_weights="frequency"), "regions overlap"),
        (LossSection(class_weights=(1.0, 2.0)), r"one number per region \(3\)"),
        (LossSection(monai=(MonaiLoss(name="DiceCELoss"),)), "judges classes that exclude each other"),
    ],
)
def test_what_belongs_to_classes_is_refused_for_regions(section: LossSection, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Loss(section, 4, regions=REGIONS)


@pytest.mark.parametrize("name", ["DiceLoss", "DiceFocalLoss", "FocalLoss", "TverskyLoss", "GeneralizedDiceLoss"])
@pytest.mark.parametrize("regions", [None, REGIONS])
def test_monais_losses_equal_those_without_the_ignored_part(name: str, regions: Regions | None, logits, target) -> None:
    outputs = 3 if regions else 4
    scores = logits if regions else torch.cat([logits, logits[:, :1] * 0.5], dim=1)
    loss = Loss(LossSection(cross_entropy=0.0, monai=(MonaiLoss(name=name),)), 4, regions=regions)
    assert loss.of_shapes == ()
    found = loss(scores, target).total
    kept = loss(scores[:, :, :, :3], target[:, :, :3]).total
    assert float(found) == pytest.approx(float(kept), rel=1e-5)
    # A segment of which nothing is annotated adds nothing.
    none = loss(torch.cat([scores, torch.ones(1, outputs, 4, 4, 4)]), torch.cat([target, -torch.ones_like(target[:1])]))
    assert float(none.total) == pytest.approx(float(kept), rel=1e-5)
    nothing = loss(scores.clone().requires_grad_(), -torch.ones_like(target)).total
    nothing.backward()
    assert float(nothing.detach()) == 0.0


def test_a_loss_of_shapes_is_known_and_still_has_no_gradient_where_nothing_is(logits: Tensor, target: Tensor) -> None:
    loss = Loss(LossSection(cross_entropy=0.0, monai=(MonaiLoss(name="SoftDiceclDiceLoss"),)), 3)
    assert loss.of_shapes == ("SoftDiceclDiceLoss",)
    logits.requires_grad_()
    loss(logits, target.clamp(max=2)).total.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[:, :, :, 3]) == 0


def test_counts_of_regions_are_those_of_each_against_the_rest(logits: Tensor, target: Tensor) -> None:
    counts = SampleCounts(("background", "a", "b", "c"), regions=REGIONS)
    counts.add(logits, target)
    truth, found = by_hand(target)[:, :, :, :3].bool(), (torch.sigmoid(logits) > 0.5)[:, :, :, :3]
    metrics = counts.metrics("val")
    for index, name in enumerate(REGIONS.members):
        both = (truth[:, index] & found[:, index]).sum()
        dice = 2 * both / (truth[:, index].sum() + found[:, index].sum())
        assert metrics[f"val/dice/{name}"] == pytest.approx(float(dice))
    assert metrics["val/accuracy"] == pytest.approx(float((truth == found).all(dim=1).float().mean()))
    either = truth.any(dim=1), found.any(dim=1)
    assert metrics["val/sensitivity/foreground"] == pytest.approx(
        float((either[0] & either[1]).sum() / either[0].sum())
    )
    assert {key for key in metrics if key.count("/") == 2 and "dice" in key} == {
        "val/dice/foreground",
        *(f"val/dice/{name}" for name in REGIONS.members),
    }


def test_the_truth_of_regions_is_false_where_nobody_annotated(target: Tensor) -> None:
    truth = region_truth(target, MEMBERS)
    assert not truth[:, :, :, 3].any()
    assert torch.equal(truth.float(), by_hand(target))
