"""From the names and shapes of a state dict to layers."""

import re
from collections.abc import Collection, Mapping, Sequence

from dmx.transfer.describe import Axis, LayerSketch, NetworkSketch, Setting, TensorInfo, TensorSketch

BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "means", "variances", "count")

_PATHWAY_LAYER = re.compile(r"((normal|subsampled_\d+|fc)\.block_(\d+)|head)\.(?=(?:norm|activation|conv)\.)")


def is_buffer(name: str) -> bool:
    """Return whether a name is that of a statistic, where nothing but the name is known."""
    return name.rsplit(".", 1)[-1] in BUFFERS


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sorting key that counts: ``block_2`` comes before ``block_10``."""
    return [(0, int(text), "") if text.isdigit() else (1, 0, text) for text in re.split(r"(\d+)", name) if text]


def sketch_tensors(
    tensors: Sequence[TensorInfo],
    *,
    name: str,
    head: str | None = None,
    channels: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> NetworkSketch:
    """Return a sketch of any state dict.

    The names of a multi-scale network are recognized; otherwise the layers are the modules that own tensors.

    Args:
        tensors: Names and shapes, in the order of the state dict.
        name: What messages call the network.
        head: Name of the classification layer in networks without pathways; None: the last kernel.
        channels: Names of the input channels, if they are known.
        classes: Names of the classes, if they are known.
    """
    prefix = _pathway_prefix(tensors)
    if prefix is None:
        layers = module_layers(tensors, heads=[head] if head else ())
        return NetworkSketch(name, layers, (), tuple(channels), tuple(classes))
    layers, pathways = pathway_layers(tensors, prefix=prefix)
    return NetworkSketch(name, layers, pathways, tuple(channels), tuple(classes), prefix=prefix)


def _pathway_prefix(tensors: Sequence[TensorInfo]) -> str | None:
    """Return what stands before the names of a multi-scale network; None: it is another one."""
    found = _PATHWAY_LAYER.search(tensors[0].name) if tensors else None
    if found is None:
        return None
    prefix = tensors[0].name[: found.start()]
    alike = all(info.name.startswith(prefix) and _PATHWAY_LAYER.match(info.name, len(prefix)) for info in tensors)
    return prefix if alike and (not prefix or prefix.endswith(".")) else None


def pathway_layers(
    tensors: Sequence[TensorInfo],
    *,
    residual: Collection[str] = (),
    settings: Mapping[str, Mapping[str, Setting]] | None = None,
    prefix: str = "",
) -> tuple[tuple[LayerSketch, ...], tuple[str, ...]]:
    """Return the layers of a multi-scale network, and its parallel pathways.

    Args:
        tensors: Names and shapes.
        residual: Layers to whose output the input of the layer before is added.
        settings: What else decides the output of a layer, by its name.
        prefix: What stands before all names; layers are named without.
    """
    grouped: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        match = _PATHWAY_LAYER.match(info.name, len(prefix))
        assert match is not None
        grouped.setdefault(match[1], []).append(info)
    names: dict[str, list[str]] = {}
    for layer in sorted(grouped, key=natural_key):
        names.setdefault("fc" if layer == "head" else layer.split(".")[0], []).append(layer)
    parallel = tuple(sorted((pathway for pathway in names if pathway != "fc"), key=natural_key))
    longest = max((len(names[pathway]) for pathway in parallel), default=0)
    reads = _reads(names, parallel)
    layers = []
    for pathway in (*parallel, "fc"):
        for position, layer in enumerate(names.get(pathway, []), start=1):
            before = names[pathway][position - 2] if position > 1 else ""
            own = f"{prefix}{layer}."
            kernels = sorted((info for info in grouped[layer] if _is_kernel(own, info)), key=lambda info: info.name)
            layers.append(
                LayerSketch(
                    name=layer,
                    pathway=pathway,
                    position=position,
                    depth=position + (longest if pathway == "fc" else 0),
                    is_head=layer == "head",
                    tensors=tuple(_block_tensor(own, info, kernels) for info in grouped[layer]),
                    in_channels=kernels[0].shape[1] if kernels else 0,
                    out_channels=kernels[-1].shape[0] if kernels else 0,
                    reads=reads[layer],
                    residual=reads[before] if layer in residual else None,
                    settings=dict((settings or {}).get(layer, {})),
                )
            )
    return tuple(layers), parallel


def _reads(names: Mapping[str, Sequence[str]], parallel: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what each layer reads: the layer before, the scan, or the ends of the parallel pathways."""
    ends = tuple(names[pathway][-1] for pathway in parallel)
    reads: dict[str, tuple[str, ...]] = {}
    for pathway, layers in names.items():
        for index, layer in enumerate(layers):
            first = ends if pathway == "fc" else ()
            reads[layer] = (layers[index - 1],) if index else first
    return reads


