"""Run a network without computing: shapes only, no memory, no change of the network."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from dmx.geometry import SegmentPlan


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Switch a network to training or prediction; afterwards each module is again in the mode it was in."""
    before = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


def meta_state(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, as shapes without values.

    Each module appears under its first name, so that one that is registered twice is replaced, and put back, once.
    """
    shapes: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for prefix, module in network.named_modules():
        own = [*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False)]
        for name, value in own:
            if id(value) not in shapes:
                shapes[id(value)] = torch.empty_like(value, device="meta").requires_grad_(value.requires_grad)
            state[name] = shapes[id(value)]
    return state


def meta_patches(plan: SegmentPlan, *, batch_size: int, num_channels: int) -> list[Tensor]:
    """Return the network's inputs for a plan, as shapes without values."""
    return [torch.empty(batch_size, num_channels, *patch.shape, device="meta") for patch in plan.patches]


def meta_call(network: nn.Module, state: dict[str, Tensor], inputs: Tensor | Sequence[Tensor]) -> object:
    """Return what the network gives for its input, as shapes without values."""
    output: object = functional_call(network, state, (inputs,), tie_weights=False)
    return output


class _WithoutValues(TorchFunctionMode):
    """Make what holds weights without values; whatever else a network computes while it is built stays."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        given = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn) and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def sized_by(network: nn.Module, make: Callable[[int], object], count: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a network whose size follows a number, each with the axes that do.

    The network is built again with another number, without values where that is possible; the global random state
    stays as it is. Nothing is returned where it cannot be built again.

    Args:
        network: The network.
        make: Builds it for a number.
        count: The number that it was built for.
    """
    ours = _sizes(network)
    for values in (_WithoutValues, nullcontext):
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), values():
                warnings.simplefilter("ignore")
                made = make(count + 1)
            theirs = _sizes(made) if isinstance(made, nn.Module) else {}
        except Exception:
            # Whatever the code of a network raises: it could be built for the other number.
            continue
        changed = {
            name: tuple(axis for axis, size in enumerate(shape) if size != theirs[name][axis])
            for name, shape in ours.items()
            if len(theirs.get(name, ())) == len(shape)
        }
        return {name: axes for name, axes in changed.items() if axes}
    return {}


def _sizes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    # A tensor with several names stands in the state dict under each of them.
    named = (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))
    return {name: tuple(value.shape) for name, value in named}
