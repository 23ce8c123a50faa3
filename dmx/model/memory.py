"""How much memory tensors take during a pass, found by following a pass without values."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dmx.geometry import Triple
from dmx.model.meta import meta_call, meta_patches, meta_state, mode
from dmx.model.network import Network, TrainableNetwork


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of all tensors that exist at a time; keep the largest sum."""

    def __init__(self, already: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: set[int] = set()
        for tensor in already:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and note the tensors that it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(network: Network, segment: Triple, *, batch_size: int, training: bool) -> int:
    """Return the largest sum of all tensors in a pass over segments in single precision.

    Weights and inputs are part of it; in training also what the gradient needs, and the gradients. What libraries take
    for their own work comes on top, and so does the optimizer.
    """
    plan = network.segment_plan(segment)
    inputs = meta_patches(plan, batch_size=batch_size, num_channels=network.num_channels)
    return pass_bytes(network, inputs, training=training)


def pass_bytes(network: TrainableNetwork, inputs: Sequence[Tensor], *, training: bool) -> int:
    """Return the same for inputs of any shape, which have no values themselves."""
    with mode(network, training=training), torch.set_grad_enabled(training):
        state = meta_state(network)
        with _LiveBytes([*state.values(), *inputs]) as live:
            output = meta_call(network, state, inputs)
            if training:
                assert isinstance(output, Tensor)
                output.sum().backward()  # type: ignore[no-untyped-call]
    peak: int = live.peak
    return peak
