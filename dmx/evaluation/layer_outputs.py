"""What layers give, by name, while a network runs: one pass over the data for all of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmx.errors import ModelError, suggest
from dmx.evaluation.layer_masks import ALL, LayerMask
from dmx.model.meta import mode
from dmx.model.network import TrainableNetwork
from dmx.transfer.aliases import known_as

Pooling = Literal["max", "mean", "median"]
Layers = Sequence[str] | Mapping[str, LayerMask]
_SHOWN = 12


def find_layers(network: TrainableNetwork, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules that names stand for, in the order of the names.

    Args:
        network: The network.
        names: Names of modules, without the prefix ``network.`` if one likes, short names, or patterns with stars, for
            which each module appears under its own name.

    Raises:
        ModelError: No module has such a name.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    known = {other: name for name in modules for other in known_as(name, network.aliases)}
    found: dict[str, nn.Module] = {}
    for wanted in names:
        if wanted in known:
            found[wanted] = modules[known[wanted]]
            continue
        matched = [name for name in modules if any(fnmatchcase(k, wanted) for k in known_as(name, network.aliases))]
        if not matched:
            groups = [known_as(group.name, {})[-1] for group in network.layer_groups()]
            more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
            raise ModelError(
                f"The network has no layer '{wanted}'.{suggest(wanted, known)} "
                f"Its layers: {', '.join(groups[:_SHOWN])}{more}."
            )
        found |= {known_as(name, {})[-1]: modules[name] for name in matched}
    return found


def chosen_layers(network: TrainableNetwork, layers: Layers) -> tuple[dict[str, nn.Module], dict[str, LayerMask]]:
    """Return the modules that are wanted and which part of each, by name; the arguments are :func:`layer_outputs`'."""
    modules: dict[str, nn.Module] = {}
    masks: dict[str, LayerMask] = {}
    for wanted in layers:
        found = find_layers(network, [wanted])
        modules |= found
        masks |= dict.fromkeys(found, layers[wanted] if isinstance(layers, Mapping) else ALL)
    return modules, masks


@contextmanager
def watching(layers: Mapping[str, nn.Module], take: Callable[[str, Tensor], Tensor]) -> Iterator[dict[str, Tensor]]:
    """Keep what is taken of each layer's latest output while the context is open."""
    latest: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        if name in latest:
            raise ModelError(
                f"Layer '{name}' runs more than once in a pass, so its output is not one. Name a layer beside it."
            )
        if not isinstance(output, Tensor):
            raise ModelError(f"Layer '{name}' gives {type(output).__name__} instead of a tensor. Name a layer in it.")
        # At once: a layer that works in place may change the tensor right after.
        latest[name] = take(name, output)

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name, module in layers.items()
    ]
    try:
        yield latest
    finally:
        for handle in handles:
            handle.remove()


def layer_outputs(
    network: TrainableNetwork,
    batches: Iterable[Sequence[Tensor]],
    layers: Layers,
    *,
    pool: Pooling | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Give the outputs of layers batch by batch, in inference mode; the network runs once per batch for all of them.

    Args:
        network: The network; batches are brought to its device.
        batches: What the network reads: for each batch one tensor [N, C, …] per patch.
        layers: Names of layers (see :func:`find_layers`), or for each name which part of it.
        pool: How rows and columns (and slices) become one number per channel, after the part was chosen.

    Yields:
        Layer → float32 tensor [N, channels, rows, columns] on the CPU, of its own; rows and columns are 1 in linear
        layers and with pooling; [N, channels, I, J, K] from volumes without pooling.

    Raises:
        ModelError: A layer does not exist, or its output has no channels.
    """
    modules, masks = chosen_layers(network, layers)

    def take(name: str, output: Tensor) -> Tensor:
        part = chosen_part(name, output, masks[name])
        part = part if pool is None else pooled(part, pool)
        return part.detach().to("cpu", torch.float32, copy=True)

    device = next(network.parameters()).device
    for patches in batches:
        inputs = [patch.to(device) for patch in patches]
        with watching(modules, take) as latest, mode(network, training=False), torch.no_grad():
            network(inputs)
        require_all(modules, latest)
        yield {name: latest[name] for name in modules}


def require_all(modules: Iterable[str], latest: Mapping[str, Tensor]) -> None:
    """Require that every layer has given something.

    Raises:
        ModelError: One did not run.
    """
    silent = next((name for name in modules if name not in latest), None)
    if silent is not None:
        raise ModelError(f"Layer '{silent}' does not run when the network does. Name another layer.")


def chosen_part(name: str, output: Tensor, mask: LayerMask) -> Tensor:
    """Return the wanted part of a layer's output, [N, C, rows, columns] or [N, C, I, J, K].

    Raises:
        ModelError: It has no channels, or not the wanted ones.
    """
    if output.ndim == 2:
        output = output[:, :, None, None]
    if output.ndim not in (4, 5):
        raise ModelError(
            f"Layer '{name}' gives {tuple(output.shape)}, where [N, channels] or feature maps of images or volumes are "
            "needed. Name a convolution, a linear layer, or what follows one."
        )
    if output.ndim == 5 and (mask.rows is not None or mask.columns is not None):
        raise ModelError(f"Layer '{name}' gives volumes, which have no rows and columns. Choose channels alone.")
    return mask.apply(output, layer=name)


def pooled(maps_NC: Tensor, pool: Pooling) -> Tensor:
    """Return one number per channel [N, C, 1, 1] of feature maps [N, C, …]; the median of an even count is a mean."""
    flat = maps_NC.flatten(2).float()
    if pool == "max":
        value = flat.amax(dim=2)
    elif pool == "mean":
        value = flat.mean(dim=2)
    else:
        ordered, count = flat.sort(dim=2).values, flat.shape[2]
        value = (ordered[:, :, (count - 1) // 2] + ordered[:, :, count // 2]) / 2
    return value[:, :, None, None]
