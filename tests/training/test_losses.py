"""Losses against their definitions, ignored voxels, class weights, penalties."""

import math

import monai.losses
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dmx.config.optimization import LossSection, MonaiLoss, RegularizationSection
from dmx.errors import ConfigError
from dmx.training.losses import (
    Loss,
    add_penalties,
    cross_entropy,
    frequency_weights,
    soft_dice,
    soft_iou,
)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def target() -> Tensor:
    return torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(2))


def test_cross_entropy_is_torchs(logits: Tensor, target: Tensor) -> None:
    weights = torch.tensor([0.5, 1.0, 4.0])
    assert torch.allclose(cross_entropy(logits, target), functional.cross_entropy(logits, target))
    voxels = functional.cross_entropy(logits, target, weight=weights, reduction="none", label_smoothing=0.2)
    ours = cross_entropy(logits, target, weights=weights, label_smoothing=0.2)
    assert torch.allclose(ours, voxels.mean())


def test_deepmedics_cross_entropy_is_bounded_and_ours_is_not() -> None:
    logits = torch.zeros(1, 2, 1, 1, 1)
    logits[:, 0] = 100.0
    target = torch.ones(1, 1, 1, 1, dtype=torch.int64)
    assert float(cross_entropy(logits, target)) == pytest.approx(100.0)
    bounded = cross_entropy(logits, target, compatibility="deepmedic")
    assert float(bounded) == pytest.approx(-math.log(1e-6), rel=1e-4)


def test_overlap_losses_are_their_formulas(logits: Tensor, target: Tensor) -> None:
    p, y = logits.softmax(1), functional.one_hot(target, 3).permute(0, 4, 1, 2, 3).float()
    over = (0, 2, 3, 4)
    dice = (2 * (p * y).sum(over) + 1e-5) / (p.sum(over) + y.sum(over) + 1e-5)
    iou = ((p * y).sum(over) + 1e-5) / ((p * (1 - y)).sum(over) + y.sum(over) + 1e-5)
    assert torch.allclose(soft_dice(p, target), 1 - dice.mean())
    assert torch.allclose(soft_iou(p, target), 1 - iou.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_voxels_change_nothing(logits: Tensor, target: Tensor, smoothing: float) -> None:
    """The loss of a batch in which one half is ignored is that of the other half alone."""
    half = target.clone()
    half[:, 2:] = -1
    section = LossSection(soft_iou=0.5, soft_dice=0.5, class_weights="frequency", label_smoothing=smoothing)
    loss = Loss(section, 3)
    alone = loss(logits[:, :, :2], target[:, :2]).total
    assert torch.allclose(loss(logits, half).total, alone)
    assert not torch.allclose(loss(logits, target).total, alone)


def test_a_batch_without_labels_has_no_gradient(logits: Tensor, target: Tensor) -> None:
    logits.requires_grad_()
    Loss(LossSection(), 3)(logits, torch.full_like(target, -1)).total.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad) == 0


