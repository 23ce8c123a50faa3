"""What the axes of a network's tensors follow, by the types of its modules: channels, taps, places, or nothing."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dmx.transfer.describe import Axis, Meaning
from dmx.transfer.layout import BUFFERS
from dmx.transfer.places import cube

_POSITIONS = (
    "absolute_pos_embed",
    "pos_embed",
    "pos_embedding",
    "position_embedding",
    "position_embeddings",
    "positional_embedding",
)
_BIAS_TABLE = "relative_position_bias_table"
# Attributes in which modules keep how many places an image has along each axis.
_GRIDS = ("grid_size", "feat_size")
_TOKENS = ("cls_token", "class_token", "dist_token")
# Names of kernels that give several things at once, and how many.
_STACKED = {"qkv": 3, "to_qkv": 3, "in_proj": 3, "in_proj_weight": 3, "in_proj_bias": 3, "kv": 2, "to_kv": 2}
_GATES = {"LSTM": 4, "GRU": 3}


def meanings(network: nn.Module) -> dict[str, Meaning]:
    """Return what each parameter and buffer means, by its name; no value is looked at."""
    modules = dict(network.named_modules(remove_duplicate=False))
    turned = set(_after_a_turn(network))
    found: dict[str, Meaning] = {}
    for prefix, module in modules.items():
        parents = [modules[name] for name in _upward(prefix)]
        for name, value in module.named_parameters(prefix, recurse=False):
            meaning = _of_parameter(name.removeprefix(f"{prefix}."), value, parents, own=prefix.rpartition(".")[2])
            found[name] = Meaning(_without_input(meaning.axes)) if module in turned else meaning
        for name, value in module.named_buffers(prefix, recurse=False):
            found[name] = _of_buffer(name.removeprefix(f"{prefix}."), value)
    return found


def _upward(name: str) -> Iterator[str]:
    """Yield a module and all that it lies in, up to the network."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _after_a_turn(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that read patches flattened by einops, in whose order channels do not come first."""
    for sequence in (module for module in network.modules() if isinstance(module, nn.Sequential)):
        for before, module in pairwise(sequence):
            if type(before).__name__ == "Rearrange":
                yield module


def _without_input(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    fixed: Axis = "fixed"
    return tuple(fixed if axis == "in" else axis for axis in axes)


def _of_buffer(name: str, value: Tensor) -> Meaning:
    if name in BUFFERS:
        return Meaning(_times("out", value.ndim) if value.ndim < 2 else _fixed(value))
    # Indices, such as those of pairs of places in a window, follow from the network's own sizes.
    return Meaning(_fixed(value), computed=not value.is_floating_point())


def _fixed(value: Tensor) -> tuple[Axis, ...]:
    return _times("fixed", value.ndim)


def _times(axis: Axis, count: int) -> tuple[Axis, ...]:
    return (axis,) * count


def _of_parameter(name: str, value: Tensor, parents: Sequence[nn.Module], *, own: str) -> Meaning:
    """Return what a parameter means.

    Args:
        name: Its name in the module that owns it.
        value: The parameter.
        parents: That module, and all that it lies in, outward.
        own: The module's own name.
    """
    module = parents[0]
    if isinstance(module, _ConvNd | nn.Linear):
        return _of_kernel(module, value, blocks=_STACKED.get(own, 1))
    if isinstance(module, nn.MultiheadAttention) and name.startswith("in_proj"):
        axes: tuple[Axis, ...] = ("out", "in")
        return Meaning(axes[: value.ndim], blocks=3)
    if isinstance(module, nn.RNNBase):
        axes = ("out", "in")
        return Meaning(axes[: value.ndim], blocks=_GATES.get(module.mode, 1))
    if name == _BIAS_TABLE and value.ndim == 2:
        window = _sizes(getattr(module, "window_size", ()))
        grid = tuple(2 * size - 1 for size in window)
        return Meaning(("place", "out"), grid=grid if math.prod(grid) == len(value) else ())
    if name in _POSITIONS and value.ndim == 3 and len(value) == 1:
        return _of_positions(value, parents)
    return Meaning(_plain_axes(module, name, value))


def _of_kernel(module: _ConvNd | nn.Linear, value: Tensor, *, blocks: int) -> Meaning:
    """Return what a kernel, its bias, or a factor that a reparametrization keeps means."""
    transposed, groups = isinstance(module, _ConvTransposeNd), getattr(module, "groups", 1)
    out: Axis = "out" if groups == 1 or not transposed else "fixed"
    inner: Axis = "in" if groups == 1 or transposed else "fixed"
    taps = _times("kernel", value.ndim - 2)
    channels: tuple[Axis, ...] = (inner, out) if transposed and value.ndim > 1 else (out, inner)
    if value.ndim < 2:
        channels = ("out",)
    divided = blocks if module.weight.shape[0] % blocks == 0 else 1
    return Meaning((*channels, *taps)[: value.ndim], blocks=divided)


def _plain_axes(module: nn.Module, name: str, value: Tensor) -> tuple[Axis, ...]:
    """Return the axes of a scale, shift, slope or embedding; of anything else no axis is known to be channels."""
    shared = isinstance(module, nn.PReLU) and value.numel() == 1
    several = [axis for axis, size in enumerate(value.shape) if size > 1]
    if isinstance(module, _NormBase | nn.GroupNorm) or (isinstance(module, nn.PReLU) and not shared):
        return ("out",)
    if isinstance(module, nn.Embedding):
        return ("fixed", "out")
    if (isinstance(module, nn.LayerNorm) and value.ndim > 1) or shared or len(several) != 1 or name in _POSITIONS:
        return _fixed(value)
    return tuple("out" if axis == several[0] else "fixed" for axis in range(value.ndim))


def _of_positions(value: Tensor, parents: Sequence[nn.Module]) -> Meaning:
    """Return what a table of one vector per place means; one that is computed for its places is not received."""
    if getattr(parents[0], "pos_embed_type", "learnable") != "learnable":
        return Meaning(_fixed(value), computed=True)
    tokens = max(sum(hasattr(parent, token) for token in _TOKENS) for parent in parents)
    for lead in dict.fromkeys((tokens, 0)):
        for parent in parents:
            grid = _grid(parent)
            if grid and math.prod(grid) + lead == value.shape[1]:
                return Meaning(("fixed", "place", "out"), grid=grid, lead=lead)
    kernel = next((part.weight for part in parents[-1].modules() if isinstance(part, _ConvNd)), None)
    grid, lead = cube(value.shape[1], axes=3 if kernel is None else kernel.ndim - 2)
    return Meaning(("fixed", "place", "out"), grid=grid, lead=lead)


def _grid(module: nn.Module) -> tuple[int, ...]:
    """Return how many places a module says that its images have along each axis."""
    for holder in (module, getattr(module, "patch_embed", None)):
        for name in _GRIDS:
            if found := _sizes(getattr(holder, name, ())):
                return found
        image, patch = _sizes(getattr(holder, "img_size", ())), _sizes(getattr(holder, "patch_size", ()))
        if image and len(image) == len(patch) and all(patch):
            return tuple(whole // part for whole, part in zip(image, patch, strict=True))
    return ()


def _sizes(value: object) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) and all(isinstance(size, int) for size in value) else ()
