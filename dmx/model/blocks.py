"""Layers of the multi-scale network: [normalization or bias] → activation → dropout → kernel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from dmx.config.model import ModelSection, Padding
from dmx.geometry import Triple, triple
from dmx.model.dropout import Dropout, UnscaledDropout
from dmx.model.norms import Bias, Compatibility, make_norm
from dmx.model.spec import LayerSpec

_PRELU_INIT = 0.01


class _PReLUOnCPU(torch.autograd.Function):
    """PReLU whose gradient is two to four times faster on a CPU than torch's, which is not vectorized.

    Segment after segment, so that what is needed in between stays in the processor's cache.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x_NCIJK: Tensor, slope_C: Tensor) -> Tensor:
        ctx.save_for_backward(x_NCIJK, slope_C)
        return functional.prelu(x_NCIJK, slope_C.to(x_NCIJK.dtype))

    @staticmethod
    def backward(ctx: Any, gradient_NCIJK: Tensor) -> tuple[Tensor, Tensor]:
        x_NCIJK, slope_C = ctx.saved_tensors
        slope = slope_C.to(x_NCIJK.dtype).view(-1, 1, 1, 1)
        result, slope_gradient = torch.empty_like(x_NCIJK), torch.zeros_like(slope_C)
        for x, gradient, out in zip(x_NCIJK, gradient_NCIJK, result, strict=True):
            torch.ops.aten.threshold_backward.grad_input(gradient, x, 0, grad_input=out)
            # Exactly the gradient where x <= 0, and 0 elsewhere.
            negative = gradient - out
            out.addcmul_(negative, slope)
            slope_gradient += negative.mul_(x).sum((1, 2, 3), dtype=slope_C.dtype)
        return result, slope_gradient