def test_class_weights_go_back_to_one() -> None:
    target = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    target[0, 0, 0, 0] = 1
    assert frequency_weights(target, 2).tolist() == pytest.approx([8 / 2 / 7, 8 / 2 / 1], rel=1e-5)

    loss = Loss(LossSection(class_weights=(3.0, 5.0), class_weights_epochs=(2.0, 6.0)), 2)
    at = {epoch: loss.class_weights(target, epoch) for epoch in (0.0, 2.0, 4.0, 6.0, 9.0)}
    assert {epoch: weights.tolist() for epoch, weights in at.items() if weights is not None} == {
        0.0: [3.0, 5.0],
        2.0: [3.0, 5.0],
        4.0: [2.0, 3.0],
        6.0: [1.0, 1.0],
        9.0: [1.0, 1.0],
    }
    sudden = Loss(LossSection(class_weights=(3.0, 5.0), class_weights_epochs=(4.0, 4.0)), 2)
    assert [sudden.class_weights(target, epoch).tolist() for epoch in (3.9, 4.0)] == [[3.0, 5.0], [1.0, 1.0]]
    forever = Loss(LossSection(class_weights="frequency"), 2).class_weights(target, 100.0)
    assert forever is not None
    assert torch.equal(forever, frequency_weights(target, 2))


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (LossSection(class_weights=(1.0, 2.0)), "one number per class"),
        (LossSection(cross_entropy=0.0, soft_dice=1.0, label_smoothing=0.1), "belong to the cross-entropy"),
        (LossSection(monai=(MonaiLoss(name="DiceFocusLoss"),)), "Did you mean"),
        (LossSection(monai=(MonaiLoss(name="DiceLoss", arguments={"smooth": 1}),)), "refuses its arguments"),
        (LossSection(monai=(MonaiLoss(name="DiffusionLoss"),)), "cannot judge scores of 3 classes"),
        (LossSection(monai=(MonaiLoss(name="MaskedDiceLoss"),)), "cannot judge .* No mask value"),
        (LossSection(monai=(MonaiLoss(name="DiceLoss", arguments={"reduction": "none"}),)), "must give one number"),
    ],
)
def test_settings_that_do_not_fit_are_named(section: LossSection, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Loss(section, 3)


def test_monais_losses_get_logits_and_class_indices(logits: Tensor, target: Tensor) -> None:
    section = LossSection(
        cross_entropy=0.5,
        monai=(
            MonaiLoss(name="DiceLoss", weight=2.0, arguments={"include_background": False}),
            MonaiLoss(name="FocalLoss", arguments={"gamma": 1.0}),
        ),
    )
    value = Loss(section, 3)(logits, target)
    dice = monai.losses.DiceLoss(to_onehot_y=True, softmax=True, include_background=False)(logits, target[:, None])
    focal = monai.losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=1.0)(logits, target[:, None])
    expected = 0.5 * functional.cross_entropy(logits, target) + 2.0 * dice + focal
    assert torch.allclose(value.total, expected)
    assert float(value.terms["DiceLoss"]) == pytest.approx(float(dice))


def test_monais_losses_do_not_see_what_is_ignored(logits: Tensor, target: Tensor) -> None:
    loss = Loss(LossSection(cross_entropy=0.0, monai=(MonaiLoss(name="DiceCELoss"),)), 3)
    ignored = target.clone()
    ignored[:, 0] = -1
    logits.requires_grad_()
    loss(logits, ignored).total.backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[:, :, 0]) == 0
    assert torch.count_nonzero(logits.grad[:, :, 1:]) > 0


def test_penalties_are_those_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    kernels = [torch.randn(3, 2, 3, 3, 3, generator=generator, requires_grad=True) for _ in range(3)]
    frozen = kernels[2]
    section = RegularizationSection(l1=0.1, l2=0.01)
    total = sum((section.l1 * k.abs().sum() + section.l2 * k.square().sum() for k in kernels[:2]), torch.zeros(()))
    expected = torch.autograd.grad(total, kernels[:2])
    for kernel in kernels[:2]:
        kernel.grad = torch.ones_like(kernel)

    terms = add_penalties(kernels, section)

    for kernel, gradient in zip(kernels, expected, strict=False):
        assert kernel.grad is not None
        assert torch.allclose(kernel.grad, gradient + 1.0)
    assert frozen.grad is None
    assert float(terms["l1"]) == pytest.approx(float(sum(k.detach().abs().sum() for k in kernels)), rel=1e-5)
    assert float(terms["l2"]) == pytest.approx(float(sum(k.detach().square().sum() for k in kernels)), rel=1e-5)
    assert add_penalties(kernels, RegularizationSection(l1=0.0, l2=0.0)) == {}
    assert add_penalties([], section) == {}


def test_whole_images_have_the_losses_of_single_voxels() -> None:
    scores, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(4)), torch.tensor([0, 1, 2, 2, -1, 0])
    section = LossSection(cross_entropy=1.0, soft_dice=1.0)
    loss = Loss(section, 3)
    image = loss(scores, labels)
    voxels = loss(scores.T[None, :, :, None, None], labels[None, :, None, None])
    assert image.terms["cross_entropy"] == pytest.approx(voxels.terms["cross_entropy"].item())
    assert image.terms["soft_dice"].item() > 0.0