def _is_kernel(own: str, info: TensorInfo) -> bool:
    return info.name.startswith(f"{own}conv.") and info.name.endswith(".weight")


def _block_tensor(own: str, info: TensorInfo, kernels: Sequence[TensorInfo]) -> TensorSketch:
    """Return a tensor of a block of [norm] → activation → kernel, where all before the kernel follows the input."""
    part = info.name.removeprefix(own)
    axes: tuple[Axis, ...] = ()
    if info in kernels:
        # Of a kernel in factors only the first one reads the layer's input.
        taps: list[Axis] = ["kernel"] * (len(info.shape) - 2)
        axes = ("out", "in" if info is kernels[0] else "out", *taps)
    elif info.shape:
        rows: list[Axis] = ["row"] * (len(info.shape) - 1)
        axes = (*rows, "out" if part.startswith("conv.") else "in")
    return TensorSketch(info.name, info.shape, axes, part, info.learned, info.dtype)


def module_layers(
    tensors: Sequence[TensorInfo], *, heads: Collection[str] = (), scan_readers: Collection[str] = ()
) -> tuple[LayerSketch, ...]:
    """Return one layer per module that owns tensors, in their order; those without parameters are not counted.

    Args:
        tensors: Names and shapes, in the order of the state dict.
        heads: Names of the modules that give the class scores, their parts included; empty: those that look like it.
        scan_readers: Layers that are known to read the scan itself.
    """
    grouped: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        grouped.setdefault(info.name.rpartition(".")[0], []).append(info)
    heads = tuple(f"{head}." for head in heads or score_layers({i.name: i.shape for i in tensors if i.learned}))
    layers = []
    count = 0
    for name, own in grouped.items():
        counted = any(info.learned for info in own)
        count += counted
        sketches = tuple(
            TensorSketch(
                info.name,
                info.shape,
                _module_axes(info),
                info.name.rpartition(".")[2],
                info.learned,
                info.dtype,
                info.meaning,
                info.by_class,
            )
            for info in own
        )
        main = max(sketches, key=lambda tensor: len(tensor.shape))
        sizes = dict(zip(main.axes, main.shape, strict=True))
        layers.append(
            LayerSketch(
                name=name,
                pathway="network",
                position=count if counted else 0,
                depth=count if counted else 0,
                is_head=f"{name}.".startswith(heads) or any(info.by_class for info in own),
                tensors=sketches,
                in_channels=sizes.get("in", 0),
                out_channels=sizes.get("out", 0),
                reads=() if name in scan_readers else None,
            )
        )
    return tuple(layers)


def score_layers(parameters: Mapping[str, Sequence[int]], head: str | None = None) -> tuple[str, ...]:
    """Return the modules that probably give class scores, where nothing but names and shapes is known.

    They are the last kernel and, as auxiliary outputs of deep supervision have it, all convolutions of one voxel that
    give as many channels, from more.

    Args:
        parameters: Shapes by name, in their order.
        head: Name of the module that is known to give the scores; None: the last kernel.
    """
    kernels = {name.rpartition(".")[0]: tuple(shape) for name, shape in parameters.items() if len(shape) > 1}
    last = next((name for name in reversed(kernels) if head is None or f"{name}.".startswith(f"{head}.")), None)
    if last is None:
        return () if head is None else (head,)
    like = kernels[last]
    alike = [
        name
        for name, shape in kernels.items()
        if len(shape) == len(like) > 2 and shape[1] > shape[0] == like[0] > 1 and set(shape[2:]) == {1}
    ]
    return tuple(dict.fromkeys([*alike, head or last]))


def _module_axes(info: TensorInfo) -> tuple[Axis, ...]:
    if info.meaning is not None:
        return info.meaning.axes
    taps: list[Axis] = ["kernel"] * (len(info.shape) - 2)
    axes: tuple[Axis, ...] = ("out", "in", *taps)
    return axes[: len(info.shape)]