class PReLU(nn.Module):
    """Multiply negative values by a learned slope per channel (He et al. 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), _PRELU_INIT))

    def forward(self, x_NCIJK: Tensor) -> Tensor:
        """Return ``max(0, x) + slope · min(0, x)``, in the precision of ``x``."""
        if x_NCIJK.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            result: Tensor = _PReLUOnCPU.apply(x_NCIJK, self.weight)  # type: ignore[no-untyped-call]
            return result
        return functional.prelu(x_NCIJK, self.weight.to(x_NCIJK.dtype))


_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "prelu": PReLU,
    "relu": lambda channels: nn.ReLU(),
    "elu": lambda channels: nn.ELU(),
    "selu": lambda channels: nn.SELU(),
    "leaky_relu": lambda channels: nn.LeakyReLU(),
    "linear": lambda channels: nn.Identity(),
}


def _make_dropout(rate: float, compatibility: Compatibility) -> nn.Module:
    # DeepMedic leaves dropout out when it keeps more than 99.9 %.
    if rate == 0.0 or (compatibility == "deepmedic" and rate < 0.001):
        return nn.Identity()
    return UnscaledDropout(rate) if compatibility == "deepmedic" else Dropout(rate)


def _sides(kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Return the voxels to add before and after on each axis so that a kernel keeps the size."""
    return [((size - 1) // 2, size // 2) for size in kernel]


def _flat(sides: Sequence[tuple[int, int]]) -> list[int]:
    """Return padding in torch's order, the last axis first."""
    return [side for pair in reversed(sides) for side in pair]


def pad_mirror(x_NCIJK: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """Pad by mirroring at the faces, the outermost voxel repeated: numpy's ``symmetric`` mode."""
    if not any(after for _, after in sides):
        return x_NCIJK
    if max(after for _, after in sides) == 1:
        return functional.pad(x_NCIJK, _flat(sides), mode="replicate")
    for axis, (before, after) in enumerate(sides, start=2):
        length = x_NCIJK.shape[axis]
        place = torch.arange(-before, length + after, device=x_NCIJK.device) % (2 * length)
        x_NCIJK = x_NCIJK.index_select(axis, torch.minimum(place, 2 * length - 1 - place))
    return x_NCIJK


class Convolution(nn.Conv3d):
    """A convolution of stride 1 with the paddings of the multi-scale network."""

    sides: Padding = "valid"

    def forward(self, x_NCIJK: Tensor) -> Tensor:
        """Return the convolved features, smaller by the kernel minus 1 unless padded."""
        if self.sides == "mirror":
            x_NCIJK = pad_mirror(x_NCIJK, _sides(self.kernel_size))
        elif self.sides == "zero":
            x_NCIJK = functional.pad(x_NCIJK, _flat(_sides(self.kernel_size)))
        return super().forward(x_NCIJK)


def _convolution(channels: tuple[int, int], kernel: Triple, *, padding: Padding, bias: bool) -> Convolution:
    """Return a convolution whose weights are still to be drawn: the global random state stays as it is."""
    # Zeros on both sides alike are the convolution's own, without a copy.
    own = padding == "zero" and all(size % 2 for size in kernel)
    zeros = triple([size // 2 for size in kernel]) if own else 0
    with torch.device("meta"):
        conv = Convolution(*channels, kernel, padding=zeros, bias=bias)
    conv.sides = "valid" if own else padding
    return conv.to_empty(device="cpu")


def _make_convolution(spec: LayerSpec) -> nn.Module:
    """Return the kernel of a layer: one convolution, or one per axis."""
    channels, bias = (spec.in_channels, spec.out_channels), spec.is_head
    axes = [axis for axis in range(3) if spec.kernel[axis] > 1]
    if not spec.low_rank or len(axes) < 2:
        return _convolution(channels, spec.kernel, padding=spec.padding, bias=bias)
    factors = nn.Sequential()
    for axis in axes:
        i, j, k = (spec.kernel[axis] if other == axis else 1 for other in range(3))
        factors.add_module(f"axis_{axis}", _convolution(channels, (i, j, k), padding=spec.padding, bias=False))
        channels = (spec.out_channels, spec.out_channels)
    return factors


class Block(nn.Module):
    """One layer of a pathway.

    Args:
        spec: What the layer is.
        section: Settings that all layers share.
        compatibility: ``deepmedic`` for DeepMedic's dropout, statistics and crop.
    """

    def __init__(self, spec: LayerSpec, section: ModelSection, compatibility: Compatibility) -> None:
        super().__init__()
        self.spec = spec
        self.deepmedic = compatibility == "deepmedic"
        channels = spec.in_channels
        self.norm = (
            Bias(channels) if spec.plain else make_norm(section.normalization, channels, compatibility=compatibility)
        )
        self.activation = nn.Identity() if spec.plain else _ACTIVATIONS[section.activation](channels)
        self.dropout = _make_dropout(spec.dropout, compatibility)
        self.conv = _make_convolution(spec)

    def forward(self, x_NCIJK: Tensor, shortcut_NCIJK: Tensor | None = None) -> Tensor:
        """Return the layer's features, the shortcut (the input of the layer before) added if there is one."""
        x_NCIJK = self.conv(self.dropout(self.activation(self.norm(x_NCIJK))))
        return x_NCIJK if shortcut_NCIJK is None else self._add(x_NCIJK, shortcut_NCIJK)

    def _add(self, x_NCIJK: Tensor, shortcut_NCIJK: Tensor) -> Tensor:
        """Add the center of the shortcut to the channels that both have, in place."""
        channels = min(x_NCIJK.shape[1], shortcut_NCIJK.shape[1])
        center = shortcut_NCIJK[:, :channels]
        for axis in range(2, 5):
            large, small = shortcut_NCIJK.shape[axis], x_NCIJK.shape[axis]
            # DeepMedic's start depends on the parity of the size when a kernel is even.
            start = (large - 1) // 2 - (small - 1) // 2 if self.deepmedic else (large - small) // 2
            center = center.narrow(axis, start, small)
        shared = x_NCIJK if channels == x_NCIJK.shape[1] else x_NCIJK.narrow(1, 0, channels)
        shared.add_(center)
        return x_NCIJK
