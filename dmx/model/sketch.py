"""What a network says of itself to a transfer: names, shapes, how layers are joined."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dmx.config.model import ModelSection
from dmx.errors import ModelError
from dmx.geometry import triple
from dmx.model.axes import meanings
from dmx.model.blocks import Block
from dmx.model.build import build_network
from dmx.model.classifier import build_classifier
from dmx.model.dropout import UnscaledDropout
from dmx.model.example import example_patches
from dmx.model.meta import meta_call, meta_state, mode
from dmx.model.multiscale import MultiScaleNet
from dmx.model.network import TrainableNetwork
from dmx.model.norms import Compatibility, RollingBatchNorm
from dmx.model.spec import NetworkSpec, resolve, size_text
from dmx.model.volume_classifier import PathwayClassifier
from dmx.transfer.describe import NetworkSketch, Setting, TensorInfo
from dmx.transfer.layout import module_layers, pathway_layers, score_layers


def sketch_network(
    network: TrainableNetwork, *, name: str, channels: Sequence[str] = (), classes: Sequence[str] = ()
) -> NetworkSketch:
    """Return what a transfer knows of a network; the weights are not looked at.

    Args:
        network: Any network of dmx.
        name: What messages and the plan call it.
        channels: Names of the input channels, if they are known.
        classes: Names of the classes, if they are known.
    """
    if isinstance(network, MultiScaleNet):
        return _sketch_multiscale(network, name=name, channels=channels, classes=classes)
    if isinstance(network, PathwayClassifier):
        return _sketch_pathways(network, name=name, channels=channels, classes=classes)
    heads = [group.name for group in network.layer_groups() if group.is_head]
    infos = _infos(network, getattr(network, "class_axes", {}))
    layers = module_layers(infos, heads=heads, scan_readers=_scan_readers(network))
    return NetworkSketch(name, layers, (), tuple(channels), tuple(classes), aliases=network.aliases)


def sketch_section(  # noqa: PLR0913  # what decides a network
    section: ModelSection,
    *,
    name: str,
    channels: Sequence[str],
    classes: Sequence[str],
    compatibility: Compatibility = "none",
    scores: bool = False,
    spatial_dims: int = 2,
    size: tuple[int, ...] | None = None,
) -> NetworkSketch:
    """Return the sketch of the network that a section describes; no weights are drawn for a multi-scale network.

    Args:
        section: The network's settings.
        name: What messages and the plan call it.
        channels: Names of the input channels.
        classes: Names of the classes or targets.
        compatibility: ``deepmedic`` for DeepMedic's.
        scores: Whether the network scores whole images or volumes instead of segmenting.
        spatial_dims: 3 where a network of one's own scores volumes.
        size: Size of the images that it reads, for networks that take no other; None: any.

    Raises:
        ModelError: The settings do not describe a network.
    """
    if scores:
        scoring = build_classifier(
            section, num_channels=len(channels), num_outputs=len(classes), spatial_dims=spatial_dims
        )
        scoring.example_shape = size or scoring.example_shape
        return sketch_network(scoring, name=name, channels=channels, classes=classes)
    if section.name != "multiscale":
        network = build_network(
            section, num_channels=len(channels), num_classes=len(classes), compatibility=compatibility
        )
    else:
        spec = resolve(section, num_channels=len(channels), num_classes=len(classes))
        network = MultiScaleNet(spec, section, compatibility=compatibility)
    return sketch_network(network, name=name, channels=channels, classes=classes)


def sketch_module(
    module: nn.Module,
    *,
    name: str,
    head: str | None = None,
    channels: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> NetworkSketch:
    """Return the sketch of any module, whose layers are the modules that own parameters.

    Args:
        module: The network.
        name: What messages and the plan call it.
        head: Name of the module that gives the class scores; None: the last kernel, and those like it.
        channels: Names of the input channels, if they are known.
        classes: Names of the classes, if they are known.
    """
    layers = module_layers(_infos(module), heads=score_layers(_shapes(module), head))
    return NetworkSketch(name, layers, (), tuple(channels), tuple(classes))


def _scan_readers(network: TrainableNetwork) -> set[str]:
    """Return the modules that get the scan or image itself, found by following a pass without values."""
    try:
        return _readers_of(network)
    except (RuntimeError, ValueError, TypeError, IndexError, ModelError):
        # Of a size that the network cannot take; which kernel comes first is all that is known then.
        return set()


def _readers_of(network: TrainableNetwork) -> set[str]:
    patches = example_patches(network)
    if patches is None:
        return set()
    found: set[str] = set()

    def note(name: str, inputs: tuple[object, ...]) -> None:
        if any(given is patch for given in inputs for patch in patches):
            found.add(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, module in network.named_modules()
    ]
    try:
        with mode(network, training=False), torch.no_grad():
            meta_call(network, meta_state(network), patches)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _infos(module: nn.Module, by_class: Mapping[str, tuple[int, ...]] | None = None) -> list[TensorInfo]:
    """Return the entries of the state dict; a parameter with two names counts once."""
    learned, known = _shapes(module), meanings(module)
    return [
        TensorInfo(
            name,
            tuple(tensor.shape),
            str(tensor.dtype).removeprefix("torch."),
            name in learned,
            known.get(name),
            (by_class or {}).get(name, ()),
        )
        for name, tensor in module.state_dict().items()
    ]


def _sketch_multiscale(
    network: MultiScaleNet, *, name: str, channels: Sequence[str], classes: Sequence[str]
) -> NetworkSketch:
    pathways = (*network.spec.parallel, network.spec.fc)
    specs = [layer for pathway in pathways for layer in pathway.layers]
    layers, parallel = pathway_layers(
        _infos(network),
        residual={layer.name for layer in specs if layer.residual},
        settings={layer.name: _block_settings(network.get_submodule(layer.name)) for layer in specs},
    )
    return NetworkSketch(name, layers, parallel, tuple(channels), tuple(classes), _network_settings(network))


def _sketch_pathways(
    network: PathwayClassifier, *, name: str, channels: Sequence[str], classes: Sequence[str]
) -> NetworkSketch:
    """Sketch the layers of pathways that nothing joins; they are paired by their names."""
    infos = _infos(network)
    head = [info for info in infos if info.name.startswith("head.")]
    layers, _ = pathway_layers([info for info in infos if info not in head])
    last = replace(module_layers(head)[0], depth=1 + max(layer.depth for layer in layers))
    return NetworkSketch(name, (*layers, last), (), tuple(channels), tuple(classes))


def _block_settings(block: nn.Module) -> dict[str, Setting]:
    """Return what decides a layer's output in inference besides its tensors."""
    assert isinstance(block, Block)
    keep = block.dropout.keep if isinstance(block.dropout, UnscaledDropout) else 1.0
    return {
        **_norm_settings(block.norm),
        "activation": type(block.activation).__name__.lower().replace("identity", "linear"),
        "padding": block.spec.padding,
        "dropout scaling": round(keep, 6),
    }


def _norm_settings(norm: nn.Module) -> dict[str, Setting]:
    if isinstance(norm, RollingBatchNorm):
        statistics = "all rows" if norm.count_unwritten else "written rows"
        return {"normalization": "batch", "epsilon": norm.epsilon, "statistics": statistics}
    if isinstance(norm, _BatchNorm):
        return {"normalization": "batch", "epsilon": norm.eps, "statistics": "moving average"}
    if isinstance(norm, nn.GroupNorm):
        alone = norm.num_groups == norm.num_channels
        groups: dict[str, Setting] = {} if alone else {"groups": norm.num_groups}
        return {"normalization": "instance" if alone else "group", "epsilon": norm.eps, **groups}
    return {"normalization": "none"}


def _network_settings(network: MultiScaleNet) -> dict[str, Setting]:
    spec: NetworkSpec = network.spec
    deepmedic = network.compatibility == "deepmedic"
    return {
        "upsampling": network.upsampling,
        "subsampling": "every n-th voxel" if deepmedic else "mean",
        "shrinkage of the pathways": ", ".join(size_text(pathway.shrinkage) for pathway in spec.parallel),
        **{f"factor.{pathway.name}": size_text(triple(pathway.factor)) for pathway in spec.parallel},
    }
