"""Networks of nnU-Net v2 by name. The only module that imports dynamic_network_architectures."""

import inspect
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dmx.config.model import ModelSection
from dmx.errors import ModelError, suggest
from dmx.geometry import SegmentPlan, Triple
from dmx.model.meta import sized_by
from dmx.model.module import ModuleNetwork, first_sentence, missing_package
from dmx.model.weights import drawn_from

NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
"""Networks of the package ``dynamic_network_architectures`` that nnU-Net trains, in 3D."""

_FILLED = ("input_channels", "num_classes", "conv_op", "deep_supervision")

# Plans name classes as text. Nothing is imported by such a name: these are the names that are known.
_CLASSES: Mapping[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in (
        *("InstanceNorm3d", "BatchNorm3d", "Dropout3d", "Dropout"),
        *("LeakyReLU", "ReLU", "PReLU", "ELU", "GELU", "SiLU", "Mish"),
    )
}
_TORCH_NAME = re.compile(r"torch\.nn\.(?:modules\.\w+\.)?(\w+)")
_BLOCK_NAME = re.compile(r"dynamic_network_architectures\.building_blocks\.residual\.(\w+)")


class NnUNet(ModuleNetwork):
    """A network of nnU-Net; of its outputs (deep supervision) only the one at full resolution is computed.

    All segmentation layers, those of coarser resolutions included, are the head. A tensor that nnU-Net's files name
    several times stands in the state dict once, under its first name.
    """

    how_to_install = "Run: pip install --no-deps dynamic-network-architectures."

    def __init__(
        self,
        network: nn.Module,
        name: str,
        *,
        num_channels: int,
        num_classes: int,
        head: str | None = None,
        by_class: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__(
            network, name, num_channels=num_channels, num_classes=num_classes, head=head, by_class=by_class
        )
        self.register_state_dict_post_hook(_drop_aliases)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_aliases)  # type: ignore[no-untyped-call]

    def segment_plan(self, segment: Triple) -> SegmentPlan:
        """Return the plan of a segment; outside of the scan are zeros, as in nnU-Net.

        Raises:
            ModelError: The network cannot take this size; the nearest size that it can take is named.
        """
        plan = super().segment_plan(segment)
        return replace(plan, patches=tuple(replace(patch, border="zero") for patch in plan.patches))


def build_nnunet(section: ModelSection, *, num_channels: int, num_classes: int, seed: int) -> NnUNet:
    """Return a network of nnU-Net; its weights depend on the seed alone and are drawn as nnU-Net draws them.

    Raises:
        ModelError: Arguments that it does not take, or the package that it needs is missing.
    """
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError as error:
        raise missing_package(section.name, error, advice=NnUNet.how_to_install) from error
    network_class = getattr(unet, section.name)
    arguments = _arguments(network_class, section.arguments)

    def make(count: int) -> nn.Module:
        made: nn.Module = network_class(
            input_channels=num_channels, num_classes=count, conv_op=nn.Conv3d, deep_supervision=False, **arguments
        )
        return made

    try:
        with drawn_from(seed, "nnunet"):
            network = make(num_classes)
            network.apply(network_class.initialize)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"Network {section.name} cannot be built from model.arguments: {first_sentence(error)}."
        ) from error
    return NnUNet(
        network,
        section.name,
        num_channels=num_channels,
        num_classes=num_classes,
        head=section.head,
        by_class=sized_by(network, make, num_classes),
    )


def _arguments(network_class: type[nn.Module], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a class, checked, with classes in the place of their names."""
    parameters = inspect.signature(network_class).parameters
    allowed = [name for name in parameters if name not in _FILLED]
    for name in given:
        if name not in allowed:
            raise ModelError(
                f"model.arguments holds '{name}', which {network_class.__name__} does not take or which follows from "
                f"the cohort.{suggest(name, allowed)} It takes: {', '.join(allowed)}."
            )
    missing = [name for name in allowed if parameters[name].default is inspect.Parameter.empty and name not in given]
    if missing:
        raise ModelError(f"model.arguments lacks {', '.join(missing)}, which {network_class.__name__} needs.")
    classes = {"norm_op": find_class, "dropout_op": find_class, "nonlin": find_class, "block": _find_block}
    return {name: classes[name](value) if name in classes else value for name, value in given.items()}


def find_class(name: object) -> type[nn.Module] | None:
    """Return the layer that a plan's text names; ``None`` where it names none.

    Raises:
        ModelError: It is not one of the known layers.
    """
    if name is None:
        return None
    match = _TORCH_NAME.fullmatch(str(name))
    if match is None or match[1] not in _CLASSES:
        raise ModelError(
            f"model.arguments must name layers of torch.nn among {', '.join(_CLASSES)}, as 'torch.nn.LeakyReLU', got "
            f"'{name}'."
        )
    return _CLASSES[match[1]]


def _find_block(name: object) -> type[nn.Module]:
    from dynamic_network_architectures.building_blocks.residual import BasicBlockD, BottleneckD

    blocks: dict[str, type[nn.Module]] = {"BasicBlockD": BasicBlockD, "BottleneckD": BottleneckD}
    match = _BLOCK_NAME.fullmatch(str(name))
    if match is None or match[1] not in blocks:
        raise ModelError(
            f"model.arguments.block must be dynamic_network_architectures.building_blocks.residual.BasicBlockD or "
            f"….BottleneckD, got '{name}'."
        )
    return blocks[match[1]]


def _aliases(module: nn.Module) -> dict[str, str]:
    """Return the names of tensors that have an earlier name too, each with that name."""
    first: dict[int, str] = {}
    aliases = {}
    for named in (module.named_parameters, module.named_buffers):
        for name, value in named(remove_duplicate=False):
            known = first.setdefault(id(value), name)
            if known != name:
                aliases[name] = known
    return aliases


def _drop_aliases(module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
    for name in _aliases(module):
        state.pop(f"{prefix}{name}", None)


def _fill_aliases(module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
    for name, first in _aliases(module).items():
        if f"{prefix}{first}" in state:
            state.setdefault(f"{prefix}{name}", state[f"{prefix}{first}"])
