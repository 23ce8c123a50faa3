"""Scores of whole volumes from what an encoder of a segmentation network gives, pooled over all voxels.

The layers of the encoder have the names that they have in the segmentation network, so a transfer from one pairs them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmx.config.model import ENCODER_CLASSIFIER, ModelSection
from dmx.errors import ModelError, suggest
from dmx.model.build import build_network
from dmx.model.groups import LayerGroup, kernel_weights, module_groups
from dmx.model.meta import meta_call, meta_state, mode
from dmx.model.module import ModuleNetwork, first_sentence
from dmx.model.multiscale import Pathway
from dmx.model.network import TrainableNetwork
from dmx.model.norms import move_rings
from dmx.model.spec import PathwaySpec, resolve
from dmx.model.weights import draw_kernels, drawn_from

_HEAD = "head"
# Sizes of volumes, of which one suits every encoder that halves its features a few times.
_SIZES = (32, 64, 96)
_SHOWN = 12


class PathwayClassifier(TrainableNetwork):
    """The parallel pathways of the multi-scale network, the means of their rectified features, and a linear head.

    Each pathway reads the whole volume and a margin, so that there is a feature for every voxel: any size is allowed. A
    subsampled pathway reads the means of blocks.

    Args:
        section: The network's settings; those of ``fc`` and ``upsampling`` are not used.
        num_channels: Channels of the volumes.
        num_classes: Scores per volume: classes, or targets of a regression.
    """

    example_shape = (32, 32, 32)

    def __init__(self, section: ModelSection, *, num_channels: int, num_classes: int) -> None:
        super().__init__()
        # The head of the specification, which needs two classes, is not built.
        self.parallel = resolve(section, num_channels=num_channels, num_classes=max(2, num_classes)).parallel
        self.num_channels = num_channels
        self.num_classes = num_classes
        for pathway in self.parallel:
            self.add_module(pathway.name, Pathway(pathway, section, "none"))
        self.head = nn.Linear(sum(pathway.layers[-1].out_channels for pathway in self.parallel), num_classes)

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return scores [N, classes] of the one patch [N, C, I, J, K], the whole volume."""
        x_NCIJK = _only(patches)
        features = []
        for spec in self.parallel:
            pathway = cast(Pathway, self.get_submodule(spec.name))
            features.append(functional.relu(pathway(_input(x_NCIJK, spec))).mean((2, 3, 4)))
        scores: Tensor = self.head(torch.cat(features, dim=1))
        return scores

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return the layers: ``normal``, ``subsampled_1``, …, and the head as the first of ``fc``."""
        layers = [layer for pathway in self.parallel for layer in pathway.layers]
        groups = [
            LayerGroup(
                pathway=layer.pathway,
                position=layer.position,
                depth=layer.depth,
                name=layer.name,
                modules=(block := self.get_submodule(layer.name),),
                is_head=False,
                parameters=dict(block.named_parameters(prefix=layer.name)),
            )
            for layer in layers
        ]
        depth = 1 + max(layer.depth for layer in layers)
        own = dict(self.head.named_parameters(prefix=_HEAD))
        return (*groups, LayerGroup("fc", 1, depth, _HEAD, (self.head,), True, own))

    def kernel_parameters(self) -> list[nn.Parameter]:
        """Return the weights of all convolutions and of the head."""
        return kernel_weights(self)

    def after_step(self) -> None:
        """Let the ring buffers of rolling statistics move on."""
        move_rings(self)


def _only(patches: Sequence[Tensor]) -> Tensor:
    if len(patches) != 1:
        raise ModelError(f"A classifier of volumes reads 1 patch, the whole volume, got {len(patches)}.")
    return patches[0]


def _input(x_NCIJK: Tensor, spec: PathwaySpec) -> Tensor:
    """Return what a pathway reads so that it gives a feature for every voxel, or every block of voxels.

    As in the patches of a segmentation network, the nearest voxel stands for those outside of the volume.
    """
    sides: list[int] = []
    for size, lost, factor in zip(x_NCIJK.shape[2:], spec.shrinkage, spec.factor, strict=True):
        before = lost // 2 * factor
        # Torch's order of axes is the reverse.
        sides = [before, (-(-size // factor) + lost) * factor - size - before, *sides]
    padded = functional.pad(x_NCIJK, sides, mode="replicate") if any(sides) else x_NCIJK
    return padded if spec.factor == (1, 1, 1) else functional.avg_pool3d(padded, spec.factor)


class _ReachedError(Exception):
    """Ends a pass at the layer whose features are wanted."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class FeatureClassifier(TrainableNetwork):
    """The layers of any network up to one of them, the means of its features, and a linear head.

    What comes after that layer is neither run nor kept.

    Args:
        network: The network; its names in the state dict begin with ``network.``.
        features: Name of the layer; None: the last of those with the coarsest features.
        num_channels: Channels of the volumes.
        num_classes: Scores per volume: classes, or targets of a regression.

    Raises:
        ModelError: The layer does not exist or gives no feature maps, or no volume that is tried suits the network.
    """

    example_shape = (64, 64, 64)

    def __init__(self, network: nn.Module, features: str | None, *, num_channels: int, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.num_channels = num_channels
        self.num_classes = num_classes
        shapes, size = _trace(network, num_channels)
        maps = {name: shape for name, shape in shapes.items() if len(shape) == 5}
        self.features = _find_features(maps, features)
        _drop_unused(network, self.features, lambda: _pass(network, num_channels, size))
        self.head = nn.Linear(maps[self.features][1], num_classes)

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return scores [N, classes] of the one patch [N, C, I, J, K], the whole volume."""
        x_NCIJK = _only(patches)
        features = _features_at(self.network, self.features, lambda: self.network(x_NCIJK))
        scores: Tensor = self.head(features.flatten(2).mean(2))
        return scores

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return one group for each module that owns parameters, in the order in which they were registered."""
        return module_groups(self, heads=[_HEAD])

    def kernel_parameters(self) -> list[nn.Parameter]:
        """Return the weights of convolutions and linear layers."""
        return kernel_weights(self)


def _features_at(network: nn.Module, layer: str, run: Callable[[], object]) -> Tensor:
    """Return what a layer gives in a pass; nothing after it is computed."""

    def stop(_module: nn.Module, _inputs: Any, output: Tensor) -> NoReturn:
        raise _ReachedError(output)

    handle = network.get_submodule(layer).register_forward_hook(stop)
    try:
        run()
    except _ReachedError as reached:
        return reached.features
    finally:
        handle.remove()
    raise ModelError(f"Layer '{layer}' does not run when the network does. Name another one as features.")


def _pass(network: nn.Module, num_channels: int, size: int) -> object:
    """Run a network for volumes of a size, without values; two of them, because normalization refuses one voxel."""
    volumes = torch.empty(2, num_channels, size, size, size, device="meta")
    with mode(network, training=True), torch.no_grad():
        return meta_call(network, meta_state(network), volumes)


def _trace(network: nn.Module, num_channels: int) -> tuple[dict[str, tuple[int, ...]], int]:
    """Return the shape of what each module gives, in the order in which they end, and the size of the volume."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[name] = tuple(output.shape)

    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name, module in network.named_modules()
        if name
    ]
    why = ""
    try:
        for size in _SIZES:
            shapes.clear()
            try:
                _pass(network, num_channels, size)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                why = first_sentence(error)
            else:
                return shapes, size
    finally:
        for hook in hooks:
            hook.remove()
    raise ModelError(f"The encoder takes no volume of {', '.join(map(str, _SIZES))} voxels a side ({why}).")


def _find_features(maps: Mapping[str, tuple[int, ...]], wanted: str | None) -> str:
    """Return the layer whose features are pooled."""
    if wanted is None and maps:
        # No module that holds others: it may join features with those of an earlier layer.
        leaves = {name: shape for name, shape in maps.items() if not any(key.startswith(f"{name}.") for key in maps)}
        coarsest = min(shape[2:] for shape in leaves.values())
        return [name for name, shape in leaves.items() if shape[2:] == coarsest][-1]
    name = (wanted or "").removeprefix("network.")
    if name not in maps:
        raise ModelError(
            f"model.arguments.features must name a layer that gives feature maps [N, C, I, J, K], got '{wanted}'."
            f"{suggest(name, maps)} There are: {', '.join(list(maps)[:_SHOWN]) or 'none'}."
        )
    return name


def _drop_unused(network: nn.Module, layer: str, run: Callable[[], object]) -> None:
    """Remove all modules that do not run before a layer ends."""
    entered: set[nn.Module] = {network}
    hooks = [
        module.register_forward_pre_hook(lambda module, _inputs: entered.add(module)) for module in network.modules()
    ]
    try:
        _features_at(network, layer, run)
    finally:
        for hook in hooks:
            hook.remove()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if entered.isdisjoint(child.modules()):
                del module._modules[name]


def build_volume_classifier(
    section: ModelSection, *, num_channels: int, num_outputs: int, seed: int = 0
) -> PathwayClassifier | FeatureClassifier:
    """Return a classifier of volumes; its weights depend on the seed alone, those of the encoder also on their names.

    Args:
        section: Settings with the name ``encoder_classifier``: those of the parallel pathways as in ``multiscale``; or
            ``arguments`` with ``network``, the name of another network, ``features``, one of its layers, and the
            network's own arguments.
        num_channels: Channels of the volumes.
        num_outputs: Classes, or targets of a regression.
        seed: Seed of the weights.

    Raises:
        ModelError: The settings do not describe a network.
    """
    arguments = dict(section.arguments)
    name, features = arguments.pop("network", None), arguments.pop("features", None)
    if name is None and (arguments or features):
        raise ModelError(
            f"model.arguments of '{ENCODER_CLASSIFIER}' holds '{[*arguments, 'features'][0]}' but no network. "
            "Name one, e.g. {network: SegResNet}, or leave arguments out for the pathways of 'multiscale'."
        )
    if name is None:
        with drawn_from(seed, _HEAD):
            pathways = PathwayClassifier(section, num_channels=num_channels, num_classes=num_outputs)
        draw_kernels(pathways, section.weight_init, seed=seed)
        return pathways
    # The number of classes decides the shape of its head alone, which is dropped.
    inner = build_network(
        ModelSection(name=str(name), arguments=arguments), num_channels=num_channels, num_classes=2, seed=seed
    )
    if not isinstance(inner, ModuleNetwork):
        raise ModelError(f"model.arguments.network must name a network other than '{name}'. Leave arguments out.")
    with drawn_from(seed, _HEAD):
        return FeatureClassifier(inner.network, features, num_channels=num_channels, num_classes=num_outputs)
