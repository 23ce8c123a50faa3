"""Names for the layers of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """One layer: a kernel with the normalization, activation and dropout before it, or one module of another network.

    Attributes:
        pathway: ``normal``, ``subsampled_1``, …, ``fc``; ``network`` in networks without pathways.
        position: Number of the layer within its pathway, from 1.
        depth: Number of layers from the input to this one, from 1; the pathways run side by side, and the first layer
            of ``fc`` is one deeper than the longest of them.
        name: Prefix of the layer's names in the state dict, e.g. ``normal.block_1`` or ``head``.
        modules: The modules of the layer.
        is_head: Whether the layer gives the class scores.
        parameters: The layer's own parameters by their name in the state dict; each parameter of a network belongs to
            exactly one layer.
    """

    pathway: str
    position: int
    depth: int
    name: str
    modules: tuple[nn.Module, ...]
    is_head: bool
    parameters: Mapping[str, nn.Parameter]


def module_groups(network: nn.Module, *, heads: Sequence[str]) -> tuple[LayerGroup, ...]:
    """Return one group for each module that owns parameters, in the order in which they were registered.

    Args:
        network: The network.
        heads: Names of the modules that give scores; what lies in them belongs to the head.
    """
    within = tuple(f"{head}." for head in heads)
    groups: list[LayerGroup] = []
    seen: set[int] = set()
    for name, module in network.named_modules():
        direct = module.named_parameters(prefix=name, recurse=False)
        own = {key: parameter for key, parameter in direct if id(parameter) not in seen}
        seen.update(id(parameter) for parameter in own.values())
        if not own:
            continue
        position = len(groups) + 1
        is_head = f"{name}.".startswith(within)
        groups.append(LayerGroup("network", position, position, name, (module,), is_head, own))
    return tuple(groups)


def named_kernels(network: nn.Module) -> list[tuple[str, _ConvNd | nn.Linear]]:
    """Return convolutions and linear layers with their names, in the order in which they were registered."""
    return [(name, part) for name, part in network.named_modules() if isinstance(part, _ConvNd | nn.Linear)]


def kernel_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights of convolutions and linear layers, each once."""
    weights = (cast(nn.Parameter, kernel.weight) for _, kernel in named_kernels(network))
    return list({id(weight): weight for weight in weights}.values())
