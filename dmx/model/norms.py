"""Normalization of features, per channel."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmx.config.model import NormalizationSection
from dmx.errors import ModelError

Compatibility = Literal["none", "deepmedic"]

# The smallest normal float32, which DeepMedic adds to the variance.
DEEPMEDIC_EPSILON = torch.finfo(torch.float32).tiny


class Bias(nn.Module):
    """Add one number per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_NCIJK: Tensor) -> Tensor:
        """Return ``x`` plus the bias, in the precision of ``x``."""
        return x_NCIJK + self.bias.to(x_NCIJK.dtype).view(-1, 1, 1, 1)


def _require_statistics(x_NCIJK: Tensor) -> None:
    if x_NCIJK.numel() == x_NCIJK.shape[1]:
        raise ModelError(
            "Batch normalization needs more than one voxel per channel to train, got a batch of one segment that is "
            "one voxel large inside the network. Use larger segments, a larger batch or model.normalization 'group'."
        )


class BatchNorm(nn.BatchNorm3d):
    """Normalize by the batch in training and by a moving average later (Ioffe and Szegedy 2015)."""

    def forward(self, x_NCIJK: Tensor) -> Tensor:  # noqa: D102  (the base class describes it)
        if self.training:
            _require_statistics(x_NCIJK)
        return super().forward(x_NCIJK)


class RollingBatchNorm(nn.Module):
    """Normalize by the batch in training and by the mean statistics of the last steps later (DeepMedic).

    A forward pass in training only notes its statistics; :meth:`after_step` writes them into a ring of ``steps`` rows.
    ``count`` is the number of rows ever written, so the next one is ``count % steps``.

    Args:
        channels: Channels of the input.
        steps: Rows of the ring.
        epsilon: Added to the variance.
        count_unwritten: Average all rows from the start, those too that still hold mean 0 and variance 1. DeepMedic
            does so, which biases its statistics until the ring is full.
    """

    means: Tensor
    variances: Tensor
    count: Tensor
    pending_mean: Tensor
    pending_variance: Tensor
    pending_count: Tensor

    def __init__(self, channels: int, *, steps: int, epsilon: float, count_unwritten: bool) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.count_unwritten = count_unwritten
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("means", torch.zeros(steps, channels))
        self.register_buffer("variances", torch.ones(steps, channels))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pending_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("pending_variance", torch.zeros(channels), persistent=False)
        self.register_buffer("pending_count", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x_NCIJK: Tensor) -> Tensor:
        """Return normalized features; statistics are those of the batch in training, of the ring otherwise."""
        if not self.training:
            mean, variance = self.statistics()
            return functional.batch_norm(x_NCIJK, mean, variance, self.weight, self.bias, eps=self.epsilon)
        _require_statistics(x_NCIJK)
        # With momentum 1 the "running" statistics become those of this batch; their variance is the unbiased one.
        mean, variance = torch.zeros_like(self.pending_mean), torch.zeros_like(self.pending_variance)
        normalized = functional.batch_norm(
            x_NCIJK, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.epsilon
        )
        voxels = x_NCIJK.numel() // x_NCIJK.shape[1]
        with torch.no_grad():
            self.pending_mean += mean
            self.pending_variance += variance * ((voxels - 1) / voxels)
            self.pending_count += 1
        return normalized

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance per channel, averaged over the ring."""
        if self.count_unwritten:
            return self.means.mean(0), self.variances.mean(0)
        steps = len(self.means)
        written = self.count.clamp(1, steps)
        share = ((torch.arange(steps, device=written.device) < written) / written)[:, None]
        # No matrix product, which mixed precision would round.
        return (share * self.means).sum(0), (share * self.variances).sum(0)

    @torch.no_grad()
    def after_step(self) -> None:
        """Write the statistics of the forward passes since the last step, averaged, into the next row.

        Nothing is written after a step in which the layer did not train. No value is read back from the device.
        """
        row = (self.count % len(self.means)).view(1)
        trained = self.pending_count > 0
        passes = self.pending_count.clamp(min=1)
        for ring, pending in ((self.means, self.pending_mean), (self.variances, self.pending_variance)):
            value = torch.where(trained, pending / passes, ring.index_select(0, row)[0])
            ring.index_copy_(0, row, value[None])
            pending.zero_()
        self.count += trained
        self.pending_count.zero_()


def move_rings(network: nn.Module) -> None:
    """Let the ring buffers of all rolling statistics in a network move on."""
    for module in network.modules():
        if isinstance(module, RollingBatchNorm):
            module.after_step()


def _groups(channels: int, wanted: int) -> int:
    """Return the divisor of ``channels`` that is nearest to ``wanted``, the larger one of two."""
    divisors = [n for n in range(1, channels + 1) if channels % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), -n))


def make_norm(section: NormalizationSection, channels: int, *, compatibility: Compatibility) -> nn.Module:
    """Return the normalization that a section describes; ``none`` becomes a bias per channel."""
    if section.name == "none":
        return Bias(channels)
    if section.name == "batch":
        return BatchNorm(channels, eps=section.epsilon, momentum=section.momentum)
    if section.name == "batch_rolling":
        deepmedic = compatibility == "deepmedic"
        epsilon = DEEPMEDIC_EPSILON if deepmedic else section.epsilon
        return RollingBatchNorm(channels, steps=section.steps, epsilon=epsilon, count_unwritten=deepmedic)
    # One group per channel is instance normalization, and it accepts a single voxel.
    groups = channels if section.name == "instance" else _groups(channels, section.groups)
    return nn.GroupNorm(groups, channels, eps=section.epsilon)
