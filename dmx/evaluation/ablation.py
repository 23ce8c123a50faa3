"""Switch channels of a layer off for a while."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dmx.errors import ModelError
from dmx.evaluation.layer_outputs import find_layers
from dmx.model.example import example_patches
from dmx.model.meta import meta_call, meta_state, mode
from dmx.model.module import first_sentence
from dmx.model.network import TrainableNetwork
from dmx.model.norms import Bias, RollingBatchNorm

_Norms = (_NormBase, nn.GroupNorm, RollingBatchNorm, Bias)


@contextmanager
def ablated(network: TrainableNetwork, layer: str, channels: Sequence[int] | None = None) -> Iterator[tuple[str, ...]]:
    """Set weights and biases of a layer's channels to zero while the context is open; then they are back, bit for bit.

    Where a normalization reads what the layer gives, its scale and shift of these channels are zero too (without them,
    its running mean), so that what it gives in inference mode is exactly zero as well. A normalization that reads the
    layer's output joined with others', or with a shortcut added, is left alone.

    Args:
        network: The network.
        layer: Name of a convolution or linear layer, or of a module that holds exactly one.
        channels: Channels, counted from 1; None: all.

    Yields:
        Names of the tensors that were changed.

    Raises:
        ModelError: There is no such layer or channel, or the layer has no kernel of its own.
    """
    kernel = _kernel(network, layer)
    size = kernel.out_features if isinstance(kernel, nn.Linear) else kernel.out_channels
    chosen = list(range(1, size + 1)) if channels is None else list(channels)
    wrong = next((number for number in chosen if not 1 <= number <= size), None)
    if wrong is not None:
        raise ModelError(f"Layer '{layer}' has {size} channels, counted from 1, got channel {wrong}.")
    axis = 1 if isinstance(kernel, _ConvTransposeNd) else 0
    parts = [(kernel.weight, axis), *([(kernel.bias, 0)] if kernel.bias is not None else [])]
    for norm in _norms_after(network, kernel):
        parts += [(tensor, 0) for tensor in _norm_tensors(norm)]
    names = {id(tensor): name for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    kept = [(tensor, tensor.detach().clone()) for tensor, _ in parts]
    try:
        with torch.no_grad():
            for tensor, along in parts:
                places = torch.tensor([number - 1 for number in chosen], dtype=torch.int64, device=tensor.device)
                tensor.index_fill_(along, places, 0.0)
        yield tuple(names[id(tensor)] for tensor, _ in parts)
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)


def _kernel(network: TrainableNetwork, layer: str) -> _ConvNd | nn.Linear:
    """Return the one kernel of a layer."""
    found = list(find_layers(network, [layer]).values())
    kernels = [part for module in found for part in module.modules() if isinstance(part, _ConvNd | nn.Linear)]
    if len(kernels) != 1:
        raise ModelError(
            f"Layer '{layer}' holds {len(kernels)} convolutions and linear layers, where exactly 1 can be ablated. "
            "Name one."
        )
    kernel = kernels[0]
    if isinstance(kernel, _ConvTransposeNd) and kernel.groups > 1:
        raise ModelError(f"Layer '{layer}' is a transposed convolution in groups, which cannot be ablated.")
    return kernel


def _norms_after(network: TrainableNetwork, kernel: nn.Module) -> list[nn.Module]:
    """Return the normalizations that read what a layer gives, found by following a pass without values."""
    norms = [module for module in network.modules() if isinstance(module, _Norms)]
    patches = example_patches(network) if norms else None
    if patches is None:
        return []
    given: list[tuple[Tensor, int]] = []
    found: list[nn.Module] = []

    def note_output(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        given.append((output, output._version))

    def note_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Another version: something was added to it in place.
        if any(value is output and value._version == version for value in inputs for output, version in given):
            found.append(module)

    hooks = [kernel.register_forward_hook(note_output)]
    hooks += [norm.register_forward_pre_hook(note_input) for norm in norms]
    try:
        with mode(network, training=False), torch.no_grad():
            meta_call(network, meta_state(network), patches)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"Which normalization reads the layer could not be found with an input of {[*patches[0].shape]} "
            f"({first_sentence(error)})."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _norm_tensors(norm: nn.Module) -> list[Tensor]:
    """Return what must be zero for a normalization to give zero where it reads zero."""
    affine = [tensor for name in ("weight", "bias") if isinstance(tensor := getattr(norm, name, None), Tensor)]
    mean = getattr(norm, "running_mean", None)
    return affine or ([mean] if isinstance(mean, Tensor) else [])
